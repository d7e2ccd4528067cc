"""PostgreSQL itself: sessions terminated, crashed and started again, read only. Nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.integration.faults.traffic import Traffic
from tests.integration.product import Product
from tests.servers.postgres import PostgresServer
from tests.servers.waiting import until

LOST = 3000  # repeats, at most, each time that PostgreSQL is lost
ONSLAUGHT = 15  # times that every connection is terminated, a second apart
BACK = 3 * 3.0  # seconds until it flows again: a back-off of half a second, two logins, a tick
BACK_AFTER_OUTAGE = 3 * 12.0  # attempts in vain double the back-off
TERMINATE = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = current_database() and application_name like 'mikkoo %%'
"""


def test_every_connection_is_terminated_each_second(
    product: Product, traffic: Callable[..., Traffic]
) -> None:
    flow = traffic()
    product.run()
    flow.flows()
    terminated = 0
    for _ in range(ONSLAUGHT):
        [(count,)] = product.sql(TERMINATE)
        terminated += count
        begun = time.monotonic()
        until(lambda begun=begun: time.monotonic() >= begun + 1.0, 5, 'a second is over')
    over = time.time()
    assert terminated >= ONSLAUGHT, 'it came back again and again'
    flow.flows_again('connections to PostgreSQL terminated', over, BACK_AFTER_OUTAGE)
    tally = flow.finish(repeats=LOST * ONSLAUGHT)
    assert product.children()['events']['restarts'] == 0, 'the worker lives through it'
    assert tally.repeats < len(tally.inserted), tally


def test_the_server_crashes_and_comes_back(
    product: Product, traffic: Callable[..., Traffic], postgres: PostgresServer
) -> None:
    """It ends at once, without a checkpoint, and recovers when it is started."""
    flow = traffic()
    product.run()
    flow.flows()
    postgres.stop('immediate')
    until(lambda: product.children()['events']['state'] == 'PAUSED', 30, 'the worker waits')
    assert 'PostgreSQL' in product.children()['events']['reason']
    postgres.start()
    product.pgqd.stop()
    product.pgqd.start()
    flow.flows_again('PostgreSQL stopped at once and started', time.time(), BACK_AFTER_OUTAGE)
    flow.finish(repeats=LOST)
    assert product.children()['events']['restarts'] == 0


def test_a_database_that_is_read_only(product: Product, traffic: Callable[..., Traffic]) -> None:
    """As a full disk makes it with some providers, and an operator before a move."""
    flow = traffic()
    product.run()
    flow.flows()
    name = product.database.name
    product.database.server.execute(f'alter database {name} set default_transaction_read_only = on')
    product.sql(TERMINATE)
    until(lambda: product.children()['events']['state'] == 'PAUSED', 30, 'the worker waits')
    until(lambda: 'read only' in product.children()['events']['reason'], 30, lambda: f'{product.children()}')
    product.database.server.execute(f'alter database {name} reset default_transaction_read_only')
    flow.flows_again('database read only', time.time(), BACK_AFTER_OUTAGE)
    flow.finish(repeats=LOST)
    assert product.children()['events']['restarts'] == 0
