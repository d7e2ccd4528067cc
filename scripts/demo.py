"""The relay at work on throwaway servers: an event a second into PostgreSQL, a message out of RabbitMQ."""

from __future__ import annotations

import argparse
import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from pika.exceptions import AMQPError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML

from mikkoo.common.resources import example_configuration_path
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.process import Server, ServerError, raise_on_signals
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

DATABASE, EXCHANGE, BOUND_QUEUE = 'demo', 'orders', 'demo'
INTERVAL = 1.0  # seconds between events
PATIENCE = 30.0  # seconds that stragglers get at the end
KEYS = ('order.created', 'order.paid', 'order.shipped')
SHOWN = (
    'content_type',
    'delivery_mode',
    'priority',
    'type',
    'app_id',
    'message_id',
    'correlation_id',
    'timestamp',
)

console = Console(highlight=False, soft_wrap=True)


class Daemon(Server):
    """`mikkood start --foreground`, ready once its workers have registered with PgQ."""

    name = 'mikkood'

    def __init__(self, configuration: Any, postgres: PostgresServer) -> None:
        super().__init__()
        self._file, self._postgres = self.folder / 'mikkoo.yml', postgres
        with self._file.open('w') as file:
            YAML().dump(configuration, file)

    def _launch(self) -> subprocess.Popen[bytes]:
        return self._spawn(
            [str(Path(sys.executable).with_name('mikkood')), '-c', str(self._file), 'start', '-f']
        )

    def _await_ready(self) -> None:
        until(self._registered, 30, lambda: f'mikkood registers its consumers:\n{self.log()}')

    def _registered(self) -> bool:
        self.check_alive()
        sql = (
            'select 1 from pgq.queue left join pgq.subscription on sub_queue = queue_id where sub_id is null'
        )
        return not self._postgres.execute(sql, dbname=DATABASE)


@dataclass
class Counts:
    """What went in and what came out. `sent`: event number to the monotonic time of its commit."""

    inserted: int = 0
    delivered: int = 0
    repeated: int = 0
    latencies: list[float] = field(default_factory=list)
    sent: dict[int, float] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        return len(self.sent)

    def arrived(self, number: int, at: float) -> float | None:
        """The latency in seconds of a message, or None if it had arrived before."""
        if number not in self.sent:
            self.repeated += 1
            return None
        latency = at - self.sent.pop(number)
        self.delivered += 1
        self.latencies.append(latency)
        return latency


def main() -> int:
    options = parse()
    raise_on_signals()
    counts = Counts()
    with ExitStack() as stack:
        postgres, rabbitmq, daemon, queues = start_servers(stack)
        inbox = stack.enter_context(consuming(rabbitmq))
        try:
            relay(postgres, daemon, queues, inbox, counts, options.seconds)
        except KeyboardInterrupt:
            console.print('\n[dim]Interrupted: waiting for what is still under way.[/]')
        await_stragglers(inbox, counts)
        if counts.lost:
            console.print(f'\nWhat mikkood said:\n{escape(daemon.log())}')
    report(counts)
    return 1 if counts.lost else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='scripts/demo', description=__doc__)
    parser.add_argument(
        '--seconds', type=float, default=None, metavar='N', help='end after N seconds (default: at Ctrl-C)'
    )
    return parser.parse_args()


def start_servers(stack: ExitStack) -> tuple[PostgresServer, RabbitServer, Daemon, list[str]]:
    """PostgreSQL with PgQ and mikkoo.sql, its ticker, RabbitMQ, and mikkood between them."""
    with step('PostgreSQL'):
        postgres = stack.enter_context(PostgresServer())
        postgres.create_database(DATABASE)
        postgres.execute('create role demo_relay login in role mikkoo_relay')
        postgres.execute('create role demo_producer login in role mikkoo_producer')
    with step('RabbitMQ'):
        rabbitmq = stack.enter_context(RabbitServer())
        bind_queue(rabbitmq)
    configuration = configure(postgres, rabbitmq)
    queues = [
        settings.get('queue', name) for name, settings in configuration['Application']['workers'].items()
    ]
    with step('pgqd'):
        create_queues(postgres, queues)
        stack.enter_context(Pgqd(postgres, DATABASE, ticker_period=0.1))
    with step('mikkood'):
        daemon = stack.enter_context(Daemon(configuration, postgres))
    return postgres, rabbitmq, daemon, queues


@contextmanager
def step(name: str) -> Iterator[None]:
    start = time.monotonic()
    with console.status(f'Starting {name}'):
        yield
    console.print(f'[green]✓[/] {name:<11}[dim]{time.monotonic() - start:5.1f} s[/]')


def configure(postgres: PostgresServer, rabbitmq: RabbitServer) -> Any:
    """The shipped example configuration with the addresses of our servers."""
    configuration = YAML().load(example_configuration_path().read_text())
    for settings in configuration['Application']['workers'].values():
        settings['postgres_url'] = postgres.url(DATABASE, 'demo_relay')
        settings['rabbitmq']['host'] = rabbitmq.host
        settings['rabbitmq']['port'] = rabbitmq.port
    return configuration


