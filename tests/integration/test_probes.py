"""`mikkood check --connect` against real servers: every fault named, with what cures it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg2
import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.settings import BrokerSettings, Settings, SslOptions, WorkerSettings
from mikkoo.supervisor import probes
from mikkoo.supervisor.probe import Probe, verdict
from tests.integration.readable import SCRIPT
from tests.servers.process import free_port

if TYPE_CHECKING:
    from tests.conftest import Database
    from tests.servers.rabbitmq import RabbitServer


@pytest.fixture
def worker(database: Database, rabbitmq: RabbitServer, vhost: str) -> WorkerSettings:
    """One for which everything is right."""
    database.execute("select pgq.create_queue('invoices')")
    tick(database)
    return WorkerSettings(
        name='invoices',
        queue='invoices',
        postgres_url=database.relay_url,
        rabbitmq=BrokerSettings(nodes=((rabbitmq.host, rabbitmq.port),), vhost=vhost),
    )


def tick(database: Database) -> None:
    """As pgqd does."""
    database.execute("select pgq.force_tick('invoices')")
    database.execute("select pgq.ticker('invoices')")


def probed(*workers: WorkerSettings) -> list[Probe]:
    return list(probes.run(Settings(workers=workers)))


def only(found: list[Probe], name: str) -> Probe:
    [probe] = [probe for probe in found if probe.name == name]
    return probe


def outcomes(found: list[Probe]) -> list[tuple[str, str]]:
    return [(probe.name, probe.outcome) for probe in found]


def test_all_is_right(worker: WorkerSettings) -> None:
    found = probed(worker)
    assert outcomes(found) == [
        ('login', 'ok'), ('PgQ', 'ok'), ('mikkoo.sql', 'ok'),
        ('queue', 'ok'), ('privileges', 'ok'), ('ticking', 'ok'),
        ('login', 'ok'), ('vhost', 'ok'),
    ]  # fmt: skip
    assert not any(probe.remedy for probe in found)
    assert verdict(found) == Exit.OK


def test_servers_are_asked_once(worker: WorkerSettings) -> None:
    found = probed(worker, replace(worker, name='second'))
    assert [probe.subject for probe in found if probe.name == 'login'] == [
        'database of invoices, second', 'broker of invoices, second'
    ]  # fmt: skip
    assert [probe.subject for probe in found if probe.name == 'queue'] == ['worker invoices', 'worker second']


def test_a_database_that_is_down(worker: WorkerSettings) -> None:
    port = free_port()
    found = probed(replace(worker, postgres_url=f'postgresql://relay:hidden@127.0.0.1:{port}/x'))
    assert outcomes(found) == [('login', 'failed'), ('login', 'ok'), ('vhost', 'ok')]
    assert f'127.0.0.1:{port}' in found[0].text and 'postgres_url' in found[0].remedy
    assert 'hidden' not in str(found)


def test_a_user_that_is_unknown(worker: WorkerSettings, database: Database) -> None:
    found = probed(replace(worker, postgres_url=database.server.url(database.name, 'nobody_of_this_name')))
    assert found[0].outcome == 'failed'
    assert 'nobody_of_this_name' in found[0].text and 'user, password' in found[0].remedy


def test_a_database_without_pgq(worker: WorkerSettings, database: Database) -> None:
    found = probed(replace(worker, postgres_url=database.server.url('postgres')))
    assert outcomes(found)[:2] == [('login', 'ok'), ('PgQ', 'failed')]
    assert only(found, 'PgQ').remedy == 'CREATE EXTENSION pgq;'


def test_pgq_whose_version_is_null(worker: WorkerSettings, database: Database) -> None:
    """As pgq_pl_only has it; the remedy is run and cures it."""
    database.execute(
        "create or replace function pgq.version() returns text language sql as 'select null::text'"
    )
    probe = only(probed(worker), 'PgQ')
    assert probe.outcome == 'warn' and 'pgqd' in probe.text
    database.execute(probe.remedy)
    assert only(probed(worker), 'PgQ').outcome == 'ok'


def test_no_mikkoo_sql(worker: WorkerSettings, database: Database) -> None:
    database.execute('drop schema mikkoo cascade')
    probe = only(probed(worker), 'mikkoo.sql')
    assert probe.outcome == 'warn' and 'mikkood sql' in probe.remedy
    assert 'dead letters cannot be kept' in probe.text


def test_a_mikkoo_sql_without_dead_letters(worker: WorkerSettings, database: Database) -> None:
    database.execute('delete from mikkoo.schema_version where version > 1')
    probe = only(probed(worker), 'mikkoo.sql')
    assert (probe.outcome, probe.remedy) == ('warn', 'mikkood sql | psql DATABASE')
    assert probe.text.startswith('version 1,') and 'dead letters cannot be kept' in probe.text


def test_a_mikkoo_sql_that_does_not_isolate(worker: WorkerSettings, database: Database) -> None:
    database.execute('delete from mikkoo.schema_version where version > 2')
    probe = only(probed(worker), 'mikkoo.sql')
    assert probe.outcome == 'warn' and probe.text.startswith('version 2,')
    assert probe.text.endswith('events that end their worker are not set apart')


def test_a_queue_that_is_not_there(worker: WorkerSettings, database: Database) -> None:
    probe = only(probed(replace(worker, queue="invoice's")), 'queue')
    assert probe.outcome == 'failed' and "'invoices'" in probe.remedy
    database.execute(probe.remedy.partition('Else: ')[2])
    assert only(probed(replace(worker, queue="invoice's")), 'queue').outcome == 'ok'


def test_a_queue_that_the_worker_creates(worker: WorkerSettings) -> None:
    probe = only(probed(replace(worker, queue='new', create_queue=True)), 'queue')
    assert probe.outcome == 'ok' and 'creates' in probe.text


def test_privileges_that_are_missing_and_their_cure(worker: WorkerSettings, database: Database) -> None:
    database.execute(f'revoke mikkoo_relay from relay_{database.name}')
    found = probed(worker)
    assert only(found, 'mikkoo.sql').outcome == 'failed'
    probe = only(found, 'privileges')
    assert probe.outcome == 'failed'
    for grant in probe.remedy.split(';'):
        if grant.strip():
            database.execute(grant)
    assert only(probed(worker), 'privileges').outcome == 'ok'


def test_a_queue_that_does_not_tick(worker: WorkerSettings, database: Database) -> None:
    database.execute("update pgq.tick set tick_time = now() - interval '1 hour'")
    probe = only(probed(worker), 'ticking')
    assert probe.outcome == 'failed' and 'pgqd' in probe.remedy


def test_a_queue_with_only_the_tick_of_its_creation(worker: WorkerSettings, database: Database) -> None:
    """It is no sign of a ticker. One that PgQ has left of many is."""
    database.execute("select pgq.drop_queue('invoices')")
    database.execute("select pgq.create_queue('invoices')")
    probe = only(probed(worker), 'ticking')
    assert probe.outcome == 'warn' and 'is pgqd running?' in probe.text
    assert 'base_connstr' in probe.remedy and 'database_list' in probe.remedy
    tick(database)
    database.execute('delete from pgq.tick where tick_id = 1')
    assert only(probed(worker), 'ticking').outcome == 'ok'


def test_a_database_that_was_restored_into_a_younger_cluster(
    worker: WorkerSettings, database: Database
) -> None:
    """Its last tick is of a transaction that is yet to come here."""
    database.execute("update pgq.tick set tick_snapshot = '4000000000:4000000000:'")
    probe = only(probed(worker), 'ticking')
    assert probe.outcome == 'failed' and probe.text.startswith('Invalid PgQ state')
    assert 'transaction 4000000000' in probe.text and 'After a restore' in probe.remedy
    with pytest.raises(psycopg2.errors.RaiseException, match='Invalid PgQ state'):
        database.execute("select pgq.ticker('invoices')")


def test_a_clock_that_was_set_back(worker: WorkerSettings, database: Database) -> None:
    database.execute("update pgq.tick set tick_time = tick_time + interval '1 hour'")
    probe = only(probed(worker), 'ticking')
    assert probe.outcome == 'failed' and 'the clock was set back' in probe.text
    database.execute(probe.remedy.partition(';')[0])
    database.execute("select pgq.ticker('invoices')")
    assert only(probed(worker), 'ticking').outcome == 'ok'


def test_a_database_that_is_read_only(worker: WorkerSettings, database: Database) -> None:
    database.server.execute(f'alter database {database.name} set default_transaction_read_only = on')
    probe = only(probed(worker), 'read only')
    assert probe.outcome == 'failed' and 'default_transaction_read_only' in probe.text
    assert 'target_session_attrs' in probe.remedy


def broken(worker: WorkerSettings, **changes: object) -> Probe:
    """The one broker probe that fails."""
    found = probed(replace(worker, rabbitmq=replace(worker.rabbitmq, **changes)))
    [failed] = [probe for probe in found if probe.outcome == 'failed']
    return failed


def test_a_broker_that_is_down(worker: WorkerSettings) -> None:
    port = free_port()
    failed = broken(worker, nodes=(('127.0.0.1', port),))
    assert failed.name == 'login' and str(port) in failed.text and 'RabbitMQ runs' in failed.remedy


def test_a_wrong_password_is_told_and_not_shown(worker: WorkerSettings) -> None:
    failed = broken(worker, password='very-wrong')
    assert failed.name == 'login' and 'password' in failed.remedy
    assert 'very-wrong' not in str(failed)


def test_a_vhost_that_is_not_there(worker: WorkerSettings) -> None:
    failed = broken(worker, vhost='no-such-vhost')
    assert failed.name == 'vhost' and "add_vhost 'no-such-vhost'" in failed.remedy


def test_tls(worker: WorkerSettings, rabbitmq: RabbitServer) -> None:
    good = replace(
        worker.rabbitmq,
        nodes=(('localhost', rabbitmq.tls_port),),
        ssl_options=SslOptions(ca_certs=rabbitmq.ca_file),
    )
    found = probed(replace(worker, rabbitmq=good))
    assert [probe.outcome for probe in found if probe.subject.startswith('broker')] == ['ok', 'ok']
    assert any('TLS' in probe.text for probe in found)
    failed = broken(worker, nodes=good.nodes, ssl_options=SslOptions())
    assert failed.name == 'login' and 'certificate' in failed.text and 'ca_certs' in failed.remedy
    failed = broken(worker, ssl_options=SslOptions(ca_certs=rabbitmq.ca_file))
    assert 'TLS' in failed.text and 'ssl_options' in failed.remedy


def configuration(folder: Path, worker: WorkerSettings, url: str) -> Path:
    [(host, port)] = worker.rabbitmq.nodes
    path = folder / 'mikkoo.yml'
    path.write_text(f"""\
