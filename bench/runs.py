"""One run of one side: a relay takes a batch for each route, or as many bare sockets send the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from bench.helper import Helper
from bench.load import CEILING, OURS, SMALL, Load, Result, body
from bench.sides import Side, Usage, ours
from bench.stage import Stage, wait
from tests.servers.waiting import until

WARM = 100  # events before those that count
PATIENCE = 1800.0  # seconds for one batch
ARRIVAL = 60.0  # seconds from the last confirm until all has arrived


def relay(made: Stage, load: Load, name: str = OURS, command: Sequence[str] | None = None) -> Result:
    """From when a batch is taken until PgQ has them all back finished; CPU and peak are the workers'."""
    with (
        made.queues(len(load.routes)) as queues,
        _received(made, load, WARM) as received,
        made.side(name, command or ours(), queues, load.confirm, load.tls) as side,
    ):
        for queue, route in zip(queues, load.routes, strict=True):
            made.insert(queue, route, body(SMALL), WARM)
        _await(made, side, {queue: made.tick(queue) for queue in queues})  # connected and warm
        for queue, route in zip(queues, load.routes, strict=True):
            made.insert(queue, route, load.body, load.events)
        made.value('checkpoint')
        result = _measure(made, side, load, queues)
        received()
        return result


def bare(made: Stage, load: Load) -> Result:
    """From the first write to the last confirm, of ready-made frames on a socket for each route."""
    port, options = made.rabbitmq.port, ['--size', str(load.size), '--wait']
    if not load.confirm:
        options.append('--no-confirm')
    if load.tls:
        port = made.rabbitmq.tls_port
        options += ['--authority', made.rabbitmq.ca_file]
    with _received(made, load, 0) as received, ExitStack() as open_ones:
        sockets = [
            open_ones.enter_context(Helper('bench.ceiling', port, load.events, '--route', route, *options))
            for route in load.routes
        ]
        for one in sockets:
            one.until_ready()
        for one in sockets:
            one.go()
        found = [one.result(PATIENCE) for one in sockets]
        received()
    seconds = max(one['ended'] for one in found) - min(one['started'] for one in found)
    cpu, peak = sum(one['cpu'] for one in found), max(one['peak'] for one in found)
    return Result.of(CEILING, load, made.pinned_now, seconds, cpu, peak)


@contextmanager
def _received(made: Stage, load: Load, more: int) -> Iterator[Callable[[], None]]:
    """Empty the routes, and have them consumed if the load says so; what it gives waits until all came."""
    expected = load.events + more
    for route in load.routes:
        made.purge(route)
    with ExitStack() as open_ones:
        consumers = [
            open_ones.enter_context(Helper('bench.consumer', made.rabbitmq.port, route, expected))
            for route in load.routes
            if load.consumed
        ]
        for one in consumers:
            one.until_ready()

        def all_there() -> None:
            left = 0 if load.consumed else expected
            for route in load.routes:
                _until_queued(made, route, left)
            for one in consumers:
                one.result(ARRIVAL)

        yield all_there


def _until_queued(made: Stage, route: str, count: int) -> None:
    until(
        lambda: made.queued(route) == count,
        ARRIVAL,
        lambda: f'{count} messages in {route}, not {made.queued(route)}',
    )


def _measure(made: Stage, side: Side, load: Load, queues: Sequence[str]) -> Result:
    ticks = {queue: made.tick(queue) for queue in queues}
    wait(side, lambda: any(map(made.has_batch, queues)) or _finished(made, ticks), PATIENCE, 0.005)
    started, before = time.monotonic(), side.usages()
    _await(made, side, ticks)
    seconds, after = time.monotonic() - started, side.usages()
    used = {pid: usage.cpu - before.get(pid, Usage(0, 0)).cpu for pid, usage in after.items()}
    workers = sorted(used, key=lambda pid: used[pid])[-len(queues) :]
    cpu, peak = sum(used[pid] for pid in workers), max(after[pid].peak for pid in workers)
    return Result.of(side.name, load, made.pinned_now, seconds, cpu, peak)


def _await(made: Stage, side: Side, ticks: Mapping[str, int]) -> None:
    wait(side, lambda: _finished(made, ticks), PATIENCE)


def _finished(made: Stage, ticks: Mapping[str, int]) -> bool:
    return all(made.last_tick(queue) >= tick for queue, tick in ticks.items())
