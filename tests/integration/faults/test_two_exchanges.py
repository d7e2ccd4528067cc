"""A queue that is full holds up its own exchange, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.integration.faults.broker import number, worker
from tests.integration.faults.traffic import QUEUE, Traffic
from tests.integration.product import ARRIVAL, Product, bodies
from tests.servers.waiting import until

FULL = 30.0  # seconds
LENGTH = 50  # messages that the queue takes
EACH = 20  # events for the full queue between two looks at the others
AT_ONCE = 3 * 10.0  # seconds until an event for the other exchange arrives, however full the queue is

INSERT = """
    select count(pgq.insert_event(%s, 'slow', format('{"n": %%s}', n), 'slow', null, null, null))
    from generate_series(%s, %s) as n
"""


def test_a_full_queue_holds_up_no_other_exchange(product: Product, traffic: Callable[..., Traffic]) -> None:
    """One worker, two exchanges, their events interleaved; afterwards every one arrives."""
    flow = traffic(max_failures=2)
    arguments = {'x-max-length': LENGTH, 'x-overflow': 'reject-publish'}
    product.channel.exchange_declare('slow', 'topic', durable=True)
    product.channel.queue_declare('slow', durable=True, arguments=arguments)
    product.channel.queue_bind('slow', 'slow', '#')
    product.run()
    flow.flows()
    inserted = 0
    end = time.monotonic() + FULL
    while time.monotonic() < end:
        product.sql(INSERT, QUEUE, inserted + 1, inserted + EACH)
        inserted += EACH
        flow.flows(within=AT_ONCE)
    assert product.queued('slow') == LENGTH < inserted, 'it is full'
    attempts = product.sql('select distinct ev_retry from pgq.retry_queue')
    assert attempts in ([], [(None,)]), 'no attempt is counted'
    arrived: set[int] = set()

    def all_arrived() -> bool:
        arrived.update(body['n'] for body in bodies(product.take('slow')))
        return len(arrived) == inserted

    until(all_arrived, ARRIVAL, lambda: f'{inserted} arrive, not {len(arrived)}: {worker(product)}', 0.2)
    assert number(product, 'nacked') > 0
    assert product.sql("select count(*) from mikkoo.dead_letter where routing_key = 'slow'") == [(0,)]
    flow.finish(repeats=0)