Application:
  workers:
    invoices:
      postgres_url: '{url}'
      rabbitmq: {{host: {host}, port: {port}, vhost: {worker.rabbitmq.vhost}, password: guest}}
""")
    return path


def check(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, '-c', path, 'check', '--connect', *options], capture_output=True, text=True, timeout=60
    )


def test_the_command(worker: WorkerSettings, tmp_path: Path) -> None:
    done = check(configuration(tmp_path, worker, worker.postgres_url))
    assert (done.returncode, done.stderr) == (Exit.OK, '')
    assert '✓ login' in done.stdout and '✗' not in done.stdout


def test_the_command_with_an_invalid_state_of_pgq(
    worker: WorkerSettings, database: Database, tmp_path: Path
) -> None:
    database.execute("update pgq.tick set tick_snapshot = '4000000000:4000000000:'")
    done = check(configuration(tmp_path, worker, worker.postgres_url), '--json')
    assert done.returncode == Exit.FAILURE
    [failed] = [probe for probe in json.loads(done.stdout)['probes'] if probe['outcome'] == 'failed']
    assert (failed['subject'], failed['name']) == ('worker invoices', 'ticking')
    assert failed['text'].startswith('Invalid PgQ state') and 'After a restore' in failed['remedy']


def test_the_command_with_a_failure_as_json(worker: WorkerSettings, tmp_path: Path) -> None:
    password = 'p@ss:word/geheim'
    url = f'postgresql://relay:{quote(password, safe="")}@127.0.0.1:{free_port()}/x'
    done = check(configuration(tmp_path, worker, url), '--json')
    assert done.returncode == Exit.FAILURE
    answer = json.loads(done.stdout)
    assert (answer['valid'], answer['mistakes']) == (True, [])
    assert answer['probes'][0]['outcome'] == 'failed'
    assert set(answer['probes'][0]) == {'subject', 'name', 'outcome', 'text', 'remedy'}
    assert 'geheim' not in done.stdout + done.stderr
