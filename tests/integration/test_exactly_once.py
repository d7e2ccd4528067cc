"""A consumer that drops what it has seen, as docs/guarantees.md shows it, has each event once."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mikkoo.connector import ConnectionParameters, ConsumerThread, Credentials
from tests.integration.relaying import Scene, Worker
from tests.servers.waiting import until

EVENTS = 10_000
KILLED_AT = (1_000, 3_500, 6_000)  # events, or a little later
PREFETCH = 100
FORGETS = 1_000  # messages after which the consumer dies before it acknowledges
ARRIVAL = 180.0  # seconds
GUARANTEES = (Path(__file__).parents[2] / 'docs' / 'guarantees.md').read_text()
CREATE, INSERT = re.findall(r'```sql\n(.*?;)\n```', GUARANTEES, re.DOTALL)
WORK = """
    create table work (n integer not null);
    create table deliveries (n integer not null, sequence bigint not null)
"""


class Consumer:
    """Works in PostgreSQL by the documented statements. Now and then it dies, and is started anew."""

    def __init__(self, scene: Scene) -> None:
        self._database = scene.database.connect()
        self._database.autocommit = False
        self._handled = 0
        self.failure: BaseException | None = None
        login = Credentials('guest', 'guest')
        place = ConnectionParameters(scene.rabbitmq.host, scene.rabbitmq.port, scene.vhost, credentials=login)
        self._thread = ConsumerThread(place, 'arrivals', self._receive, self._told, prefetch=PREFETCH)
        self._thread.start()

    def stop(self) -> None:
        self._thread.join(ARRIVAL)
        self._database.close()
        assert not self._thread.is_alive() and self.failure is None, self.failure

    def _told(self, thread: ConsumerThread, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self._thread = thread.renewed()
            self._thread.start()
        else:
            self.failure = error

    def _receive(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._handle(properties, json.loads(body)['n'])
        self._handled += 1
        if self._handled % FORGETS == 0:
            raise SystemExit

    def _handle(self, properties: Any, n: int) -> None:
        with self._database, self._database.cursor() as cursor:
            cursor.execute(INSERT.replace('$1', '%s'), (properties.message_id,))
            if cursor.rowcount:
                cursor.execute('insert into work values (%s)', (n,))
            cursor.execute('insert into deliveries values (%s, %s)', (n, properties.headers['sequence']))


@pytest.fixture
def consumer(scene: Scene) -> Iterator[Consumer]:
    scene.sql(CREATE)
    scene.sql(WORK)
    made = Consumer(scene)
    yield made
    made.stop()


def test_a_consumer_that_drops_what_it_has_seen_has_each_event_once(scene: Scene, consumer: Consumer) -> None:
    """The worker is killed in the middle of a batch, the consumer dies between its commit and its ack."""
    scene.register()
    first = scene.insert(['good.key'] * EVENTS)[0]
    scene.tick()
    for wanted in KILLED_AT:
        with Worker(scene.settings()) as worker:
            until(lambda last=first + wanted: judged(scene) >= last, ARRIVAL, 'it gets on', interval=0.005)  # type: ignore[misc]
            worker.stop(signal.SIGKILL)
    assert scene.sql('select 1 from pgq.subscription where sub_batch is not null'), 'all in one batch'
    with Worker(scene.settings()):
        scene.await_settled(ARRIVAL)
        until(lambda: scene.queued() == 0 and count(scene) >= EVENTS, ARRIVAL, 'all are handled')
    consumer.stop()
    assert scene.sql('select count(*), count(distinct n) from work') == [(EVENTS, EVENTS)]
    # The header `sequence` is another one each time that an event is relayed.
    [(relayed, delivered)] = scene.sql('select count(distinct sequence), count(*) from deliveries')
    assert relayed > EVENTS, 'no kill repeated anything'
    assert delivered > relayed, 'no message was delivered again'


def judged(scene: Scene) -> int:
    """The last event of the open batch that the relay has judged, and saved so."""
    [(last,)] = scene.sql('select max(last_event_id) from mikkoo.batch_progress')
    return last or 0


def count(scene: Scene) -> int:
    return int(scene.sql('select count(*) from work')[0][0])
