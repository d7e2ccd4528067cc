"""Two daemons, in two folders, with one consumer name: one works, one stands by and takes over.

A trigger on every table that settling writes notes who wrote: each daemon has a login of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.faults.traffic import QUEUE, Traffic
from tests.integration.mikkood import alive
from tests.integration.product import Product
from tests.servers.waiting import until

A_KILL = 3_000  # events that one kill, or one lost session, repeats at most
TAKEOVER = 3 * 5.0  # seconds from an owner's end until another relays: three times what is promised
BURST = 20_000  # events of a batch in whose middle the owner is stopped
BEGUN = 60.0  # seconds until the batch is under way; one on an idle machine
SHOWN = 60.0  # seconds until a changed state is seen
ROUND = 60.0  # seconds until the rest of such a batch and what came behind it is relayed

WRITTEN = """
    create table written (at timestamptz default clock_timestamp(), who name default session_user, what text);
    create function note() returns trigger language plpgsql security definer as
    $$ begin insert into public.written (what) values (tg_op || ' ' || tg_table_name); return null; end $$;
"""
NOTE = 'create trigger note after insert or update or delete on {} for each statement execute function note()'
SETTLING = (
    'pgq.subscription',
    'pgq.retry_queue',
    'mikkoo.dead_letter',
    'mikkoo.failing_event',
    'mikkoo.batch_progress',
)
TERMINATE = """
    select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = %s and application_name = %s
"""

Flow = Callable[..., Traffic]


@pytest.fixture
def other(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A second daemon with the same worker, but a login of its own."""
    # Not within tmp_path: the path of a socket has no more than 107 characters.
    made = Product(tmp_path_factory.mktemp('other'), product.database, product.rabbitmq, product.vhost)
    with login(product.database) as url:
        made.worker(QUEUE, postgres_url=url, max_failures=2)
        yield made
        made.close()
    print(made.logged()[-20_000:])


@contextmanager
def login(database: Database) -> Iterator[str]:
    """Another login that may do what mikkoo_relay may; its url."""
    name = f'other_{database.name}'
    database.execute(f'create role {name} login')
    database.execute(f'grant mikkoo_relay to {name}')
    yield database.server.url(database.name, name)
    database.execute(f'drop role {name}')


def start(owner: Product, second: Product) -> None:
    """The first to start owns the queue."""
    for product in (owner, second):
        product.save()
        product.started()
        until_state(product, 'RUNNING' if product is owner else 'STANDBY')


def until_state(product: Product, wanted: str, within: float = SHOWN) -> None:
    until(lambda: state(product) == wanted, within, lambda: f'{product.children()}\n{product.logged()}')


def state(product: Product) -> str:
    return str(product.children()[QUEUE]['state'])


def in_a_large_batch(product: Product, flow: Traffic) -> None:
    """Until the owner has saved a part of a batch; retries and dead letters are among the rest."""
    flow.producer.pause()
    product.until_settled()
    product.sql('begin')
    for _ in range(100):
        flow.burst(BURST // 100)
        product.sql("select pgq.insert_event(%s, 'bad.key', '{}', 'mikkoo', null, null, null)", QUEUE)
    product.sql('commit')
    flow.producer.resume()
    saved = 'select 1 from mikkoo.batch_progress where last_event_id is not null'
    until(lambda: product.sql(saved), BEGUN, lambda: f'a part is saved:\n{product.logged()}')


def test_the_owner_is_killed_and_comes_back_to_stand_by(
    product: Product, other: Product, traffic: Flow
) -> None:
    flow = traffic()
    start(product, other)
    for number, (owner, second) in enumerate([(product, other), (other, product)], 1):
        flow.flows()
        assert (state(owner), state(second)) == ('RUNNING', 'STANDBY')
        killed = owner.processes()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        flow.flows_again(f'owner killed, {number}', time.time(), TAKEOVER)
        assert state(second) == 'RUNNING' and not any(map(alive, killed))
        owner.started()
        until_state(owner, 'STANDBY')
    flow.finish(repeats=2 * A_KILL)


def test_the_owner_is_stopped_in_order_and_nothing_is_repeated(
    product: Product, other: Product, traffic: Flow
) -> None:
    flow = traffic(max_failures=2)
    start(product, other)
    in_a_large_batch(product, flow)
    assert product('stop').returncode == Exit.OK
    over = time.time()
    until_state(other, 'RUNNING', TAKEOVER)
    flow.flows_again('owner stopped in order', over, ROUND)
    flow.finish(repeats=0)


@pytest.mark.parametrize('late', [False, True], ids=['within the batch', 'after the batch'])
def test_a_former_owner_that_wakes_settles_nothing(
    product: Product, other: Product, traffic: Flow, late: bool
) -> None:
    """SIGSTOP in the middle of a batch, its session with the lock ended, another at work: SIGCONT."""
    flow = traffic(max_failures=2)
    start(product, other)
    note_writers(product)
    in_a_large_batch(product, flow)
    former = product.pids()[QUEUE]
    os.kill(former, signal.SIGSTOP)
    login = f'relay_{product.database.name}'
    assert product.sql(TERMINATE, login, f'mikkoo {QUEUE}') == [(True,)]
    [(ended,)] = product.sql('select clock_timestamp()')
    over = time.time()
    until_state(other, 'RUNNING', TAKEOVER)
    if late:
        flow.flows_again('owner stopped by SIGSTOP, its session ended', over, ROUND)
    else:
        assert product.sql('select 1 from mikkoo.batch_progress'), 'the batch is over'
    os.kill(former, signal.SIGCONT)
    until_state(product, 'STANDBY')
    assert product.pids()[QUEUE] == former, 'it was not replaced, it woke'
    assert state(other) == 'RUNNING'
    flow.flows()
    written = 'select what from public.written where (who = %s) = %s and (at > %s) = %s'
    assert product.sql(written, login, True, ended, True) == []
    for by_former in (True, False):  # the trigger sees what each wrote in its time
        whats = {what for (what,) in product.sql(written, login, by_former, ended, not by_former)}
        assert whats >= {'INSERT retry_queue', 'INSERT dead_letter', 'INSERT batch_progress'}, by_former
    flow.finish(repeats=A_KILL)


def note_writers(product: Product) -> None:
    product.sql(WRITTEN)
    for table in SETTLING:
        product.sql(NOTE.format(table))
