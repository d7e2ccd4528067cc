"""The primary is lost, and its streaming standby promoted: the relay goes on there, and nothing is lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2.extensions import connection

from tests.conftest import Database
from tests.integration.faults.traffic import Traffic
from tests.integration.product import Product
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.standby import Standby
from tests.servers.waiting import until

LOST = 3000  # repeats, at most, each time that PostgreSQL is lost
BACK = 3 * 12.0  # seconds: the back-off has doubled a few times while nothing was promoted


@dataclass(frozen=True)
class Pair(Database):
    """A database on a primary and its standby; whoever takes writes is meant."""

    standby: Standby

    @property
    def relay_url(self) -> str:
        return self._both(f'relay_{self.name}')

    def connect(self, user: str = 'postgres') -> connection:
        opened = psycopg2.connect(self._both(user), connect_timeout=10)
        opened.autocommit = True
        return opened

    def _both(self, user: str) -> str:
        hosts = f'127.0.0.1:{self.server.port},127.0.0.1:{self.standby.port}'
        return f'postgresql://{user}@{hosts}/{self.name}?target_session_attrs=read-write'


@pytest.fixture
def database() -> Iterator[Pair]:
    """What the product begins with; nothing that was committed is lost with the primary."""
    with PostgresServer() as primary:
        name = f'test_{uuid.uuid4().hex[:12]}'
        primary.create_database(name)
        primary.execute(f'create role relay_{name} login in role mikkoo_relay')
        with Standby(primary) as standby:
            standby.synchronous()
            yield Pair(primary, name, standby)


@pytest.fixture
def pgqd_factory(database: Pair) -> Iterator[Callable[..., Pgqd]]:
    """For the database on the server that is given; the primary if none is."""
    daemons: list[Pgqd] = []

    def start(url: str, server: PostgresServer = database.server) -> Pgqd:
        daemons.append(Pgqd(server, database.name))
        daemons[-1].start()
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.close()


def fail_over(product: Product, database: Pair, pgqd_factory: Callable[..., Pgqd]) -> float:
    """The primary ends at once, the standby is promoted and ticked; when that was done (time.time())."""
    product.pgqd.stop()
    database.server.stop('immediate')
    until(lambda: product.children()['events']['state'] == 'PAUSED', 60, 'the worker waits')
    database.standby.promote()
    product.pgqd = pgqd_factory(database.url, database.standby)
    return time.time()


def test_failover_to_a_streaming_standby(
    product: Product, traffic: Callable[..., Traffic], database: Pair, pgqd_factory: Callable[..., Pgqd]
) -> None:
    flow = traffic()
    product.run()
    flow.flows()
    over = fail_over(product, database, pgqd_factory)
    flow.flows_again('failover to a standby', over, BACK)
    assert product.children()['events']['restarts'] == 0
    assert database.standby.execute('select 1 from produced', dbname=database.name)
    flow.finish(repeats=LOST)


def test_a_standby_alone_is_waited_for(
    product: Product, traffic: Callable[..., Traffic], database: Pair, pgqd_factory: Callable[..., Pgqd]
) -> None:
    """The worker knows the standby only: it says why it waits, until that is the primary."""
    flow = traffic(postgres_url=database.standby.url(database.name, f'relay_{database.name}'))
    product.save()
    product.started()
    until(lambda: product.children()['events']['state'] == 'PAUSED', 60, 'the worker waits')
    assert 'read only: a standby, in recovery' in product.children()['events']['reason']
    assert flow.tally().delivered == {}
    checked = product('check', '--connect')
    assert checked.returncode == 1 and 'a standby, in recovery' in checked.stdout
    over = fail_over(product, database, pgqd_factory)
    flow.flows_again('standby promoted', over, 3 * 30.0)
    flow.finish(repeats=0)
