"""A queue that is full and rejects (`overflow: reject-publish`): its exchange waits, the others do not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.relaying import QUEUE, Scene, Worker, bodies
from tests.servers.pgqd import Pgqd
from tests.servers.waiting import until

FULL_FOR = 20.0  # seconds
WAITING = 'select count(*), count(ev_retry) from pgq.retry_queue'


def make_full(scene: Scene, exchange: str) -> None:
    """A queue `full` behind an exchange, which takes ten messages until `make_room`."""
    scene.channel.queue_declare('full')
    if exchange:
        scene.channel.exchange_declare(exchange, 'topic')
        scene.channel.queue_bind('full', exchange, '#')
    limits = '{"max-length": 10, "overflow": "reject-publish"}'
    scene.rabbitmq.ctl('set_policy', '-p', scene.vhost, 'full', '^full$', limits)


def make_room(scene: Scene) -> None:
    scene.rabbitmq.ctl('clear_policy', '-p', scene.vhost, 'full')


def insert_both(scene: Scene, exchange: str, start: int, count: int) -> None:
    """Events n for `exchange` (routing key 'full') and for 'mikkoo' in turn, with the time of insertion."""
    scene.sql(
        """select count(pgq.insert_event(%s, one.key,
               json_build_object('n', n, 'at', extract(epoch from clock_timestamp()))::text,
               one.exchange, null, null, null))
           from generate_series(%s, %s) as n,
               (values ('full', %s), ('good.key', 'mikkoo')) as one(key, exchange)""",
        QUEUE, start, start + count - 1, exchange,
    )  # fmt: skip


def taken(scene: Scene, queue: str) -> list[dict[str, Any]]:
    return [json.loads(body) for _, _, body in scene.take(queue)]


@pytest.mark.parametrize('exchange', ['small', ''])
@pytest.mark.parametrize('slow_consumer', [False, True])
def test_a_full_queue_does_not_hold_up_other_exchanges(
    scene: Scene, pgqd_factory: Callable[..., Pgqd], exchange: str, slow_consumer: bool
) -> None:
    pgqd_factory(scene.database.url)
    make_full(scene, exchange)
    arrived: list[int] = []
    small: list[int] = []
    latest = 0.0
    with Worker(scene.settings(max_failures=1, confirm_window=100)) as worker:
        worker.await_state('running')
        count, began = 0, time.monotonic()
        while time.monotonic() < began + FULL_FOR:
            insert_both(scene, exchange, count + 1, 20)
            count += 20
            held = time.monotonic() + 0.2
            until(lambda held=held: time.monotonic() >= held, 5, 'a pause between inserts')  # type: ignore[misc]
            for message in taken(scene, 'arrivals'):
                arrived.append(message['n'])
                latest = max(latest, time.time() - message['at'])
            if slow_consumer and (got := scene.channel.basic_get('full', auto_ack=True))[0]:
                small.append(json.loads(got[2])['n'])
        until(lambda: scene.queued() + len(arrived) >= count, 3 * 10, 'the last of the other exchange')
        arrived += [message['n'] for message in taken(scene, 'arrivals')]
        print('latest', latest, 'of', count, scene.sql(WAITING), worker.states[-5:])
        assert sorted(arrived) == list(range(1, count + 1)), 'each once'
        assert latest < 3 * 10, 'seconds: five until it counts as full, and the round after'
        [(waiting, counted)] = scene.sql(WAITING)
        assert waiting > count // 2 and counted == 0, 'no attempt is counted'
        worker.await_log('their events are put back')
        make_room(scene)
        until(
            lambda: scene.queued('full') + len(small) >= count,
            4 * FULL_FOR,
            lambda: f'{count} arrive there too, not {scene.queued("full") + len(small)}',
            interval=0.2,
        )
        small += [message['n'] for message in taken(scene, 'full')]
        assert sorted(small) == list(range(1, count + 1)), 'each once'
        scene.await_settled()
        worker.hear()
        assert scene.sql('select count(*) from mikkoo.dead_letter') == [(0,)]
        assert scene.sql('select count(*) from mikkoo.failing_event') == [(0,)]
        assert worker.numbers['put_back'] >= waiting and worker.numbers['failed'] == 0


def test_with_one_exchange_only_order_is_kept_and_nothing_is_put_back(
    scene: Scene, pgqd_factory: Callable[..., Pgqd]
) -> None:
    pgqd_factory(scene.database.url)
    make_full(scene, 'small')
    with Worker(scene.settings(max_failures=1, confirm_window=100)) as worker:
        worker.await_state('running')
        scene.insert(['full'] * 90, exchange='small')
        began = time.monotonic()
        worker.await_state('paused')
        until(lambda: time.monotonic() >= began + 12, 30, 'twice the time that makes others full')
        assert scene.sql(WAITING) == [(0, 0)]
        make_room(scene)
        scene.await_settled()
        worker.hear()
        assert bodies(scene, 'full') == list(range(1, 91)) and worker.numbers['put_back'] == 0
