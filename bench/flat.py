"""Whether the rate stays the same: `python -m bench.flat [--events N]`.

All events are inserted first, 200-byte bodies, one batch after every `--batch`; then the relay starts. A bare
socket consumes as they come and notes when each million is there. Also the worker's peak resident memory.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from bench.helper import Helper
from bench.load import MB, OURS, ROUTE, SMALL, body
from bench.report import Goal, Report, program
from bench.sides import ours
from bench.stage import Stage, wait
from tests.servers.waiting import until

PATIENCE = 7200.0  # seconds for all of it
ARRIVAL = 60.0  # seconds from the last confirm until all has arrived


def fill(made: Stage, queue: str, events: int, batch: int) -> int:
    """Insert them all; the last tick."""
    tick = 0
    for begun in range(0, events, batch):
        made.insert(queue, ROUTE, body(SMALL), min(batch, events - begun))
        tick = made.tick(queue)
    made.value('checkpoint')
    return tick


def run(made: Stage, options: argparse.Namespace) -> Report:
    step = options.step
    with (
        made.queues() as (queue,),
        Helper('bench.consumer', made.rabbitmq.port, ROUTE, options.events, '--mark', step) as consumer,
    ):
        consumer.until_ready()
        last = fill(made, queue, options.events, options.batch)
        with made.side(OURS, ours(), [queue]) as side:
            wait(side, lambda: made.last_tick(queue) >= last, PATIENCE, 0.5)
            peak = max(usage.peak for usage in side.usages().values()) * 1024 / MB
        until(lambda: not made.queued(ROUTE), ARRIVAL, 'all are consumed')
        marks = consumer.result(ARRIVAL)['marks']
    rates = [step / (after - before) for before, after in pairwise(marks)]
    print(f'{"messages":>12}{"msg/s":>10}')
    for number, rate in enumerate(rates, 1):
        print(f'{number * step:12,}{rate:10,.0f}')
    ratio = min(rates) / max(rates)
    text = f'flat over {options.events:,} events, slowest to fastest {step:,}'
    goals = [
        Goal(7, text, f'{min(rates):,.0f} and {max(rates):,.0f} msg/s, ratio {ratio:.2f}', None),
        Goal(3, f'peak resident memory over {options.events:,} events', f'{peak:.1f} MB', None),
    ]
    return Report({'rates': rates, 'ratio': ratio, 'peak': peak}, goals)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--events', type=int, default=10_000_000, help='in all (default %(default)s)')
    parser.add_argument('--batch', type=int, default=200_000, help='in a batch (default %(default)s)')
    parser.add_argument('--step', type=int, default=1_000_000, help='for each rate (default %(default)s)')


if __name__ == '__main__':
    program('Messages a second for each million.', add_options, run)
