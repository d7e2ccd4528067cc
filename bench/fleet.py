"""What many workers cost while nothing happens, and how soon a start and an edit take effect.

`python -m bench.fleet [--workers 20] [--seconds 30] [--reloaded 50]` starts a PostgreSQL, a pgqd at its
defaults, a RabbitMQ and a mikkood of its own, and prints: the share of one core that all workers on empty
queues use together, and each one's private memory; the seconds from `mikkood start` to the first message in
RabbitMQ; the seconds from an edit that changes one of many workers until that one relays anew, and how many
processes were touched by it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.report import Goal, Report, finish
from bench.sides import cpu
from tests.conftest import Database
from tests.integration.product import Product
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until


@contextmanager
def product(postgres: PostgresServer, rabbitmq: RabbitServer, count: int) -> Iterator[Product]:
    """A mikkood, not yet started, with so many workers `q0`, `q1`, ... on empty queues."""
    name = f'fleet_{time.time_ns()}'
    postgres.create_database(name)
    postgres.execute(f'create role relay_{name} login', dbname=name)
    postgres.execute(f'grant mikkoo_relay to relay_{name}', dbname=name)
    with tempfile.TemporaryDirectory(prefix='mikkoo-bench-') as folder:
        made = Product(Path(folder), Database(postgres, name), rabbitmq, '/')
        made.application['poll_interval'] = 10
        for number in range(count):
            made.sql('select pgq.create_queue(%s)', f'q{number}')
            made.sql("select pgq.register_consumer(%s, 'mikkoo')", f'q{number}')
            made.worker(f'q{number}', wait_duration=10)
        made.save()
        pgqd = Pgqd(postgres, name, 1.0)
        pgqd.start()
        try:
            yield made
        finally:
            made.close()
            pgqd.close()


def private(pid: int) -> float:
    """MiB that are this process's alone."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024


def idle(made: Product, settle: float, seconds: float) -> dict[str, float]:
    made.started()
    made.until_running()
    time.sleep(settle)
    pids = list(made.pids().values())
    before, begun = sum(map(cpu, pids)), time.monotonic()
    time.sleep(seconds)
    share = (sum(map(cpu, pids)) - before) / (time.monotonic() - begun)
    memory = [private(pid) for pid in pids]
    return {
        'workers': len(pids),
        'percent of a core': 100 * share,
        'private MiB, median': statistics.median(memory),
        'private MiB, most': max(memory),
    }


def start(made: Product) -> float:
    """Seconds from `mikkood start` to the first message."""
    made.channel.queue_declare('first')
    made.channel.queue_purge('first')
    made.sql("select pgq.insert_event('q0', 'first', '{}', null, null, null, null)")
    made.sql("select pgq.force_tick('q0')")
    made.sql("select pgq.ticker('q0')")
    begun = time.monotonic()
    made.started()
    until(lambda: made.queued('first') > 0, 30, 'the first message', interval=0.005)
    return time.monotonic() - begun


def reload(made: Product) -> tuple[float, int]:
    """Seconds from the edit of one worker until it relays anew; how many processes are others."""
    made.started()
    made.until_running()
    before = made.pids()
    made.worker('q7', wait_duration=2)
    begun = time.monotonic()
    made.save()

    def anew() -> bool:
        child = made.children()['q7']
        return bool(child['pid'] != before['q7'] and child['state'] == 'RUNNING')

    until(anew, 30, 'the changed worker relays', interval=0.02)
    seconds = time.monotonic() - begun
    after = made.pids()
    return seconds, sum(after[name] != before[name] for name in before)


def main() -> None:
    parser = argparse.ArgumentParser(description='Idle cost of many workers; start and reload.')
    parser.add_argument('--workers', type=int, default=20, help='idle ones (default %(default)s)')
    parser.add_argument('--settle', type=float, default=5, help='s before idling (default %(default)s)')
    parser.add_argument('--seconds', type=float, default=30, help='of idling (default %(default)s)')
    parser.add_argument(
        '--reloaded', type=int, default=50, help='workers of the reload (default %(default)s)'
    )
    parser.add_argument('--runs', type=int, default=5, help='starts and reloads (default %(default)s)')
    parser.add_argument('--json', type=Path, help='write the figures here')
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with PostgresServer() as postgres, RabbitServer() as rabbitmq:
        with product(postgres, rabbitmq, options.workers) as made:
            figures |= idle(made, options.settle, options.seconds)
        starts = []
        for _ in range(options.runs):
            with product(postgres, rabbitmq, 1) as made:
                starts.append(start(made))
        reloads = []
        for _ in range(options.runs):
            with product(postgres, rabbitmq, options.reloaded) as made:
                reloads.append(reload(made))
    figures['start to first message, s, median'] = statistics.median(starts)
    figures['reload of one worker, s, median'] = statistics.median(seconds for seconds, _ in reloads)
    figures['processes touched by it, most'] = max(touched for _, touched in reloads)
    for name, value in figures.items():
        print(f'{name:36}{value if not isinstance(value, float) else round(value, 2)}')
    finish(Report(figures, goals(figures, options)), options)


def goals(figures: dict[str, float], options: argparse.Namespace) -> list[Goal]:
    share, most = figures['percent of a core'], figures['private MiB, most'] * 1.048576
    first, edit = figures['start to first message, s, median'], figures['reload of one worker, s, median']
    touched = figures['processes touched by it, most']
    workers, many = options.workers, options.reloaded
    return [
        Goal(5, f'under 1 % of a core, {workers} idle workers together', f'{share:.2f} %', share < 1),
        Goal(5, 'under 30 MB of private memory each', f'{most:.1f} MB at most', most < 30),
        Goal(6, 'start to the first message under 1.5 s', f'{first:.2f} s', first < 1.5),
        Goal(6, f'an edit of one of {many} workers done in 1 s', f'{edit:.2f} s', edit <= 1),
        Goal(6, f'an edit of one of {many} workers touches one', f'{touched:.0f}', touched == 1),
    ]


if __name__ == '__main__':
    main()
