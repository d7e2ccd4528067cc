"""The worker against a real PostgreSQL and a real RabbitMQ, as the role mikkoo_relay."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from mikkoo.common.settings import BrokerSettings
from tests.integration.relaying import QUEUE, Scene, Worker, bodies, through
from tests.servers.pgqd import Pgqd
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

MANY = 10_000
TERMINATE = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where application_name like 'mikkoo%%' and datname = current_database()
"""


@pytest.mark.parametrize('confirm', [True, False])
def test_events_arrive_once_each_in_order(scene: Scene, confirm: bool) -> None:
    with Worker(scene.settings(confirm=confirm)) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * MANY)
        scene.await_settled()
        scene.await_queued(MANY)  # without confirms the last may still be on their way to the queue
        assert bodies(scene) == list(range(1, MANY + 1))


BAD = {
    'unroutable': {'keys': ['bad.key'], 'exchange': 'mikkoo', 'properties': None},
    'missing exchange': {'keys': ['good.key'], 'exchange': 'nowhere', 'properties': None},
    'refused property': {'keys': ['good.key'], 'exchange': 'mikkoo', 'properties': '{"user_id": "somebody"}'},
}


@pytest.mark.parametrize('confirm', [True, False])
@pytest.mark.parametrize('bad', BAD)
def test_one_bad_event_among_many_good_ones(scene: Scene, bad: str, confirm: bool) -> None:
    """The good ones arrive at once; the bad one is tried max_failures times, then kept as a dead letter."""
    with Worker(scene.settings(confirm=confirm, max_failures=3, retry_delay=1.0)) as worker:
        worker.await_state('running')
        scene.sql('begin')
        scene.insert(['good.key'] * (MANY // 2))
        (bad_id,) = scene.insert(**BAD[bad])  # type: ignore[arg-type]
        scene.insert(['good.key'] * (MANY // 2))
        scene.sql('commit')
        scene.await_queued(MANY)
        scene.await_settled()
        lines = worker.await_log(f'event {bad_id} of {QUEUE}', count=3)
        assert ['attempt 1 of 3' in lines[0], 'attempt 2 of 3' in lines[1]] == [True, True]
        assert 'it becomes a dead letter (attempt 3 of 3)' in lines[2]
        [(attempts, payload, exchange, first, last)] = scene.sql(
            """select attempts, payload, exchange, first_failed_at, last_failed_at from mikkoo.dead_letter
               where event_id = %s""",
            bad_id,
        )
        assert (attempts, payload, exchange) == (3, '{"n": 1}', BAD[bad]['exchange'])
        assert (last - first).total_seconds() >= 1.8, 'two retries, a second apart'
        assert scene.sql('select count(*) from mikkoo.failing_event') == [(0,)]
        times = [log['created'] for log in worker.logs if f'event {bad_id} of' in log['message']]
        assert all(later - earlier >= 0.9 for earlier, later in pairwise(times))
        good = list(range(1, MANY // 2 + 1))
        assert bodies(scene) == good + good


def test_an_event_that_cannot_become_a_message_is_given_up_at_once(scene: Scene) -> None:
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        (bad_id,) = scene.insert(['good.key'], properties='{"type": ')
        scene.insert(['good.key'])
        scene.await_settled()
        (line,) = worker.await_log(f'event {bad_id} of')
        assert 'dead letter (attempt 1 of 10)' in line and 'ev_extra3' in line
        assert scene.sql('select event_id, reason_code, properties from mikkoo.dead_letter') == [
            (bad_id, 'untranslatable', '{"type": ')
        ]
        assert len(scene.take()) == 1


def test_a_reason_that_no_text_of_the_database_can_hold_is_kept_all_the_same(scene: Scene) -> None:
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        properties = r'{"headers": {"a\u0000\u4e2d": 18446744073709551615}}'
        (bad_id,) = scene.insert(['good.key'], properties=properties)
        scene.insert(['good.key'])
        scene.await_settled()
        [(event_id, reason)] = scene.sql('select event_id, reason from mikkoo.dead_letter')
        assert event_id == bad_id and r'a\x00\u4e2d' in reason
        assert len(scene.take()) == 1


def test_an_event_that_stands_twice_in_a_batch_is_one_dead_letter(scene: Scene) -> None:
    """As after retries were committed before a crash that repeated their batch."""
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.sql('begin')
        (bad_id,) = scene.insert(['good.key'], properties='[]')
        [(table,)] = scene.sql('select pgq.current_event_table(%s)', QUEUE)
        scene.sql(f'insert into {table} select * from {table} where ev_id = %s', bad_id)
        scene.sql('commit')
        scene.await_settled()
        assert scene.sql('select event_id from mikkoo.dead_letter') == [(bad_id,)]


def test_without_mikkoo_sql_what_is_given_up_is_logged_whole(scene: Scene) -> None:
    scene.sql('drop schema mikkoo cascade')
    with Worker(scene.settings(max_failures=1)) as worker:
        worker.await_state('running')
        (bad_id,) = scene.insert(['bad.key'])
        scene.insert(['good.key'])
        scene.await_settled()
        (line,) = worker.await_log(f'event {bad_id} of')
        assert 'given up after attempt 1' in line and 'NO_ROUTE' in line
        (whole,) = worker.await_log(f'given up event {bad_id}, part 1 of 1')
        assert "'data': '{\"n\": 1}'" in whole and "'extra1': 'mikkoo'" in whole
        assert len(scene.take()) == 1


def test_an_exchange_that_is_made_later_gets_its_events(scene: Scene) -> None:
    with Worker(scene.settings(max_failures=100)) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * 10, exchange='later')
        scene.tick()
        worker.await_log('is tried again', count=10)
        scene.channel.exchange_declare('later', 'topic')
        scene.channel.queue_bind('arrivals', 'later', '#')
        scene.await_settled()
        assert sorted(bodies(scene)) == list(range(1, 11))


def test_permission_taken_away_closes_the_channel_and_only_its_exchange_suffers(scene: Scene) -> None:
    scene.channel.exchange_declare('forbidden', 'topic')
    scene.channel.queue_bind('arrivals', 'forbidden', '#')
    user = f'user_{scene.vhost}'
    scene.rabbitmq.ctl('add_user', user, 'secret')
    scene.rabbitmq.ctl('set_permissions', '-p', scene.vhost, user, '.*', '^(?!forbidden).*', '.*')
    broker = BrokerSettings(
        nodes=((scene.rabbitmq.host, scene.rabbitmq.port),),
        vhost=scene.vhost,
        username=user,
        password='secret',
    )
    with Worker(scene.settings(rabbitmq=broker, max_failures=100)) as worker:
        worker.await_state('running')
        scene.sql('begin')
        for _ in range(50):
            scene.insert(['good.key'])
            scene.insert(['good.key'], exchange='forbidden')
        scene.sql('commit')
        scene.tick()
        worker.await_log('40 more events of that batch')
        assert scene.queued() >= 50
        scene.rabbitmq.ctl('set_permissions', '-p', scene.vhost, user, '.*', '.*', '.*')
        scene.await_settled()
        # What was in flight before the culprit was stored without an Ack, and is repeated: same message_id.
        by_exchange = Counter(
            exchange for exchange, _ in {(m.exchange, p.message_id) for m, p, _ in scene.take()}
        )
        assert by_exchange == {'mikkoo': 50, 'forbidden': 50}
    scene.rabbitmq.ctl('delete_user', user)


def test_a_full_queue_that_rejects_is_back_pressure_and_no_failure(scene: Scene) -> None:
    arguments = {'x-max-length': 100, 'x-overflow': 'reject-publish'}
    scene.channel.queue_declare('small', arguments=arguments)
    scene.channel.queue_bind('small', 'mikkoo', 'small')
    with Worker(scene.settings(max_failures=2)) as worker:
        worker.await_state('running')
        scene.insert(['small'] * 500)
        scene.tick()
        _, reason = worker.await_state('paused')
        assert 'rejects' in reason
        arrived: list[int] = []

        def all_arrived() -> bool:
            arrived.extend(bodies(scene, 'small'))
            return len(arrived) == 500

        until(all_arrived, 60, lambda: f'500 arrive, not {len(arrived)}', interval=0.2)
        scene.await_settled()
        assert sorted(arrived) == list(range(1, 501))
        assert worker.await_state('running') and not [x for x in worker.log_lines() if 'tried again' in x]


def test_a_memory_alarm_is_shown_counts_no_failure_and_a_stop_during_it_is_quick(scene: Scene) -> None:
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.rabbitmq.ctl('set_vm_memory_high_watermark', '0')
        try:
            scene.insert(['good.key'] * 100)
            scene.tick()
            _, reason = worker.await_state('paused')
            assert 'blocked' in reason and 'memory' in reason
            assert worker.stop() < 3 * 5
            assert worker.process.exitcode == 0
        finally:
            scene.rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', '1GB')
    with Worker(scene.settings()) as worker:
        scene.await_settled()
        assert set(bodies(scene)) == set(range(1, 101))


@pytest.mark.parametrize('fault', ['cut', 'cut in a frame', 'half close'])
def test_a_lost_broker_loses_nothing_and_counts_nothing(
    scene: Scene, to_broker: Proxy, pgqd_factory: Callable[..., Pgqd], fault: str
) -> None:
    pgqd_factory(scene.database.url)
    with Worker(scene.settings(rabbitmq=through(to_broker, scene.vhost), max_failures=1)) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * MANY)
        until(lambda: scene.queued() > 100, 30, 'the first arrive', interval=0.002)
        if fault == 'cut':
            to_broker.cut()
        elif fault == 'cut in a frame':
            to_broker.cut_after(100_001)
        else:
            to_broker.half_close()
        worker.await_log('RabbitMQ is out')
        scene.await_settled()
        arrived = Counter(bodies(scene))
        assert set(arrived) == set(range(1, MANY + 1))
        assert sum(arrived.values()) - MANY <= 1000, 'more repeats than one window'
        assert not [line for line in worker.log_lines() if 'given up' in line or 'tried again' in line]


def test_a_stalled_broker_is_given_up_after_confirm_timeout(scene: Scene, to_broker: Proxy) -> None:
    settings = scene.settings(rabbitmq=through(to_broker, scene.vhost), confirm_timeout=2.0, max_failures=1)
    with Worker(settings) as worker:
        worker.await_state('running')
        scene.insert(['good.key'])
        scene.await_settled()
        assert bodies(scene) == [1]
        to_broker.stall()
        scene.insert(['good.key'] * 100)
        scene.tick()
        worker.await_log('no confirm for 2 s')
        to_broker.resume()
        scene.await_settled()
        assert set(bodies(scene)) == set(range(1, 101))


def test_a_lost_database_loses_nothing(scene: Scene, pgqd_factory: Callable[..., Pgqd]) -> None:
    pgqd_factory(scene.database.url)
    with Worker(scene.settings(max_failures=1)) as worker:
        worker.await_state('running')
        for _ in range(3):
            scene.insert(['good.key'] * MANY)
            until(lambda: scene.queued() > 100, 30, 'the first arrive', interval=0.002)
            scene.sql(TERMINATE)
            worker.await_log('PostgreSQL is out')
            scene.await_settled()
            assert set(bodies(scene)) == set(range(1, MANY + 1))
        assert not [line for line in worker.log_lines() if 'given up' in line or 'tried again' in line]


def test_servers_that_are_absent_at_the_start_are_waited_for(
    scene: Scene, to_broker: Proxy, proxy_factory: Callable[..., Proxy]
) -> None:
    to_database = proxy_factory('127.0.0.1', scene.database.server.port)
    to_broker.refuse()
    to_database.refuse()
    url = scene.database.relay_url.replace(f':{scene.database.server.port}/', f':{to_database.port}/')
    scene.register()
    scene.insert(['good.key'] * 10)
    with Worker(scene.settings(postgres_url=url, rabbitmq=through(to_broker, scene.vhost))) as worker:
        _, reason = worker.await_state('paused')
        assert reason.startswith('PostgreSQL')
        to_database.accept()
        until(lambda: 'RabbitMQ' in worker.await_state('paused')[1], 30, 'RabbitMQ is missing')
        to_broker.accept()
        worker.await_state('running')
        scene.await_settled()
        assert bodies(scene) == list(range(1, 11))


def test_of_two_workers_with_one_consumer_name_one_stands_by_and_takes_over(scene: Scene) -> None:
    with Worker(scene.settings()) as first:
        first.await_state('running')
        with Worker(scene.settings()) as second:
            _, reason = second.await_state('standby')
            assert 'owned by' in reason
            scene.insert(['good.key'] * 100)
            scene.await_settled()
            assert first.stop() < 15
            second.await_state('running', timeout=3 * 5)
            scene.insert(['good.key'] * 100)
            scene.await_settled()
            assert bodies(scene) == [*range(1, 101), *range(1, 101)]


def test_a_stop_in_the_middle_of_a_large_batch_is_quick_and_the_rest_comes_later(scene: Scene) -> None:
    large = 100_000
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * large)
        scene.await_queued(500)
        assert worker.stop() < 3 * 5
        assert worker.process.exitcode == 0
    with Worker(scene.settings()):
        scene.await_settled(120)
        assert set(bodies(scene)) == set(range(1, large + 1))


def test_a_stop_in_the_middle_of_a_batch_repeats_nothing(scene: Scene) -> None:
    large = 60_000
    for stops in range(3):
        with Worker(scene.settings()) as worker:
            worker.await_state('running')
            if not stops:
                scene.insert(['good.key'] * large)
            scene.await_queued(5_000 * (stops + 1))
            assert worker.stop() < 15 and worker.process.exitcode == 0
            assert not [line for line in worker.log_lines() if 'not saved' in line]
    with Worker(scene.settings()):
        scene.await_settled(120)
        assert bodies(scene) == list(range(1, large + 1))
        assert scene.sql('select count(*) from mikkoo.batch_progress') == [(0,)]


def test_a_killed_worker_repeats_less_than_a_window_and_a_saving_interval(scene: Scene) -> None:
    """Poison among them: none of it is kept twice, none is lost."""
    large, every = 40_000, 997
    keys = ['bad.key' if not n % every else 'good.key' for n in range(1, large + 1)]
    good = {n for n in range(1, large + 1) if n % every}
    kills = 4
    for number in range(kills):
        with Worker(scene.settings(max_failures=1)) as worker:
            worker.await_state('running')
            if not number:
                scene.insert(keys)
            scene.await_queued(6_000 * (number + 1))
            worker.stop(signal.SIGKILL)
    with Worker(scene.settings(max_failures=1)):
        scene.await_settled(120)
        arrived = bodies(scene)
        assert set(arrived) == good
        assert len(arrived) - len(good) <= kills * 3_000
        [(dead,)] = scene.sql('select count(*) from mikkoo.dead_letter')
        assert dead == large - len(good)


def test_progress_of_another_batch_is_not_used(scene: Scene) -> None:
    scene.register()
    scene.insert(['good.key'] * 10)
    scene.tick()
    [batch] = scene.sql('select * from pgq.next_batch_info(%s, %s)', QUEUE, 'mikkoo')
    scene.sql(
        """insert into mikkoo.batch_progress
               (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, last_event_id)
           values (%s, 'mikkoo', %s, 1, 1, '2020-01-01', 1000000)""",
        QUEUE, batch[0],
    )  # fmt: skip
    with Worker(scene.settings()):
        scene.await_settled()
        assert bodies(scene) == list(range(1, 11))


def test_unregister_acts_only_when_the_queue_is_retired(scene: Scene) -> None:
    def registered() -> bool:
        return bool(scene.sql("select 1 from pgq.get_consumer_info() where consumer_name = 'mikkoo'"))

    with Worker(scene.settings(unregister=True)) as worker:
        worker.await_state('running')
        worker.stop()
        assert registered()
    with Worker(scene.settings(unregister=True)) as worker:
        worker.await_state('running')
        worker.pipe.send('retire')
        worker.stop()
        assert not registered()


def test_the_broker_shows_who_is_connected(scene: Scene) -> None:
    with Worker(scene.settings()) as worker:
        worker.await_state('running')
        listed = scene.rabbitmq.ctl('list_connections', 'vhost', 'client_properties')
        (line,) = [line for line in listed.splitlines() if scene.vhost in line and 'mikkoo test' in line]
        assert '"events"' in line or 'events' in line


def test_the_deduplication_header_where_it_is_wanted(scene: Scene) -> None:
    with Worker(scene.settings(deduplication_header=True)) as worker:
        worker.await_state('running')
        scene.insert(['good.key'] * 3)
        scene.insert(['good.key'], properties='{"headers": {"x-deduplication-header": "mine"}}')
        scene.await_settled()
        found = [(p.message_id, p.headers['x-deduplication-header']) for _, p, _ in scene.take()]
        assert [header for _, header in found] == [*(number for number, _ in found[:3]), 'mine']
