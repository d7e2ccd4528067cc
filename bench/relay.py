"""The whole relay, from PgQ to the last confirm: `python -m bench.relay [--events N] [--runs N] [--pin]`.

Starts a PostgreSQL (fsync on) and a RabbitMQ of its own. Each run inserts events in one transaction, ticks,
and measures from the moment when the relay takes the batch until PgQ has it back finished: messages a second,
CPU microseconds a message (user and system) and peak resident memory of the worker process. Beside it, run in
turn: Mikkoo 3.0.0 from PyPI in an environment of its own, and the ceiling, the same bytes ready-made on a
bare socket (bench.ceiling). 200-byte JSON bodies, one property and two headers, a classic durable queue,
nobody consuming. With --pin all of it once more with RabbitMQ alone on the last core, on every side, and all
else on the others: the goals are about that.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.load import CEILING, OURS, PEER, Load, Result, median
from bench.report import Goal, Report, program
from bench.runs import bare, relay
from bench.sides import peer
from bench.stage import Stage

Run = Callable[[], Result]


def plan(made: Stage, options: argparse.Namespace, folder: Path) -> list[Run]:
    """One round: every side, with confirms and perhaps without."""
    command = None if options.no_peer else peer(options.peer_folder or folder)
    runs: list[Run] = []
    for confirm in (True, False) if options.unconfirmed else (True,):
        mine, its = (Load(count, confirm=confirm) for count in (options.events, options.peer_events))
        runs.append(partial(relay, made, mine))
        if command is not None:
            runs.append(partial(relay, made, its, PEER, command))
    return [*runs, partial(bare, made, Load(options.events))]


def measure(made: Stage, options: argparse.Namespace, runs: Sequence[Run]) -> Iterator[Result]:
    """Every run of every side, interleaved; all pinned ones before the others."""
    for pinned in (True, False) if options.pin else (False,):
        with made.pinned() if pinned else nullcontext():
            for number in range(options.runs):
                for one in runs:
                    result = one()
                    pins = 'pinned' if pinned else 'free'
                    confirms = 'confirms' if result.load.confirm else 'none'
                    print(f'run {number + 1}, {pins:6} {confirms:8} {result}', flush=True)
                    yield result


def select(results: Sequence[Result], side: str, pinned: bool, confirm: bool = True) -> list[Result]:
    wanted = (side, pinned, confirm)
    return [one for one in results if (one.side, one.pinned, one.load.confirm) == wanted]


def print_table(results: Sequence[Result]) -> None:
    """Medians by side, and our rate as a multiple of each other side's."""
    print(f'\n{"":30}{"msg/s":>10}{"CPU µs/msg":>12}{"peak MB":>10}{"ours/it":>9}')
    for pinned, confirm, side in dict.fromkeys((one.pinned, one.load.confirm, one.side) for one in results):
        its, mine = select(results, side, pinned, confirm), select(results, OURS, pinned, confirm)
        name = f'{side}, {"confirms" if confirm else "none"}{", pinned" if pinned else ""}'
        rate, cpu, peak = median(its, 'rate'), median(its, 'cpu'), median(its, 'peak')
        print(f'{name:30}{rate:10,.0f}{cpu:12.1f}{peak:10.1f}{median(mine, "rate") / rate:9.2f}')


def goals(results: Sequence[Result]) -> list[Goal]:
    """With confirms. Pinned where that was measured, the figure without pinning beside it."""
    pinned = any(one.pinned for one in results)
    where = 'RabbitMQ pinned' if pinned else 'nothing pinned'

    def ratio(side: str, pinned: bool) -> float:
        mine, its = select(results, OURS, pinned), select(results, side, pinned)
        return median(mine, 'rate') / median(its, 'rate')

    def beside(side: str) -> str:
        return f' ({ratio(side, False):.2f} unpinned)' if pinned else ''

    found = []
    if select(results, PEER, pinned):
        times = ratio(PEER, pinned)
        bound = times / ratio(CEILING, pinned)
        figure = f'{times:.2f} times{beside(PEER)}, and the bare socket is {bound:.2f} times'
        found.append(Goal(1, f'at least 10 times mikkoo 3.0.0, {where}', figure, times >= 10))
    share = ratio(CEILING, pinned)
    figure = f'{share:.2f}{beside(CEILING)}'
    found.append(Goal(1, f'at least 0.80 of the bare socket, {where}', figure, share >= 0.80))
    cpu = median(select(results, OURS, pinned), 'cpu')
    free = f' ({median(select(results, OURS, False), "cpu"):.1f} unpinned)' if pinned else ''
    text = f'at most 25 µs of CPU a message, {where}'
    return [*found, Goal(2, text, f'{cpu:.1f} µs{free}', cpu <= 25)]


def run(made: Stage, options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix='mikkoo-peer-') as scratch:
        results = list(measure(made, options, plan(made, options, Path(scratch))))
    print_table(results)
    return Report({'runs': [asdict(one) for one in results]}, goals(results))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--events', type=int, default=20_000, help='events in a batch (default %(default)s)')
    parser.add_argument('--peer-events', type=int, default=5_000, help="in the peer's (default %(default)s)")
    parser.add_argument('--runs', type=int, default=5, help='runs of each side (default %(default)s)')
    parser.add_argument('--pin', action='store_true', help='also with RabbitMQ on a core of its own')
    parser.add_argument('--no-peer', action='store_true', help='without Mikkoo 3.0.0')
    parser.add_argument('--unconfirmed', action='store_true', help='also without publisher confirms')
    parser.add_argument('--peer-folder', type=Path, help="the peer's environment, kept (default: made anew)")


if __name__ == '__main__':
    program('This relay and Mikkoo 3.0.0, from PgQ to the last confirm.', add_options, run)
