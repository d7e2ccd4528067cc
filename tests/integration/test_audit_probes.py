"""`mikkood check --connect` for auditors, on real servers: what they lack, and routes that nobody sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.settings import AuditorSettings, BindingSettings, BrokerSettings, Settings
from mikkoo.supervisor import probes
from mikkoo.supervisor.probe import Probe, verdict
from tests.servers.process import free_port

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

    from tests.conftest import Database
    from tests.servers.rabbitmq import RabbitServer

RIGHT = ('configure', 'write', 'read')
QUEUE = 'mikkoo.audit.shop'


@pytest.fixture
def channel(rabbitmq: RabbitServer, vhost: str) -> Iterator[BlockingChannel]:
    connection = rabbitmq.connect(vhost)
    opened = connection.channel()
    for kind in ('direct', 'fanout', 'topic', 'headers'):
        opened.exchange_declare(f'a-{kind}', kind, durable=kind != 'topic')
    yield opened
    connection.close()


@pytest.fixture
def auditor(database: Database, rabbitmq: RabbitServer, vhost: str, channel: object) -> AuditorSettings:
    """One for which everything is right."""
    database.execute("select pgq.create_queue('invoices')")
    return AuditorSettings(
        name='shop',
        queue=QUEUE,
        postgres_url=database.auditor_url,
        bindings=(BindingSettings('a-topic', 'a.#'),),
        rabbitmq=BrokerSettings(nodes=((rabbitmq.host, rabbitmq.port),), vhost=vhost),
    )


@pytest.fixture
def restricted(rabbitmq: RabbitServer, vhost: str, auditor: AuditorSettings) -> Iterator[AuditorSettings]:
    """Its login may do what it has to in RabbitMQ, and no more."""
    rabbitmq.ctl('add_user', vhost, 'secret')
    permit(rabbitmq, auditor, vhost, f'^{QUEUE}$')
    yield replace(auditor, rabbitmq=replace(auditor.rabbitmq, username=vhost, password='secret'))
    rabbitmq.ctl('delete_user', vhost)


def permit(rabbitmq: RabbitServer, auditor: AuditorSettings, user: str, configure: str) -> None:
    rabbitmq.ctl('set_permissions', '-p', auditor.rabbitmq.vhost, user, configure, f'^{QUEUE}$', '.*')


def bound(auditor: AuditorSettings, *bindings: tuple[str, str]) -> AuditorSettings:
    return replace(auditor, bindings=tuple(BindingSettings(*binding) for binding in bindings))


def record(
    database: Database, exchange: str | None, *keys: str, age: str = '1 s', received: bool = False
) -> None:
    for key in keys:
        database.execute("select mikkoo.insert_audited_event('invoices', %s, %s, 'x', null)", (exchange, key))
    database.execute(
        'update mikkoo.audit set published_at = now() - %s::interval,'
        ' received_at = case when %s then now() - %s::interval end'
        ' where routing_key = any(%s) and exchange is not distinct from %s',
        (age, received, age, list(keys), exchange),
    )


def probed(*auditors: AuditorSettings) -> list[Probe]:
    return list(probes.run(Settings(auditors=auditors)))


def named(found: list[Probe], name: str) -> list[Probe]:
    return [probe for probe in found if probe.name == name]


def failed(found: list[Probe]) -> list[Probe]:
    return [probe for probe in found if probe.outcome == 'failed']


def unseen(found: list[Probe]) -> str:
    """What the routes' probes say, each of them a warning."""
    routes = named(found, 'routes')
    assert all(probe.outcome == 'warn' and probe.remedy for probe in routes)
    assert verdict(found) == Exit.OK
    return '\n'.join(probe.text for probe in routes)


def test_all_is_right(auditor: AuditorSettings, database: Database) -> None:
    record(database, 'a-topic', 'a.b')
    found = probed(auditor)
    assert [(probe.subject, probe.name, probe.outcome) for probe in found] == [
        ('broker of shop', 'login', 'ok'), ('broker of shop', 'vhost', 'ok'),
        ('auditor shop', 'exchange', 'ok'), ('auditor shop', 'queue', 'ok'), ('auditor shop', 'rights', 'ok'),
        ('audit of shop', 'login', 'ok'), ('audit of shop', 'mikkoo.sql', 'ok'),
        ('audit of shop', 'privileges', 'ok'), ('audit of shop', 'routes', 'ok'),
    ]  # fmt: skip
    assert not any(probe.remedy for probe in found)
    [routes] = named(found, 'routes')
    assert routes.text == '1 in recent records, all seen'


