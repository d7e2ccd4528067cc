"""The worker at its limits: memory, floods of failures, slow and sick servers. Most were bugs once."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.integration.relaying import QUEUE, Scene, Worker, bodies, peak_memory, through
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

SMALL = 4 * 1024 * 1024  # window_bytes


def insert_large(scene: Scene, key: str, count: int, size: int) -> None:
    scene.sql(
        """select count(pgq.insert_event(%s, %s, format('{"n": %%s, "filler": "%%s"}', n, repeat('x', %s)),
           'mikkoo', null, null, null)) from generate_series(1, %s) as n""",
        QUEUE, key, size, count,
    )  # fmt: skip


def test_memory_does_not_grow_with_the_batch(scene: Scene) -> None:
    with Worker(scene.settings(window_bytes=SMALL)) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * 5_000)
        scene.await_settled()
        before = peak_memory(worker)
        scene.insert(['good.key'] * 100_000)
        scene.await_settled(120)
        assert peak_memory(worker) - before < 20_000, 'KiB'


def test_memory_does_not_grow_with_what_a_full_queue_rejects(scene: Scene) -> None:
    arguments = {'x-max-length': 1, 'x-overflow': 'reject-publish'}
    scene.channel.queue_declare('full', arguments=arguments)
    scene.channel.queue_bind('full', 'mikkoo', 'full')
    with Worker(scene.settings(window_bytes=SMALL)) as worker:
        worker.await_state('running')
        before = peak_memory(worker)
        insert_large(scene, 'full', 100, 1_500_000)
        scene.tick()
        worker.await_state('paused')
        until(lambda: nacks(worker) > 10, 30, 'several rounds of rejections')
        assert peak_memory(worker) - before < 60_000, 'KiB'


def nacks(worker: Worker) -> int:
    worker.hear()
    return int(worker.numbers.get('nacked', 0))


def test_memory_does_not_grow_with_the_failures_of_a_batch(scene: Scene) -> None:
    with Worker(scene.settings(window_bytes=SMALL, retry_delay=600)) as worker:
        worker.await_state('running')
        before = peak_memory(worker)
        insert_large(scene, 'nowhere', 15_000, 9_000)
        scene.tick()
        until(
            lambda: scene.sql('select count(*) from pgq.retry_queue') == [(15_000,)],
            90,
            'all are retried later',
        )
        assert peak_memory(worker) - before < 60_000, 'KiB'
        (line,) = worker.await_log('more events of that batch')
        assert line.startswith('14990')


def test_more_retries_than_are_moved_at_once_all_come_back(scene: Scene) -> None:
    many = 10_500
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.insert(['bad.key'] * many)
        scene.tick()
        worker.await_log('more events of that batch', timeout=60)
        scene.channel.queue_bind('arrivals', 'mikkoo', 'bad.#')
        scene.await_settled(90)
        assert sorted(bodies(scene)) == list(range(1, many + 1))


def test_a_batch_that_cannot_be_settled_is_repeated_ever_more_seldom(scene: Scene) -> None:
    scene.sql(
        """create function public.refuse() returns trigger language plpgsql as
           $$begin raise exception 'disk full, say' using errcode = '53100'; end$$"""
    )
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.sql(
            """create trigger refuse before update on pgq.subscription for each row
               when (old.sub_batch is not null and new.sub_batch is null) execute function public.refuse()"""
        )
        scene.insert(['good.key'] * 100)
        scene.tick()
        lines = worker.await_log('PostgreSQL refuses', count=4, timeout=60)
        assert 'disk full, say' in lines[0]
        delays = [float(line.rsplit(' ', 2)[1]) for line in lines]
        assert (
            delays[3] > delays[0] and delays[3] >= 2.0
        )  # 0.5 s doubled thrice, halved at most by the jitter
        scene.sql('drop trigger refuse on pgq.subscription')
        scene.await_settled()
        assert Counter(bodies(scene)).keys() == set(range(1, 101))


def test_an_event_that_nobody_can_read_does_not_hold_up_the_others(scene: Scene) -> None:
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.sql('begin')
        scene.insert(['good.key'] * 700)
        (bad_id,) = scene.insert(['good.key'])
        scene.insert(['good.key'] * 700)
        [(table,)] = scene.sql('select pgq.current_event_table(%s)', QUEUE)
        scene.sql(f"update {table} set ev_time = '12000-01-01' where ev_id = %s", bad_id)
        scene.sql('commit')
        scene.await_settled()
        (line,) = worker.await_log(f'event {bad_id} of {QUEUE}')
        assert 'cannot be read' in line
        kept = scene.sql("select event_id, payload, event_time > '11999-01-01' from mikkoo.dead_letter")
        assert kept == [(bad_id, '{"n": 1}', True)], 'copied within the server'
        assert bodies(scene) == [*range(1, 701), *range(1, 701)]


def test_a_tick_wakes_the_worker(scene: Scene) -> None:
    """Not wait_duration, a minute here; a notification may come at any moment of the worker's turn."""
    with Worker(scene.settings(wait_duration=60)) as worker:
        worker.await_state('running')
        for count in range(1, 11):
            scene.insert(['good.key'])
            scene.await_queued(count, timeout=10)


