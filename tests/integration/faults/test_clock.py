"""Clocks set back an hour: mikkood's, and PostgreSQL's. Nothing is lost, and nothing waits for the hour."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mikkoo.worker.identity import COUNTER_BITS, NODE_BITS
from tests.integration.faults.traffic import QUEUE, Traffic
from tests.integration.product import Product
from tests.servers.waiting import until

HOUR = 3600
BACK = 3 * 3.0  # seconds until it flows again, as after any loss
BACK_TICKING = 3 * 11.0  # seconds: the worker looks at the last tick every 5 s, or when wait_duration is over
# Read at each call, so that the clock of running processes can be set. No other clock of Python's goes back.
SHIFTED = """
import time
from pathlib import Path

def shifted(clock, unit):
    return lambda: clock() + int(Path({path!r}).read_text()) * unit

time.time = shifted(time.time, 1)
time.time_ns = shifted(time.time_ns, 1_000_000_000)
"""


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    """`clock(seconds)` sets the clock of mikkood and its children, by so much from the true time."""
    path = tmp_path / 'clock' / 'shift'
    path.parent.mkdir()
    path.write_text('0')
    (path.parent / 'sitecustomize.py').write_text(SHIFTED.format(path=str(path)))
    monkeypatch.setenv('PYTHONPATH', str(path.parent), prepend=os.pathsep)

    def shift(seconds: int) -> None:
        new = path.with_suffix('.new')
        new.write_text(str(seconds))
        new.replace(path)

    return shift


def insert(product: Product, key: str) -> None:
    product.sql('select pgq.insert_event(%s, %s, %s, %s, null, null, null)', QUEUE, key, '"?"', 'mikkoo')


def sequences(product: Product, queue: str) -> list[int]:
    """The sequence headers of what a queue holds, taken."""
    taken: list[Any] = product.take(queue)
    return [properties.headers['sequence'] for _, properties, _ in taken]


def seconds(sequence: int) -> float:
    """The time within a sequence number."""
    return (sequence >> NODE_BITS + COUNTER_BITS) / 1000


def test_the_clock_of_mikkood_is_set_back(
    product: Product, traffic: Callable[..., Traffic], clock: Callable[[int], object]
) -> None:
    """A retry, a back-off, a killed worker and the sequence, all across the change."""
    flow = traffic(retry_delay=2)
    product.arrivals('seen', 'mikkoo', 'good.#')
    product.run()
    flow.flows()
    product.arrivals('late', 'mikkoo', 'bound.#')
    insert(product, 'late.1')
    until(lambda: product.sql('select 1 from pgq.retry_queue'), 60, 'a retry waits: nothing is bound for it')
    clock(-HOUR)
    over = time.time()
    product.channel.queue_bind('late', 'mikkoo', 'late.#')
    flow.flows_again('clock of mikkood set back an hour', over, BACK)
    until(lambda: product.queued('late') == 1, 60, 'the retry comes in its time')
    got = sequences(product, 'seen')
    assert got == sorted(got), 'a sequence only grows in one process'
    product.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'mikkoo %%'"
    )
    flow.flows_again('PostgreSQL lost after that', time.time(), BACK)
    os.kill(product.pids()['events'], signal.SIGKILL)
    flow.flows_again('worker killed after that', time.time(), BACK)
    flow.finish(repeats=2 * 3000)
    assert seconds(sequences(product, 'seen')[-1]) < over - HOUR / 2, 'its clock was set back indeed'


def test_the_clock_of_postgresql_is_set_back(product: Product, traffic: Callable[..., Traffic]) -> None:
    """What that leaves behind: PgQ's ticks, all of them, are an hour ahead.

    The ticker would wait an hour, or for ticker_max_count events.
    """
    flow = traffic(rate=20, wait_duration=10)
    product.run()
    flow.flows()
    product.sql("select pgq.set_queue_config(%s, 'ticker_max_count', '1000000')", QUEUE)
    product.pgqd.stop()
    product.sql("update pgq.tick set tick_time = tick_time + interval '1 hour'")
    over = time.time()
    product.pgqd.start()
    flow.flows_again('clock of PostgreSQL set back an hour', over, BACK_TICKING)
    product.until_logged('as the clock was set back')
    assert product.children()['events']['restarts'] == 0
    flow.finish(repeats=0)
