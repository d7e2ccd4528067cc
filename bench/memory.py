"""What a worker needs at most: `python -m bench.memory [--events N] [--bodies N]`.

Its peak resident memory (VmHWM) after one batch of many small events, and after one of large bodies, consumed
as they come so that RabbitMQ need not hold them. Each in a process of its own. The large bodies are
repetitive: PostgreSQL stores a hundredth of their bytes, but the worker gets them whole.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from bench.load import MB, Load
from bench.report import Goal, Report, program
from bench.runs import relay
from bench.stage import Stage

SMALL_BOUND, LARGE_BOUND = 60, 120  # MB


def run(made: Stage, options: argparse.Namespace) -> Report:
    loads = {
        SMALL_BOUND: Load(options.events, consumed=True),
        LARGE_BOUND: Load(options.bodies, options.size, consumed=True),
    }
    results, goals = [], []
    for bound, load in loads.items():
        results.append(relay(made, load))
        print(results[-1], flush=True)
        what = f'{load.events:,} events of {load.size:,} bytes'
        peak = results[-1].peak
        text = f'under {bound} MB resident with a batch of {what}'
        goals.append(Goal(3, text, f'{peak:.1f} MB', peak < bound))
    return Report({'runs': [asdict(one) for one in results]}, goals)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--events', type=int, default=1_000_000, help='small ones (default %(default)s)')
    parser.add_argument('--bodies', type=int, default=10_000, help='large ones (default %(default)s)')
    parser.add_argument('--size', type=int, default=MB, help='bytes of a large one (default %(default)s)')


if __name__ == '__main__':
    program('Peak memory of a worker.', add_options, run)
