"""Relay and connector together: each event has its effect exactly once, whichever end dies, and when."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.product import ARRIVAL, Product
from tests.servers.waiting import until

TOP = Path(__file__).parents[3]
SECONDS = float(os.environ.get('MIKKOO_KILLS', '120'))  # of kills at random
CHUNK, PAUSE = 20, 0.05  # events of a transaction, and seconds between two


class Service:
    """The consumer's end, killed and started again."""

    def __init__(self, product: Product, folder: Path) -> None:
        login = {'username': 'guest', 'password': 'guest'}
        config = {
            'server': product.rabbitmq.host, 'port': product.rabbitmq.port, 'users': {'effects': login},
            'postgres_url': product.database.url,
        }  # fmt: skip
        file = folder / 'mq_config.json'
        file.write_text(json.dumps(config))
        module = 'tests.integration.connector.effects'
        self._command = [sys.executable, '-m', module, str(file), product.vhost, 'effects']
        self._log = (folder / 'service.log').open('ab')
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=TOP, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture
def service(product: Product, tmp_path: Path) -> Iterator[Service]:
    made = Service(product, tmp_path)
    yield made
    made.close()


class Relay:
    """The producer's end: a whole mikkood, killed and started again."""

    def __init__(self, product: Product) -> None:
        self._product = product
        product.save()
        self.start()

    def start(self) -> None:
        self._process = self._product.foreground()
        self._product.until_running()

    def kill(self) -> None:
        for pid in self._product.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # with its parent
        self._process.communicate()
        until(lambda: not self._product.processes(), ARRIVAL, 'nothing of mikkood is left')


class Producer(threading.Thread):
    """Inserts numbered events until it is told to end."""

    def __init__(self, product: Product) -> None:
        super().__init__(name='producer')
        self._connection = product.database.connect()
        self.ending = threading.Event()
        self.events = 0

    def run(self) -> None:
        insert = (
            "select count(pgq.insert_event('effects', 'effects', n::text, '', null, null, null))"
            ' from generate_series(%s, %s) as n'
        )
        with self._connection.cursor() as cursor:
            while not self.ending.wait(PAUSE):
                cursor.execute(insert, (self.events + 1, self.events + CHUNK))
                self.events += CHUNK
        self._connection.close()


def test_each_event_has_its_effect_exactly_once(
    product: Product, service: Service, record_property: Callable[[str, object], None]
) -> None:
    product.sql('create table public.effect (number integer not null, redelivered boolean not null)')
    product.create_queue('effects')
    product.arrivals('effects')
    product.worker('effects')
    faulthandler.cancel_dump_traceback_later()  # pytest's, after two minutes, which this test means to take
    relay = Relay(product)
    service.start()
    producer = Producer(product)
    producer.start()
    kills = {'relay': 0, 'service': 0}
    dice = random.Random()
    ends = time.monotonic() + SECONDS
    try:
        while time.monotonic() < ends:
            threading.Event().wait(dice.uniform(0.5, 4))
            if dice.random() < 0.4:
                kills['relay'] += 1
                relay.kill()
                relay.start()
            else:
                kills['service'] += 1
                service.kill()
                service.start()
    finally:
        producer.ending.set()
        producer.join()
    product.until_settled()

    def done() -> bool:
        return product.sql('select count(distinct number) from public.effect') == [(producer.events,)]

    until(done, ARRIVAL, lambda: f'{product.sql("select count(*) from public.effect")} of {producer.events}')
    until(lambda: product.queued('effects') == 0, ARRIVAL, 'no message is left')
    [(effects, numbers, again)] = product.sql(
        'select count(*), count(distinct number), count(*) filter (where redelivered) from public.effect'
    )
    assert (effects, numbers) == (producer.events, producer.events)
    assert product.sql('select count(*) from mikkoo.inbox') == [(producer.events,)]
    assert kills['relay'] and kills['service']
    record_property('events', effects)
    record_property('redelivered', again)
    record_property('kills', str(kills))
    print(f'{effects} events, {again} redelivered, kills: {kills}')
