"""Whatever dies or disappears, no settlement is lost and none is counted that was not committed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from mikkoo.common.settings import BindingSettings
from tests.integration.auditor.conftest import AUDIT_QUEUE, PATIENCE, QUEUE, TELEMETRY, Audited
from tests.integration.relaying import Worker, through
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

HERE = (QUEUE, 'mikkoo')


def behind(proxy: Proxy, audited: Audited) -> str:
    """The auditor's url of a proxy before PostgreSQL."""
    server = audited.database.server
    return audited.database.auditor_url.replace(f':{server.port}/', f':{proxy.port}/')


@pytest.mark.parametrize(
    ('action', 'again'), [('mark', {HERE: {'received': 1, 'duplicates': 1}}), ('delete', {})]
)
def test_killed_between_commit_and_ack_it_gets_the_message_again(
    audited: Audited, to_broker: Proxy, action: str, again: Any
) -> None:
    """The acks are held up on their way; nothing is settled twice."""
    auditor = audited.auditor(action=action, rabbitmq=through(to_broker, audited.vhost))
    to_broker.hold('server')
    audited.publish(audited.make_record())
    audited.await_counts({HERE: {'received': 1}})
    auditor.stop(signal.SIGKILL)
    to_broker.cut()
    audited.auditor(action=action)
    audited.await_counts(again or {HERE: {'received': 1}, ('', 'mikkoo'): {'unknown': 1}})
    audited.await_acknowledged()
    assert audited.outstanding() == set()


def test_killed_before_the_commit_it_settles_later(audited: Audited) -> None:
    """A record that somebody has locked keeps the statement waiting."""
    auditor = audited.auditor()
    message_id = audited.make_record()
    with audited.database.connect() as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute('select from mikkoo.audit for update')
            audited.publish(message_id)
            waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            until(lambda: audited.sql(waits) == [(1,)], PATIENCE, 'it waits for the lock')
            auditor.stop(signal.SIGKILL)
    connection.close()
    assert audited.counts() == {}
    audited.auditor()
    audited.await_counts({HERE: {'received': 1}})


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_killed_again_and_again_it_counts_each_record_once(audited: Audited, action: str) -> None:
    count, kills = 2_000, 5
    audited.relay()
    audited.sql(
        """select count(mikkoo.insert_audited_event(%s, 'mikkoo', 'good', n::text, null))
           from generate_series(1, %s) as n""",
        QUEUE, count,
    )  # fmt: skip
    auditors = [audited.auditor(action=action, prefetch=50)]
    audited.tick()
    for turn in range(1, kills + 1):
        received = count * turn // (kills + 2)

        def enough(least: int = received) -> bool:
            return audited.counts().get(HERE, {}).get('received', 0) >= least

        until(enough, PATIENCE, f'{received} are settled', interval=0.005)
        auditors[-1].stop(signal.SIGKILL)
        auditors.append(audited.auditor(action=action, prefetch=50))
    until(lambda: not audited.outstanding(), PATIENCE, 'all are settled')
    audited.await_acknowledged()
    assert audited.counts()[HERE]['received'] == count
    assert 'differing' not in audited.counts()[HERE]


def test_without_postgresql_messages_wait(audited: Audited, proxy_factory: Callable[..., Proxy]) -> None:
    server = audited.database.server
    proxy = proxy_factory('127.0.0.1', server.port)
    auditor = audited.auditor(postgres_url=behind(proxy, audited))
    proxy.refuse()
    proxy.cut()
    first = [audited.make_record() for _ in range(3)]
    for message_id in first:
        audited.publish(message_id)
    _, reason = auditor.await_state('paused')
    assert 'PostgreSQL' in reason
    assert audited.outstanding() == set(first)
    proxy.accept()
    auditor.await_state('running')
    audited.await_counts({HERE: {'received': 3}})
    audited.await_acknowledged()


def test_without_rabbitmq_it_waits_and_comes_back(audited: Audited, to_broker: Proxy) -> None:
    auditor = audited.auditor(rabbitmq=through(to_broker, audited.vhost))
    to_broker.refuse()
    to_broker.cut()
    assert auditor.await_state('paused')[1]
    message_id = audited.make_record()
    audited.publish(message_id)
    to_broker.accept()
    auditor.await_state('running')
    audited.await_counts({HERE: {'received': 1}})


def test_a_queue_that_is_deleted_is_made_and_bound_again(audited: Audited) -> None:
    audited.auditor()
    audited.channel.queue_delete(AUDIT_QUEUE)
    until(lambda: 'mikkoo' in bound(audited), PATIENCE, 'it is bound again')
    audited.publish(audited.make_record())
    audited.await_counts({HERE: {'received': 1}})


def bound(audited: Audited) -> list[str]:
    """The exchanges that the auditor's queue is bound to, beside the default one."""
    listed = audited.rabbitmq.ctl(
        'list_bindings', '-p', audited.vhost, 'source_name', 'destination_name', '--no-table-headers'
    )
    pairs = [line.split('\t') for line in listed.splitlines()]
    return sorted(pair[0] for pair in pairs if pair[0] and pair[1:] == [AUDIT_QUEUE])


