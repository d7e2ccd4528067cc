"""Processes that die, stop or idle under the real daemon: nothing is lost, nobody is left, nothing spins."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

from mikkoo.common.errors import Exit
from tests.integration.mikkood import alive
from tests.integration.product import STOP, Product, bodies
from tests.servers.waiting import until

LARGE = 100_000  # events in one batch
BEGUN = 500  # messages that have arrived: the batch is in progress
ORPHANS = 3 * 5.0  # seconds within which nothing is left of a killed supervisor
IDLE_TIME = 5.0  # seconds that idle processes are watched
IDLE_SHARE = 3 * 0.01  # of a core: three times what is promised


def insert_large(product: Product) -> None:
    product.create_queue('alpha')
    product.arrivals('alpha')
    product.sql(
        """select count(mikkoo.insert_event('alpha', '', 'alpha', format('{"n": %%s}', n), null))
           from generate_series(1, %s) as n""",
        LARGE,
    )
    product.worker('alpha')


def in_progress(product: Product, more_than: int) -> int:
    """Until the batch is being relayed; how many have arrived."""
    wanted = more_than + BEGUN
    until(lambda: product.queued('alpha') >= wanted, 60, lambda: f'{wanted} arrive:\n{product.logged()}')
    assert product.sql('select 1 from pgq.subscription where sub_batch is not null'), 'it is not finished'
    return product.queued('alpha')


def test_one_large_batch_survives_a_stop_a_killed_worker_and_a_killed_supervisor(product: Product) -> None:
    """Each in the middle of the same batch."""
    insert_large(product)
    product.save()

    product.started()
    arrived = in_progress(product, 0)
    begun = time.monotonic()
    stopped = product('stop')
    assert (stopped.returncode, stopped.stderr) == (Exit.OK, '')
    assert time.monotonic() - begun < STOP
    until(lambda: product.processes() == [], ORPHANS, lambda: f'left: {product.processes()}')

    supervisor = product.started()
    arrived = in_progress(product, product.queued('alpha'))
    [worker] = product.pids().values()
    os.kill(worker, signal.SIGKILL)
    until(lambda: product.children()['alpha']['restarts'] == 1, what='it is started again')
    product.until_logged('alpha ended: SIGKILL')

    arrived = in_progress(product, product.queued('alpha'))
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: product.processes() == [], ORPHANS, lambda: f'orphans: {product.processes()}')

    assert product.started() != supervisor, 'a stale pidfile and socket are no obstacle'
    product.until_settled()
    messages = product.take('alpha')
    counts = Counter(body['n'] for body in bodies(messages))
    assert counts.keys() == set(range(1, LARGE + 1)), 'events are lost'
    ids = {properties.message_id for _, properties, _ in messages}
    assert len(ids) == LARGE, 'a repeated event keeps its message_id'
    assert arrived < LARGE
    assert product('stop').returncode == Exit.OK


def test_idle_processes_use_no_processor(product: Product) -> None:
    """Three workers on empty queues that are ticked each second, and their supervisor."""
    for queue in ('alpha', 'beta', 'gamma'):
        product.create_queue(queue)
        product.worker(queue, wait_duration=10)
    product.application['poll_interval'] = 10
    supervisor = product.run()
    pids = {**product.pids(), 'supervisor': supervisor}
    assert len(pids) == 4
    until(
        lambda: all(child['waits'].startswith('a tick') for child in product.children().values()), what='idle'
    )
    begun, before = time.monotonic(), {name: processor_time(pid) for name, pid in pids.items()}
    ticks = product.sql('select max(tick_id) from pgq.tick')
    until(lambda: time.monotonic() > begun + IDLE_TIME, 2 * IDLE_TIME, 'the time is over', interval=0.5)
    shares = {
        name: (processor_time(pid) - before[name]) / (time.monotonic() - begun) for name, pid in pids.items()
    }
    assert all(share < IDLE_SHARE for share in shares.values()), shares
    assert product.sql('select max(tick_id) from pgq.tick') > ticks
    assert all(map(alive, pids.values()))


def processor_time(pid: int) -> float:
    """Seconds of all its threads, user and system: fields 14 and 15 of /proc/PID/stat (proc(5))."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
