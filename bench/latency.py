"""From the commit of an event until a consumer has it: `python -m bench.latency [--rate 200] [--seconds 60]`.

Single-row commits at a steady rate, once with pgqd and the queue at their defaults (a look every second, a
tick after 500 events or 3 s), once with ticks every 50 ms by this program. When an event and its tick were
committed is what PostgreSQL noted (track_commit_timestamp) before it wrote that to disk; the tick of an event
is the first whose snapshot sees it. A bare socket on the same machine reads the message: one clock for all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from threading import Event

from bench.helper import Helper
from bench.load import OURS, ROUTE, SMALL, body
from bench.report import Goal, Report, program
from bench.sides import ours
from bench.stage import DATABASE, Stage, wait
from tests.servers.pgqd import Pgqd

WARM = 100  # events before those that count
ARRIVAL = 120.0  # seconds until all has arrived: a tick may come after the longest idle period, 60 s
BOUND = 15.0  # ms from tick to delivery, p99
POINTS = 1000  # of a distribution
COMMITS = """
    select (ev_data::json->>'n')::integer,
        extract(epoch from pg_xact_commit_timestamp(e.xmin))::float,
        extract(epoch from pg_xact_commit_timestamp(first.xmin))::float
    from pgq.queue
        cross join {events} e
        cross join lateral (
            select t.xmin from pgq.tick t
            where tick_queue = queue_id and tick_time > ev_time - interval '1 s'
                and txid_visible_in_snapshot(ev_txid, tick_snapshot)
            order by tick_id limit 1) first
    where queue_name = %s
"""


@contextmanager
def by_pgqd(made: Stage, queue: str) -> Iterator[None]:
    """At its defaults."""
    with Pgqd(made.postgres, DATABASE, ticker_period=1.0, retry_period=30.0):
        yield


def by_us(period: float) -> Callable[[Stage, str], AbstractContextManager[None]]:
    @contextmanager
    def ticking(made: Stage, queue: str) -> Iterator[None]:
        """A tick every `period` seconds."""
        over = Event()

        def tick() -> None:
            with closing(made.postgres.connect(DATABASE)) as connection, connection.cursor() as cursor:
                while not over.wait(period):
                    cursor.execute('select pgq.ticker(%s)', (queue,))

        with ThreadPoolExecutor(1) as pool:
            ticker = pool.submit(tick)
            try:
                yield
            finally:
                over.set()
            ticker.result()

    return ticking


def numbered(number: int) -> str:
    return body(SMALL).replace('"n": 0', f'"n": {number}')


def feed(made: Stage, queue: str, rate: float, count: int) -> None:
    """Events 1 to `count`, each in a transaction of its own."""
    begun = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        made.insert(queue, ROUTE, numbered(number), 1)


def measure(
    made: Stage,
    ticks: Callable[[Stage, str], AbstractContextManager[None]],
    at_once: bool,
    rate: float,
    count: int,
) -> dict[str, list[float]]:
    """Sorted milliseconds from commit, and from tick, to delivery."""
    port = made.rabbitmq.port
    with (
        made.queues(ticks_at_once=at_once) as (queue,),
        Helper('bench.consumer', port, ROUTE, WARM + count, '--arrivals') as consumer,
    ):
        consumer.until_ready()
        before = made.last_tick(queue)
        made.insert(queue, ROUTE, body(SMALL), WARM)
        with made.side(OURS, ours(), [queue]) as side, ticks(made, queue):
            wait(side, lambda: made.last_tick(queue) > before and not made.has_batch(queue), ARRIVAL)
            feed(made, queue, rate, count)
            arrivals = consumer.result(ARRIVAL)['arrivals']
        came = {json.loads(text)['n']: at for at, text in arrivals}
        events = made.value('select queue_data_pfx from pgq.queue where queue_name = %s', queue)
        commits = [row for row in made.rows(COMMITS.format(events=events), queue) if row[0]]
    if len(commits) != count:
        raise RuntimeError(f'{len(commits)} of {count} events have a tick')
    return {
        'commit': sorted(1000 * (came[number] - commit) for number, commit, _ in commits),
        'tick': sorted(1000 * (came[number] - tick) for number, _, tick in commits),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def goals(found: Mapping[str, Mapping[str, Sequence[float]]], rate: float) -> list[Goal]:
    goals = []
    for name, kinds in found.items():
        whole, part = ([quantile(kinds[kind], share) for share in (0.5, 0.99)] for kind in ('commit', 'tick'))
        text = f'commit to delivery at {rate:g} events/s, {name}'
        goals.append(Goal(4, text, f'p50 {whole[0]:,.1f} ms, p99 {whole[1]:,.1f} ms', None))
        text = f'tick to delivery p99 under {BOUND:g} ms, {name}'
        goals.append(Goal(4, text, f'{part[1]:.1f} ms (p50 {part[0]:.1f} ms)', part[1] < BOUND))
    return goals


def run(made: Stage, options: argparse.Namespace) -> Report:
    count = round(options.rate * options.seconds)
    found = {
        f'ticks every {1000 * options.period:g} ms': measure(
            made, by_us(options.period), True, options.rate, count
        ),
        'pgqd at its defaults': measure(made, by_pgqd, False, options.rate, count),
    }
    print(f'{"ms":42}{"p50":>10}{"p90":>10}{"p99":>10}{"most":>10}')
    for name, kinds in found.items():
        for kind, ordered in kinds.items():
            values = ''.join(f'{quantile(ordered, share):10,.1f}' for share in (0.5, 0.9, 0.99, 1))
            print(f'{kind + " to delivery, " + name:42}{values}')
    distributions = {
        f'{kind} to delivery, {name}': [
            round(quantile(ordered, number / POINTS), 3) for number in range(POINTS + 1)
        ]
        for name, kinds in found.items()
        for kind, ordered in kinds.items()
    }
    return Report({'distributions, ms': distributions}, goals(found, options.rate))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--rate', type=float, default=200, help='events a second (default %(default)s)')
    parser.add_argument('--seconds', type=float, default=60, help='of events, each (default %(default)s)')
    parser.add_argument('--period', type=float, default=0.05, help='s between ticks (default %(default)s)')


if __name__ == '__main__':
    program('Latency from commit to delivery.', add_options, run, track_commit_timestamp='on')
