"""Bodies of every size against a bare socket, and single changes: `python -m bench.bodies [--total BYTES]`.

So many bytes of each size, in one batch, and the same bytes ready-made on a bare socket; then, at 200 bytes,
publisher confirms off, a quorum queue or TLS in turn, against a classic queue with confirms. On every side
the messages are consumed as they come, by a bare socket without acks, so that RabbitMQ need not hold
gigabytes. The bodies are not compressible, so PostgreSQL reads and sends their full size. The bare socket has
1,000 messages in flight, as the relay does, which has 16 MiB at most besides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from bench.load import CEILING, MB, OURS, Load, Result, median
from bench.report import Goal, Report, program
from bench.runs import bare, relay
from bench.stage import Stage

SIZES = (1_000, 10_000, 100_000, 1_000_000)  # bytes
CLASSIC = 'classic, confirms'
QUORUM = 'bench.quorum'
SIDES: dict[str, Callable[[Stage, Load], Result]] = {OURS: relay, CEILING: bare}


def changes(events: int) -> dict[str, Load]:
    """One at a time, by name."""
    classic = Load(events, consumed=True)
    return {
        CLASSIC: classic,
        'confirms off': replace(classic, confirm=False),
        'quorum queue': replace(classic, routes=(QUORUM,)),
        'TLS': replace(classic, tls=True),
    }


def measure(made: Stage, loads: dict[str, Load], runs: int) -> dict[str, list[Result]]:
    """Every load on both sides, interleaved."""
    found: dict[str, list[Result]] = {name: [] for name in loads}
    for number in range(runs):
        for name, load in loads.items():
            for side in SIDES.values():
                result = side(made, load)
                print(f'run {number + 1}, {name:18} {result}', flush=True)
                found[name].append(result)
    return found


def figures(results: Sequence[Result]) -> dict[str, float]:
    """Medians of one load."""
    mine, its = ([one for one in results if one.side == side] for side in SIDES)
    return {
        'size': results[0].load.size,
        'rate': median(mine, 'rate'),
        'MB/s': median(mine, 'mb'),
        'bare MB/s': median(its, 'mb'),
        'of bare': median(mine, 'rate') / median(its, 'rate'),
    }


def print_table(tables: dict[str, dict[str, float]]) -> None:
    columns = {'rate': ',.0f', 'MB/s': '.1f', 'bare MB/s': '.1f', 'of bare': '.2f'}
    print('\n' + ' ' * 20 + ''.join(f'{name:>11}' for name in columns) + ' of classic')
    classic = tables[CLASSIC]
    for name, row in tables.items():
        values = ''.join(f'{format(row[column], form):>11}' for column, form in columns.items())
        change = f'{row["rate"] / classic["rate"]:11.2f}' if row['size'] == classic['size'] else ''
        print(f'{name:20}{values}{change}')


def run(made: Stage, options: argparse.Namespace) -> Report:
    made.route(QUORUM, x_queue_type='quorum')
    sizes = {
        f'{size:,} bytes': Load(max(1, options.total // size), size, consumed=True, compressible=False)
        for size in options.sizes
    }
    found = measure(made, sizes, options.runs) | measure(made, changes(options.events), options.change_runs)
    table = {name: figures(results) for name, results in found.items()}
    print_table(table)
    goals = [
        Goal(
            7,
            f'{options.total / MB:,.0f} MB of {name} beside a bare socket',
            f'{table[name]["MB/s"]:.1f} MB/s, {table[name]["of bare"]:.2f} of it',
            None,
        )
        for name in sizes
    ]
    runs = [asdict(one) for results in found.values() for one in results]
    return Report({'table': table, 'runs': runs}, goals)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES, help='bytes (default %(default)s)')
    parser.add_argument('--total', type=int, default=10**9, help='bytes of each size (default %(default)s)')
    parser.add_argument('--runs', type=int, default=1, help='runs of each size (default %(default)s)')
    parser.add_argument('--events', type=int, default=40_000, help='in a changed run (default %(default)s)')
    parser.add_argument('--change-runs', type=int, default=5, help='of each change (default %(default)s)')


if __name__ == '__main__':
    program('Rates by body size, and by one change at a time.', add_options, run, tls=True)
