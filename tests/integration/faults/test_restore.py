"""A database restored into a younger cluster: named, waited out, and cured as the documentation says."""

from __future__ import annotations

import json
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.faults.traffic import Traffic
from tests.integration.product import Product
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import SCHEMA_FILE, PostgresServer
from tests.servers.waiting import until

AGE = 60_000  # transactions that the old cluster is ahead of the new one
ROLES = ('mikkoo_relay', 'mikkoo_producer', 'mikkoo_auditor')
AGED = 'do $$ begin while txid_current() < {} loop commit; end loop; end $$'
BACK = 3 * 30.0  # seconds: the back-off's longest
DOCUMENT = Path(__file__).parents[3] / 'docs' / 'operations.md'


@pytest.fixture
def old(postgres: PostgresServer) -> Iterator[Database]:
    """A database in a cluster of its own, which has seen more transactions than the session's."""
    with PostgresServer() as server:
        made = Database(server, f'test_{uuid.uuid4().hex[:12]}')
        server.create_database(made.name)
        for role in ROLES:
            login = role.replace('mikkoo_', '') + f'_{made.name}'
            server.execute(f'create role {login} login in role {role}')
        [(young,)] = postgres.execute('select txid_current()')
        server.execute(AGED.format(young + AGE))
        yield made


@pytest.fixture
def database(old: Database) -> Database:
    """What the product begins with."""
    return old


@pytest.fixture
def pgqd_factory(old: Database) -> Iterator[Callable[..., Pgqd]]:
    daemons: list[Pgqd] = []

    def start(database: Database | str) -> Pgqd:
        where = old if isinstance(database, str) else database
        daemons.append(Pgqd(where.server, where.name))
        daemons[-1].start()
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def new(old: Database, postgres: PostgresServer) -> Iterator[Database]:
    """An empty database of that name in the younger cluster, and the same roles."""
    made = Database(postgres, old.name)
    postgres.create_database(
        f'template_{old.name}'
    )  # makes mikkoo.sql's roles, which no dump of a database has
    postgres.drop_database(f'template_{old.name}')
    postgres.create_database(made.name, pgq=False, mikkoo=False)
    for role in ROLES:
        postgres.execute(f'create role {role.replace("mikkoo_", "")}_{made.name} login in role {role}')
    yield made
    postgres.drop_database(made.name)
    for role in ROLES:
        postgres.execute(f'drop role {role.replace("mikkoo_", "")}_{made.name}')


def restore(old: Database, new: Database, file: Path) -> None:
    """As an administrator does."""
    for command in (
        ['pg_dump', '-Fc', '-f', str(file), '-d', old.url],
        ['pg_restore', '-d', new.url, str(file)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ''), done


def remedy() -> str:
    """The statement that docs/operations.md gives."""
    [found] = re.findall(
        r'^ *(DO \$restored\$.*?\$restored\$;)', DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(found)


def test_a_restore_into_a_younger_cluster(
    product: Product,
    traffic: Callable[..., Traffic],
    old: Database,
    new: Database,
    pgqd_factory: Callable[..., Pgqd],
    tmp_path: Path,
) -> None:
    """With a retry that waits, events that no tick has seen, and events inserted before the remedy."""
    flow = traffic(retry_delay=5)
    product.run()
    flow.flows()
    product.sql("select pgq.insert_event('events', 'late.', 'again', 'mikkoo', null, null, null)")
    until(lambda: product.sql('select 1 from pgq.retry_queue'), 60, 'a retry waits: nothing is bound for it')
    product.pgqd.stop()
    [(ticked,)] = product.sql('select max(tick_time) from pgq.tick')
    unticked = "select 1 from produced where at > %s + interval '1 second'"
    until(lambda: product.sql(unticked, ticked), 30, 'there are events that no tick has seen')
    flow.producer.pause()
    assert product('stop').returncode == Exit.OK
    assert product.sql('select 1 from pgq.retry_queue')

    restore(old, new, tmp_path / 'dump')
    old.server.stop()
    product.database = new
    product.workers['events']['postgres_url'] = new.relay_url
    product.pgqd = pgqd_factory(new)
    product.save()
    flow.producer.resume()
    product.started()
    until(lambda: product.children()['events']['state'] == 'PAUSED', 60, 'the worker waits')
    reason = product.children()['events']['reason']
    assert 'Invalid PgQ state' in reason and 'After a restore' in reason
    product.until_logged('PostgreSQL refuses: ')
    checked = product('check', '--connect', '--json')
    assert checked.returncode == Exit.FAILURE
    assert any('Invalid PgQ state' in probe['text'] for probe in json.loads(checked.stdout)['probes'])
    until(lambda: 'Invalid PgQ state' in product.pgqd.log(), 60, 'nothing ticks')
    until(lambda: not product.sql('select 1 from pgq.retry_queue'), 60, 'pgqd moves the retry all the same')

    product.pgqd.stop()
    (tmp_path / 'remedy.sql').write_text(remedy())
    new.server.run_file(tmp_path / 'remedy.sql', new.name)
    new.server.run_file(SCHEMA_FILE, new.name)
    over = time.time()
    product.pgqd.start()
    flow.flows_again('restored into a younger cluster, and cured', over, BACK)
    assert product.children()['events']['restarts'] == 0
    product.arrivals('late', 'mikkoo', 'late.#')
    flow.finish(repeats=0)
    assert [body for _, _, body in product.take('late')] == [b'again'], 'a retry of the old cluster comes'