def test_a_check_leaves_nothing_behind(
    auditor: AuditorSettings, rabbitmq: RabbitServer, channel: BlockingChannel
) -> None:
    def there() -> list[str]:
        listed = ('list_exchanges', 'list_queues', 'list_bindings')
        return [rabbitmq.ctl(name, '-p', auditor.rabbitmq.vhost) for name in listed]

    before = there()
    exchanges = [('a-direct', ''), ('a-fanout', ''), ('a-topic', ''), ('a-headers', ''), ('absent', '')]
    [queue] = named(probed(bound(auditor, *exchanges)), 'queue')
    assert queue.text == f'{QUEUE} is not there; the auditor declares it'
    assert there() == before
    channel.queue_declare(QUEUE, durable=True, arguments={'x-queue-type': 'quorum'})
    channel.confirm_delivery()
    channel.basic_publish('', QUEUE, b'kept')
    channel.queue_bind(QUEUE, 'a-topic', 'a.#')
    bindings = rabbitmq.ctl('list_bindings', '-p', auditor.rabbitmq.vhost)
    [queue] = named(probed(auditor), 'queue')
    assert (queue.outcome, queue.text) == ('ok', QUEUE)
    assert rabbitmq.ctl('list_bindings', '-p', auditor.rabbitmq.vhost) == bindings
    assert channel.basic_get(QUEUE, auto_ack=True)[0].redelivered is False


def test_an_exchange_that_is_not_there(auditor: AuditorSettings) -> None:
    [probe] = failed(probed(bound(auditor, ('a-topic', '#'), ('absent', '#'))))
    assert (probe.name, probe.subject) == ('exchange', 'auditor shop')
    assert "'absent': 404" in probe.text and 'declare it' in probe.remedy


def test_a_broker_s_login_with_just_what_it_needs(restricted: AuditorSettings) -> None:
    assert failed(probed(restricted)) == []


def test_a_queue_that_may_not_be_declared(
    restricted: AuditorSettings, rabbitmq: RabbitServer, channel: BlockingChannel
) -> None:
    permit(rabbitmq, restricted, restricted.rabbitmq.username, '^$')
    [probe] = failed(probed(restricted))
    assert probe.name == 'queue' and '403' in probe.text and 'set_permissions' in probe.remedy
    channel.queue_declare(QUEUE, durable=True)
    assert failed(probed(restricted)) == []


def test_servers_that_are_down(auditor: AuditorSettings) -> None:
    port = free_port()
    gone = replace(auditor, postgres_url=f'postgresql://x:hidden@127.0.0.1:{port}/x')
    [probe] = failed(probed(gone))
    assert (probe.subject, probe.name) == ('audit of shop', 'login')
    assert 'postgres_url' in probe.remedy and 'hidden' not in str(probe)
    gone = replace(auditor, rabbitmq=replace(auditor.rabbitmq, nodes=(('127.0.0.1', port),)))
    [probe] = failed(probed(gone))
    assert (probe.subject, probe.name) == ('broker of shop', 'login')


def test_an_older_mikkoo_sql(auditor: AuditorSettings, database: Database) -> None:
    database.execute('delete from mikkoo.schema_version where version > 4')
    [probe] = failed(probed(auditor))
    assert probe.name == 'mikkoo.sql' and probe.text == 'version 4: an auditor needs version 5'
    assert probe.remedy == 'mikkood sql | psql DATABASE'


def test_a_database_that_is_read_only(auditor: AuditorSettings, database: Database) -> None:
    database.server.execute(f'alter database {database.name} set default_transaction_read_only = on')
    [probe] = failed(probed(auditor))
    assert 'default_transaction_read_only' in probe.text


def test_rights_that_are_missing_and_their_cure(auditor: AuditorSettings, database: Database) -> None:
    login = f'auditor_{database.name}'
    database.execute(f'revoke mikkoo_auditor from {login}')
    [probe] = failed(probed(auditor))
    assert probe.name == 'privileges' and probe.remedy == f'GRANT mikkoo_auditor TO {login};'
    database.execute(f'grant usage on schema mikkoo to {login}')
    database.execute(f'grant select on mikkoo.schema_version, mikkoo.audit to {login}')
    [probe] = failed(probed(auditor))
    for need in (
        'DELETE', 'UPDATE (received_at)', 'INSERT of audit_tally', 'DELETE of audit_difference',
        'mikkoo.resend_audited(uuid)', 'mikkoo.locate_event(text,bigint)',
    ):  # fmt: skip
        assert need in probe.text
    assert 'SELECT,' not in probe.text
    database.execute(probe.remedy)
    assert failed(probed(auditor)) == []


