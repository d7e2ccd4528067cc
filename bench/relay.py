"""The whole relay, from PgQ to the last confirm: `python -m bench.relay [--events N] [--runs N] [--pin]`.

Starts a PostgreSQL (fsync on) and a RabbitMQ of its own. Each run inserts events in one transaction, ticks,
and measures from the moment when the relay takes the batch until PgQ has it back finished: messages a second,
CPU microseconds a message (user and system) and peak resident memory of the worker process. Beside it, run in
turn: Mikkoo 3.0.0 from PyPI in an environment of its own, and the ceiling, the same bytes ready-made on a
bare socket (bench.ceiling). 200-byte JSON bodies, one property and two headers, a classic durable queue,
nobody consuming. With --pin RabbitMQ has the last core to itself, on every side, and all else the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.sides import Side, Usage, ours, peer
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

EXCHANGE = 'bench'
BODY = json.dumps({'n': 0, 'filler': 'x' * 178})  # 200 bytes
PROPERTIES = '{"type": "bench"}'
HEADERS = '{"tenant": "north", "shard": 7}'
INSERT = """
    select count(pgq.insert_event(%s, 'bench.key', %s, %s, 'application/json', %s, %s))
    from generate_series(1, %s)
"""
PATIENCE = 600.0  # seconds for one batch
OURS, PEER, CEILING = 'mikkoo 4', 'mikkoo 3.0.0', 'bare socket'


@dataclass(frozen=True)
class Result:
    """One run of one side."""

    side: str
    confirm: bool
    events: int
    seconds: float
    rate: float  # messages a second
    cpu: float  # microseconds a message
    peak: float  # MiB


class Bench:
    """The servers, and what is measured on them."""

    def __init__(self, postgres: PostgresServer, rabbitmq: RabbitServer, folder: Path) -> None:
        self._folder = folder
        self._port = rabbitmq.port
        self._url = postgres.create_database('bench')
        self._connection = postgres.connect('bench')
        self._cursor = self._connection.cursor()
        self._broker = rabbitmq.connect()
        self._channel = self._broker.channel()
        self._channel.exchange_declare(EXCHANGE, 'topic', durable=True)
        self._channel.queue_declare(EXCHANGE, durable=True)
        self._channel.queue_bind(EXCHANGE, EXCHANGE, '#')

    def close(self) -> None:
        self._broker.close()
        self._connection.close()

    def run(self, name: str, command: list[str], events: int, confirm: bool) -> Result:
        """One side relays one batch of events on a queue of its own."""
        queue = f'{name}_{time.time_ns()}'.replace(' ', '_').replace('.', '_')
        self._channel.queue_purge(EXCHANGE)
        self._value('select pgq.create_queue(%s)', queue)
        self._value("select pgq.set_queue_config(%s, 'ticker_max_lag', '0')", queue)
        self._value('select pgq.register_consumer(%s, %s)', queue, 'bench')
        values = {'confirm': str(confirm).lower(), 'postgres_url': self._url, 'port': self._port}
        folder = self._folder / queue
        folder.mkdir()
        with Side(name, command, folder, queue, **values) as side:
            self._relay_some(side, queue, 100)  # connected and warm
            self._value(INSERT, queue, BODY, EXCHANGE, PROPERTIES, HEADERS, events)
            self._value('checkpoint')
            return self._measure(side, queue, events, confirm)

    def ceiling(self, count: int) -> Result:
        """A bare socket publishes as many ready-made messages, with confirms."""
        self._channel.queue_purge(EXCHANGE)
        command = [sys.executable, '-m', 'bench.ceiling', str(self._port), EXCHANGE, str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, cpu, peak = (json.loads(done.stdout)[key] for key in ('seconds', 'cpu', 'peak'))
        return Result(CEILING, True, count, seconds, count / seconds, cpu / count * 1e6, peak / 1024)

    def _relay_some(self, side: Side, queue: str, events: int) -> None:
        self._value(INSERT, queue, BODY, EXCHANGE, PROPERTIES, HEADERS, events)
        tick = self._value('select pgq.ticker(%s)', queue)
        self._await(side, lambda: self._last_tick(queue) >= tick)

    def _measure(self, side: Side, queue: str, events: int, confirm: bool) -> Result:
        tick = self._value('select pgq.ticker(%s)', queue)
        self._await(side, lambda: self._has_batch(queue) or self._last_tick(queue) >= tick)
        started, before = time.monotonic(), side.usages()
        self._await(side, lambda: self._last_tick(queue) >= tick)
        seconds, after = time.monotonic() - started, side.usages()
        # Without confirms the last messages of a finished batch may still be on their way.
        until(lambda: self._queued() >= events, 60, lambda: f'{events} messages arrive, not {self._queued()}')
        worker = max(after, key=lambda pid: after[pid].cpu - before.get(pid, Usage(0, 0)).cpu)
        cpu = after[worker].cpu - before[worker].cpu
        return Result(
            side.name,
            confirm,
            events,
            seconds,
            events / seconds,
            cpu / events * 1e6,
            after[worker].peak / 1024,
        )

    def _await(self, side: Side, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            side.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f'{side.name} has not relayed its batch within {PATIENCE:g} s')
            time.sleep(0.005)

    def _queued(self) -> int:
        return int(self._channel.queue_declare(EXCHANGE, passive=True).method.message_count)

    def _last_tick(self, queue: str) -> int:
        return int(self._value('select last_tick from pgq.get_consumer_info(%s, %s)', queue, 'bench'))

    def _has_batch(self, queue: str) -> bool:
        return bool(
            self._value('select current_batch is not null from pgq.get_consumer_info(%s, %s)', queue, 'bench')
        )

    def _value(self, sql: str, *arguments: object) -> Any:
        self._cursor.execute(sql, arguments)
        row = self._cursor.fetchone() if self._cursor.description else None
        return row[0] if row else None


@contextmanager
def broker(pinned: bool) -> Iterator[RabbitServer]:
    """A RabbitMQ; `pinned`: on the last core, with one scheduler for it, and all else on the others."""
    everywhere = os.sched_getaffinity(0)
    *others, last = sorted(everywhere)
    if pinned and not others:
        raise SystemExit('--pin needs two cores')
    os.sched_setaffinity(0, {last} if pinned else everywhere)
    try:
        with RabbitServer() as rabbitmq:
            os.sched_setaffinity(0, others if pinned else everywhere)
            yield rabbitmq
    finally:
        os.sched_setaffinity(0, everywhere)


@contextmanager
def bench(pinned: bool = False) -> Iterator[Bench]:
    """Servers of its own for the time of the benchmark."""
    with tempfile.TemporaryDirectory(prefix='mikkoo-bench-') as folder, broker(pinned) as rabbitmq:
        with PostgresServer(fsync=True) as postgres:
            made = Bench(postgres, rabbitmq, Path(folder))
            try:
                yield made
            finally:
                made.close()


def median(results: list[Result], side: str, confirm: bool, field: str) -> float:
    return statistics.median(
        getattr(result, field) for result in results if (result.side, result.confirm) == (side, confirm)
    )


def print_table(results: list[Result]) -> None:
    """Medians by side, and our rate as a multiple of each other side's."""
    print(f'\n{"":22}{"msg/s":>10}{"CPU µs/msg":>12}{"peak MiB":>10}{"ours/it":>9}')
    for confirm in (True, False):
        sides = dict.fromkeys(result.side for result in results if result.confirm is confirm)
        rates = {side: median(results, side, confirm, 'rate') for side in sides}
        for side in sides:
            cpu, peak = (median(results, side, confirm, field) for field in ('cpu', 'peak'))
            name = side + (', confirms' if confirm else ', none')
            print(f'{name:22}{rates[side]:10,.0f}{cpu:12.1f}{peak:10.1f}{rates[OURS] / rates[side]:9.2f}')