def test_an_event_that_closes_the_channel_is_told_from_its_neighbours(scene: Scene) -> None:
    """RabbitMQ answers this reply_to with 406, unless the connection consumes from that pseudo-queue."""
    with Worker(scene.settings(max_failures=2)) as worker:
        worker.await_state('running')
        scene.sql('begin')
        scene.insert(['good.key'] * 500)
        (bad_id,) = scene.insert(['good.key'], properties='{"reply_to": "amq.rabbitmq.reply-to"}')
        scene.insert(['good.key'] * 500)
        scene.sql('commit')
        scene.await_settled()
        [(event_id, attempts, code, reason)] = scene.sql(
            'select event_id, attempts, reason_code, reason from mikkoo.dead_letter'
        )
        assert (event_id, attempts, code) == (bad_id, 2, 'refused') and '406' in reason
        # Stored before the channel was closed, without an Ack, and so repeated: one window at most.
        arrived = bodies(scene)
        assert Counter(arrived).keys() == set(range(1, 501)) and 1000 <= len(arrived) <= 2000


@pytest.mark.parametrize('idle', [0.0, 3.0])
def test_a_body_that_takes_longer_than_confirm_timeout_is_no_outage(
    scene: Scene, to_broker: Proxy, idle: float
) -> None:
    settings = scene.settings(rabbitmq=through(to_broker, scene.vhost), confirm_timeout=2.0)
    with Worker(settings) as worker:
        worker.await_state('running')
        scene.insert(['good.key'])
        scene.await_settled()
        quiet_until = time.monotonic() + idle
        until(lambda: time.monotonic() >= quiet_until, 10, 'a while without events')
        to_broker.throttle(3_000_000)
        insert_large(scene, 'good.key', 1, 18_000_000)
        scene.await_settled()
        assert len(scene.take()) == 2
        assert not [line for line in worker.log_lines() if 'RabbitMQ is out' in line]


def test_a_full_queue_holds_no_snapshot(scene: Scene) -> None:
    """The transaction that reads the batch ends when nothing is confirmed for five seconds."""
    arguments = {'x-max-length': 1, 'x-overflow': 'reject-publish'}
    scene.channel.queue_declare('full', arguments=arguments)
    scene.channel.queue_bind('full', 'mikkoo', 'full')
    reading = """
        select count(*) from pg_stat_activity
        where application_name = 'mikkoo test reader' and state = 'idle in transaction'
            and datname = current_database()
    """
    with Worker(scene.settings(confirm_window=100)) as worker:
        worker.await_state('running')
        scene.insert(['full'] * 2_000)
        scene.tick()
        worker.await_state('paused')
        until(lambda: scene.sql(reading) == [(0,)], 3 * 5, 'the reading transaction has ended')
        scene.channel.queue_bind('arrivals', 'mikkoo', 'full')
        scene.channel.queue_unbind('full', 'mikkoo', 'full')
        scene.await_settled()
        assert {*bodies(scene), *bodies(scene, 'full')} == set(range(1, 2_001))