def create_queues(postgres: PostgresServer, queues: list[str]) -> None:
    for name in queues:
        postgres.execute('select pgq.create_queue(%s)', (name,), dbname=DATABASE)
        for key, value in {'ticker_max_lag': '0', 'ticker_idle_period': '1 second'}.items():
            postgres.execute('select pgq.set_queue_config(%s, %s, %s)', (name, key, value), dbname=DATABASE)


def bind_queue(rabbitmq: RabbitServer) -> None:
    with rabbitmq.connect() as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, 'topic', durable=True)
        channel.queue_declare(BOUND_QUEUE, durable=True)
        channel.queue_bind(BOUND_QUEUE, EXCHANGE, 'order.#')


@dataclass(frozen=True)
class Arrival:
    at: float  # monotonic
    routing_key: str
    properties: Any
    body: bytes


Inbox = queue.SimpleQueue[Arrival]


@contextmanager
def consuming(rabbitmq: RabbitServer) -> Iterator[Inbox]:
    """Everything that arrives in the bound queue, read by a thread."""
    inbox: Inbox = queue.SimpleQueue()
    over = threading.Event()

    def read() -> None:
        with rabbitmq.connect() as connection:
            channel = connection.channel()
            for method, properties, body in channel.consume(
                BOUND_QUEUE, auto_ack=True, inactivity_timeout=0.1
            ):
                if over.is_set():
                    return
                if method is not None:
                    inbox.put(Arrival(time.monotonic(), method.routing_key, properties, body))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield inbox
    finally:
        over.set()
        thread.join()


def relay(
    postgres: PostgresServer,
    daemon: Daemon,
    queues: list[str],
    inbox: Inbox,
    counts: Counts,
    seconds: float | None,
) -> None:
    """Insert an event every second and show what arrives meanwhile."""
    until_when = f'for {seconds:g} seconds' if seconds is not None else 'until Ctrl-C'
    console.print(f'\nOne event a second, {until_when}; the latency is from the commit to the delivery.\n')
    connection = postgres.connect(DATABASE, 'demo_producer')
    connection.autocommit = False
    end = time.monotonic() + (seconds if seconds is not None else float('inf'))
    due = time.monotonic()
    try:
        while due < end:
            daemon.check_alive()
            insert(connection, queues[counts.inserted % len(queues)], counts)
            due += INTERVAL
            show_arrivals(inbox, counts, min(due, end))
    finally:
        connection.close()


def insert(connection: psycopg2.extensions.connection, into: str, counts: Counts) -> None:
    """One event, as an application inserts it: with its own data, in one transaction."""
    number = counts.inserted + 1
    payload = json.dumps({'order': number, 'total': round(random.uniform(5, 500), 2)})
    properties = json.dumps({'type': 'order', 'priority': number % 5})
    headers = json.dumps({'customer': random.choice(['Ada', 'Grace', 'Linus', 'Märta'])}, ensure_ascii=False)
    with connection.cursor() as cursor:
        cursor.execute(
            'select mikkoo.insert_event(%s, %s, %s, %s, %s, %s, %s)',
            (into, EXCHANGE, KEYS[number % 3], payload, 'application/json', properties, headers),
        )
    counts.sent[number] = time.monotonic()
    connection.commit()
    counts.inserted = number


def show_arrivals(inbox: Inbox, counts: Counts, deadline: float) -> None:
    """Show messages as they arrive until `deadline` (monotonic)."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            arrival = inbox.get(timeout=left)
        except queue.Empty:
            return
        show(arrival, counts)


def show(arrival: Arrival, counts: Counts) -> None:
    number = json.loads(arrival.body)['order']
    latency = counts.arrived(number, arrival.at)
    took = 'again' if latency is None else f'{latency * 1000:.1f} ms'
    console.print(
        f'[bold]#{number:<4}[/] [cyan]{EXCHANGE}[/] → [cyan]{escape(arrival.routing_key)}[/]  '
        f'{escape(arrival.body.decode())}  [bold green]{took}[/]'
    )
    values = {name: getattr(arrival.properties, name) for name in SHOWN}
    pairs = '  '.join(f'{name}={value}' for name, value in values.items() if value is not None)
    console.print(f'      [dim]{escape(pairs)}[/]')
    headers = '  '.join(f'{name}={value}' for name, value in (arrival.properties.headers or {}).items())
    console.print(f'      [dim]headers: {escape(headers)}[/]')


def await_stragglers(inbox: Inbox, counts: Counts) -> None:
    deadline = time.monotonic() + PATIENCE
    while counts.sent and time.monotonic() < deadline:
        show_arrivals(inbox, counts, min(deadline, time.monotonic() + 0.1))


def report(counts: Counts) -> None:
    console.print()
    table = Table('inserted', 'delivered', 'lost', 'repeated', 'median latency', 'longest')
    ordered = sorted(counts.latencies)
    times = (
        [f'{value * 1000:.1f} ms' for value in (ordered[len(ordered) // 2], ordered[-1])]
        if ordered
        else ['-', '-']
    )
    lost = f'[bold red]{counts.lost}[/]' if counts.lost else '0'
    table.add_row(str(counts.inserted), str(counts.delivered), lost, str(counts.repeated), *times)
    console.print(table)
    console.print(f'inserted {counts.inserted}, delivered {counts.delivered}, lost {counts.lost}')


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (ServerError, AssertionError, psycopg2.Error, AMQPError) as error:
        console.print(f'[bold red]The demo failed:[/] {escape(str(error))}')
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