def test_its_queue_is_a_quorum_queue_bound_as_configured(audited: Audited) -> None:
    audited.channel.exchange_declare('kinds', 'headers')
    audited.auditor(
        bindings=(
            BindingSettings('mikkoo', 'good.#'),
            BindingSettings('kinds', '', {'x-match': 'all', 'n': 1}),
        )
    )
    listed = audited.rabbitmq.ctl('list_queues', '-p', audited.vhost, 'name', 'type', 'durable')
    assert f'{AUDIT_QUEUE}\tquorum\ttrue' in listed.splitlines()
    assert bound(audited) == ['kinds', 'mikkoo']
    seen, unseen, other = (audited.make_record(exchange='kinds') for _ in range(3))
    audited.publish(unseen, exchange='kinds', headers={'n': 2})
    audited.publish(other, key='bad')
    audited.publish(seen, exchange='kinds', headers={'n': 1})
    audited.await_counts({(QUEUE, 'kinds'): {'received': 1}})
    assert audited.outstanding() == {unseen, other}


@pytest.mark.parametrize('kind', ['classic', 'there'])
def test_a_classic_queue(audited: Audited, kind: str) -> None:
    """Asked for, or there already: what somebody has made is used as it is."""
    if kind == 'there':
        audited.channel.queue_declare(AUDIT_QUEUE, durable=False)
    audited.auditor(**({'queue_type': 'classic'} if kind == 'classic' else {}))
    listed = audited.rabbitmq.ctl('list_queues', '-p', audited.vhost, 'name', 'type', 'durable')
    assert f'{AUDIT_QUEUE}\tclassic\t{str(kind == "classic").lower()}' in listed.splitlines()
    audited.publish(audited.make_record())
    audited.await_counts({HERE: {'received': 1}})


def test_an_exchange_that_is_not_there_yet(audited: Audited) -> None:
    with Worker(audited.auditor_settings(bindings=(BindingSettings('later'),)), TELEMETRY) as auditor:

        def said() -> bool:
            return "no exchange 'later'" in auditor.await_state('paused')[1]

        until(said, PATIENCE, 'it says why')
        audited.channel.exchange_declare('later', 'fanout')
        auditor.await_state('running')
        audited.publish(audited.make_record(exchange='later'), exchange='later')
        audited.await_counts({(QUEUE, 'later'): {'received': 1}})


def test_a_broker_that_refuses_is_asked_again(audited: Audited) -> None:
    """Rights are granted while it waits."""
    name = f'auditor_{audited.database.name}'
    audited.rabbitmq.ctl('add_user', name, 'secret')
    broker = audited.settings().rabbitmq
    refused = type(broker)(broker.nodes, broker.vhost, name, 'secret')
    try:
        with Worker(audited.auditor_settings(rabbitmq=refused), TELEMETRY) as auditor:
            until(lambda: 'refused' in auditor.await_state('paused')[1].lower(), PATIENCE, 'it says why')
            own = f'^{AUDIT_QUEUE}$'.replace('.', '\\.')
            rights = [own, own, f'{own}|^mikkoo$']
            audited.rabbitmq.ctl('set_permissions', '-p', audited.vhost, name, *rights)
            auditor.await_state('running')
            audited.publish(audited.make_record())
            audited.await_counts({HERE: {'received': 1}})
    finally:
        audited.rabbitmq.ctl('delete_user', name)


def test_a_second_process_of_an_auditor_stands_by(audited: Audited) -> None:
    first = audited.auditor()
    with Worker(audited.auditor_settings(), TELEMETRY) as second:
        second.await_state('standby')
        audited.publish(audited.make_record())
        audited.await_counts({HERE: {'received': 1}})
        first.stop(signal.SIGKILL)
        second.await_state('running')
        audited.publish(audited.make_record())
        audited.await_counts({HERE: {'received': 2}})


def test_a_stop_settles_what_is_in_hand(audited: Audited) -> None:
    """Nothing comes again, and the broker sees a good leave."""
    auditor = audited.auditor()
    publishing = [audited.make_record() for _ in range(300)]
    for message_id in publishing:
        audited.publish(message_id)
    took = auditor.stop()
    assert auditor.process.exitcode == 0
    assert took < 4.5
    left = audited.queued(AUDIT_QUEUE)
    assert len(audited.outstanding()) == left, 'what is settled is acknowledged'


def test_sessions_with_old_sql_wait_for_it(audited: Audited) -> None:
    audited.sql('update mikkoo.schema_version set version = -5 where version = 5')
    with Worker(audited.auditor_settings(), TELEMETRY) as auditor:
        assert 'mikkoo.sql has version 4, audits need 5' in auditor.await_state('paused')[1]
        audited.sql('update mikkoo.schema_version set version = 5 where version = -5')
        auditor.await_state('running')
