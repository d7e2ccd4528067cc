"""Events over which the connection to RabbitMQ is dropped, and what only looks like them."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.integration.relaying import QUEUE, Scene, Worker, bodies, through
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

POISON = b'ends the link'
PUBLISH = b'\x00\x3c\x00\x28'  # class 60, method 40 (AMQP 0-9-1 §1.8.3.7)
DEAD = 'select event_id, attempts, reason_code, reason from mikkoo.dead_letter order by event_id'


def insert_poison(scene: Scene) -> int:
    [(event_id,)] = scene.sql(
        'select pgq.insert_event(%s, %s, %s, %s, null, null, null)',
        QUEUE, 'good.key', POISON.decode(), 'mikkoo',
    )  # fmt: skip
    return int(event_id)


@pytest.mark.parametrize('confirm', [True, False])
def test_an_event_that_ends_the_link_is_told_from_its_neighbours(
    scene: Scene, to_broker: Proxy, confirm: bool
) -> None:
    to_broker.cut_on(POISON)
    settings = scene.settings(rabbitmq=through(to_broker, scene.vhost), max_failures=2, confirm=confirm)
    with Worker(settings) as worker:
        worker.await_state('running')
        scene.sql('begin')
        scene.insert(['good.key'] * 1_500)
        bad_id = insert_poison(scene)
        scene.insert(['good.key'] * 1_500)
        scene.sql('commit')
        started = time.monotonic()
        scene.await_settled(120)
        print('settled after', time.monotonic() - started, to_broker.cuts)
        [(event_id, attempts, code, reason)] = scene.sql(DEAD)
        assert (event_id, attempts, code) == (bad_id, 2, 'kills_link') and 'alone in flight' in reason
        arrived = Counter(bodies(scene))
        assert set(arrived) == set(range(1, 1_501)) and arrived.total() >= 3_000
        # 4 + 3 + 3 where no link confirms anything before it is cut; one that does makes progress, uncounted.
        assert to_broker.cuts <= 3 * (4 + 3 + 3)
        assert arrived.total() <= 3_000 + 1_000 * (to_broker.cuts - 6), 'a window each, until they go alone'
        (line,) = worker.await_log(f'event {bad_id} of {QUEUE}: kills_link', count=2)[:1]
        assert 'is tried again' in line
        assert len([line for line in worker.log_lines() if 'is tried again' in line]) == 1


def test_two_neighbours_that_end_the_link_each_and_nothing_else_to_compare_them_with(
    scene: Scene, to_broker: Proxy
) -> None:
    to_broker.cut_on(POISON)
    with Worker(scene.settings(rabbitmq=through(to_broker, scene.vhost), max_failures=1)) as worker:
        worker.await_state('running')
        scene.sql('begin')
        bad = [insert_poison(scene), insert_poison(scene)]
        scene.sql('commit')
        scene.await_settled(90)
        assert [(row[0], row[2]) for row in scene.sql(DEAD)] == [(one, 'kills_link') for one in bad]
        to_broker.cut_on(b'')
        scene.insert(['good.key'])
        scene.await_settled()
        assert bodies(scene) == [1]


def test_an_event_over_the_look_up_of_whose_exchange_the_link_ends(scene: Scene, to_broker: Proxy) -> None:
    to_broker.cut_on(b'fatal exchange')
    with Worker(scene.settings(rabbitmq=through(to_broker, scene.vhost), max_failures=1)) as worker:
        worker.await_state('running')
        scene.sql('begin')
        (bad,) = scene.insert(['good.key'], exchange='fatal exchange')
        scene.insert(['good.key'] * 50)
        scene.sql('commit')
        scene.await_settled(90)
    assert [(row[0], row[2]) for row in scene.sql(DEAD)] == [(bad, 'kills_link')]
    assert set(bodies(scene)) == set(range(1, 51))


def test_a_connection_that_is_cut_at_each_first_publish_is_an_outage(scene: Scene, to_broker: Proxy) -> None:
    with Worker(scene.settings(rabbitmq=through(to_broker, scene.vhost), max_failures=1)) as worker:
        worker.await_state('running')
        to_broker.cut_on(PUBLISH)
        scene.insert(['good.key'] * 3_000)
        scene.tick()
        began, connections = time.monotonic(), to_broker.connections
        until(lambda: time.monotonic() >= began + 20, 30, 'twenty seconds of it')
        assert to_broker.cuts >= 4 and to_broker.connections - connections <= 20 / 0.75
        to_broker.cut_on(b'')
        scene.await_settled(90)
        assert sorted(set(bodies(scene))) == list(range(1, 3_001))
        assert scene.sql(DEAD) == [] and not [x for x in worker.log_lines() if 'tried again' in x]