def measure(
    made: Bench, options: argparse.Namespace, sides: Sequence[tuple[str, list[str], int]]
) -> Iterator[Result]:
    """Every run of every side, interleaved."""
    for number in range(options.runs):
        for confirm in (True, False) if options.unconfirmed else (True,):
            for name, command, events in sides:
                result = made.run(name, command, events, confirm)
                print(f'run {number + 1}: {result}', flush=True)
                yield result
        result = made.ceiling(options.events)
        print(f'run {number + 1}: {result}', flush=True)
        yield result


def main() -> None:
    parser = argparse.ArgumentParser(description='This relay and Mikkoo 3.0.0, from PgQ to the last confirm.')
    parser.add_argument('--events', type=int, default=20_000, help='events in a batch (default %(default)s)')
    parser.add_argument('--peer-events', type=int, default=5_000, help="in the peer's (default %(default)s)")
    parser.add_argument('--runs', type=int, default=3, help='runs of each side (default %(default)s)')
    parser.add_argument('--pin', action='store_true', help='RabbitMQ on a core of its own')
    parser.add_argument('--no-peer', action='store_true', help='without Mikkoo 3.0.0')
    parser.add_argument('--unconfirmed', action='store_true', help='also without publisher confirms')
    parser.add_argument('--peer-folder', type=Path, help="the peer's environment, kept (default: made anew)")
    parser.add_argument('--json', type=Path, help='write every run here')
    options = parser.parse_args()
    with bench(options.pin) as made, tempfile.TemporaryDirectory(prefix='mikkoo-peer-') as scratch:
        sides = [(OURS, ours(), options.events)]
        if not options.no_peer:
            sides.append((PEER, peer(options.peer_folder or Path(scratch)), options.peer_events))
        results = list(measure(made, options, sides))
    print_table(results)
    if options.json:
        options.json.write_text(
            json.dumps(
                {**machine(), 'pinned': options.pin, 'runs': [asdict(one) for one in results]}, indent=1
            )
        )


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        'machine': platform.platform(),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
    }


if __name__ == '__main__':
    main()
