"""Many queues at once: `python -m bench.queues [--events N] [--counts 1 2 4 8]`.

One daemon with a worker for each PgQ queue, and a RabbitMQ queue for each, against as many bare sockets: the
sum of the rates. A batch in every queue, ticked one right after the other; nobody consumes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from bench.load import Load, Result, median
from bench.report import Goal, Report, program
from bench.runs import bare, relay
from bench.stage import Stage


def routes(count: int) -> tuple[str, ...]:
    return tuple(f'bench.{number}' for number in range(count))


def print_table(found: dict[int, tuple[list[Result], list[Result]]]) -> None:
    columns = ('queues', 'msg/s', 'bare msg/s', 'of bare', 'of one', 'CPU µs/msg', 'peak MB')
    print('\n' + ''.join(f'{name:>12}' for name in columns))
    one = median(next(iter(found.values()))[0], 'rate')
    for count, (mine, its) in found.items():
        rate, most = median(mine, 'rate'), median(its, 'rate')
        cpu, peak = median(mine, 'cpu'), median(mine, 'peak')
        ratios = f'{rate / most:12.2f}{rate / one:12.2f}'
        print(f'{count:12}{rate:12,.0f}{most:12,.0f}{ratios}{cpu:12.1f}{peak:12.1f}')


def run(made: Stage, options: argparse.Namespace) -> Report:
    for name in routes(max(options.counts)):
        made.route(name)
    found: dict[int, tuple[list[Result], list[Result]]] = {count: ([], []) for count in options.counts}
    for number in range(options.runs):
        for count, results in found.items():
            load = Load(options.events, routes=routes(count))
            for side, into in zip((relay, bare), results, strict=True):
                into.append(side(made, load))
                print(f'run {number + 1}, {count} queues: {into[-1]}', flush=True)
    print_table(found)
    goals = []
    for count, (mine, its) in found.items():
        rate, most = median(mine, 'rate'), median(its, 'rate')
        text = f'{count} queues at once, bare sockets beside them: {count}'
        goals.append(Goal(8, text, f'{rate:,.0f} msg/s, {rate / most:.2f} of them', None))
    runs = [asdict(one) for results in found.values() for side in results for one in side]
    return Report({'runs': runs}, goals)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--events', type=int, default=20_000, help='in each queue (default %(default)s)')
    parser.add_argument('--counts', type=int, nargs='+', default=(1, 2, 4, 8), help='default: %(default)s')
    parser.add_argument('--runs', type=int, default=5, help='runs of each count (default %(default)s)')


if __name__ == '__main__':
    program('The sum of the rates of many queues.', add_options, run)