@pytest.mark.parametrize('there', [True, False])
@pytest.mark.parametrize(
    ('write', 'read', 'said'),
    [
        ('^$', '.*', "may not bind to 'a-topic': "),
        (f'^{QUEUE}$', f'^{QUEUE}$', "may not bind to 'a-topic': "),
        (f'^{QUEUE}$', '^a-topic$', 'may not consume: '),
    ],
)
def test_what_it_may_not_do_in_rabbitmq(
    restricted: AuditorSettings, rabbitmq: RabbitServer, channel: BlockingChannel,
    there: bool, write: str, read: str, said: str,
) -> None:  # fmt: skip
    """As its start would find out, whether the queue is there already or not."""
    if there:
        channel.queue_declare(QUEUE, durable=True)
    broker = restricted.rabbitmq
    rabbitmq.ctl('set_permissions', '-p', broker.vhost, broker.username, f'^{QUEUE}$', write, read)
    [probe] = [probe for probe in failed(probed(restricted)) if probe.name == 'rights']
    assert probe.text.startswith(said) and 'set_permissions' in probe.remedy
    assert probe.text.count('may not') == 1 and ';' not in probe.text


# Routes


@pytest.mark.parametrize(
    ('exchange', 'binding', 'seen', 'missed'),
    [
        ('a-direct', 'a.b', 'a.b', 'a.c'),
        ('a-direct', 'a.#', 'a.#', 'a.b'),
        ('a-topic', 'a.*', 'a.b', 'a.b.c'),
        ('a-topic', '#.c', 'a.b.c', 'a.b'),
    ],
)
def test_routes_are_seen_as_the_type_of_the_exchange_has_it(
    auditor: AuditorSettings,
    database: Database,
    channel: BlockingChannel,
    exchange: str,
    binding: str,
    seen: str,
    missed: str,
) -> None:
    """What is said here is what RabbitMQ does."""
    record(database, exchange, seen, missed)
    said = unseen(probed(bound(auditor, (exchange, binding))))
    assert said == f"no auditor sees, of exchange '{exchange}', '{missed}' (queue invoices, 1)"
    channel.queue_declare('witness', exclusive=True)
    channel.queue_bind('witness', exchange, binding)
    for key in (seen, missed):
        channel.basic_publish(exchange, key, key.encode())
    body = channel.basic_get('witness', auto_ack=True)[2]
    assert (body.decode(), channel.basic_get('witness', auto_ack=True)[2]) == (seen, None)


def test_a_fanout_exchange_is_seen_whole(auditor: AuditorSettings, database: Database) -> None:
    record(database, 'a-fanout', 'any', '')
    [probe] = named(probed(bound(auditor, ('a-fanout', 'x'))), 'routes')
    assert (probe.outcome, probe.text) == ('ok', '2 in recent records, all seen')


def test_what_cannot_be_told(auditor: AuditorSettings, database: Database) -> None:
    record(database, 'a-headers', 'key')
    said = unseen(probed(bound(auditor, ('a-headers', ''))))
    assert said == "cannot tell of exchange 'a-headers' whether an auditor sees 'key' (queue invoices, 1)"


def test_a_type_that_may_not_be_asked_for(restricted: AuditorSettings, database: Database) -> None:
    """To name it takes the right to configure the exchange, which an auditor need not have."""
    record(database, 'a-topic', 'a.b')
    assert "cannot tell of exchange 'a-topic'" in unseen(probed(restricted))


def test_the_default_exchange_cannot_be_tapped(auditor: AuditorSettings, database: Database) -> None:
    record(database, None, 'some-queue')
    said = unseen(probed(auditor))
    assert said == "the default exchange cannot be tapped: no auditor sees 'some-queue' (queue invoices, 1)"


def test_auditors_of_one_database_see_together(auditor: AuditorSettings, database: Database) -> None:
    second = replace(bound(auditor, ('a-direct', 'key')), name='second')
    record(database, 'a-topic', 'a.b')
    record(database, 'a-direct', 'key')
    record(database, 'a-fanout', 'any')
    found = probed(auditor, second)
    assert unseen(found) == "no auditor sees, of exchange 'a-fanout', 'any' (queue invoices, 1)"
    assert [probe.subject for probe in named(found, 'routes')] == ['audit of shop, second']


def test_many_routes_are_not_all_named(auditor: AuditorSettings, database: Database) -> None:
    record(database, 'absent', *(f'key-{number:02}' for number in range(13)))
    said = unseen(probed(auditor))
    assert "'key-09' (queue invoices, 1) and 3 more" in said and 'key-10' not in said


def test_old_records_do_not_count(auditor: AuditorSettings, database: Database) -> None:
    record(database, 'absent', 'old', age='8 days')
    record(database, 'absent', 'older', age='8 days', received=True)
    assert named(probed(auditor), 'routes')[0].text == '0 in recent records, all seen'
    record(database, 'absent', 'marked', age='6 days', received=True)
    assert "'marked'" in unseen(probed(auditor))
