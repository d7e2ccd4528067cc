"""The relay at work on throwaway servers: one event a second into PostgreSQL, one message out of RabbitMQ."""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg2
from pika.exceptions import AMQPError
from rich.markup import escape
from rich.table import Table

from mikkoo.connector import ConnectionParameters, ConsumerThread, Credentials
from scripts.demo_stage import BOUND_QUEUE, DATABASE, EXCHANGE, PRODUCER, Stage, console, stage
from tests.servers.process import ServerError, raise_on_signals

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from tests.servers.rabbitmq import RabbitServer

INTERVAL = 1.0  # seconds between events
PATIENCE = 30.0  # seconds that stragglers get at the end
KEYS = ('order.created', 'order.paid', 'order.shipped')
CUSTOMERS = ('Ada', 'Grace', 'Linus', 'Märta')
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


@dataclass(frozen=True)
class Arrival:
    """A message from the bound queue. `at`: when, on the monotonic clock."""

    at: float
    routing_key: str
    properties: Any
    body: bytes


Inbox = queue.SimpleQueue[Arrival]


@dataclass
class Counts:
    """What went in and what came out. `waiting`: event number to the monotonic time of its commit."""

    inserted: int = 0
    repeated: int = 0
    latencies: list[float] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)

    def arrived(self, number: int, at: float) -> float | None:
        """The latency in seconds of a message, or None if it had arrived before."""
        if number not in self.waiting:
            self.repeated += 1
            return None
        self.latencies.append(at - self.waiting.pop(number))
        return self.latencies[-1]


def main() -> int:
    seconds = parse().seconds
    raise_on_signals()
    counts = Counts()
    with stage() as servers, consuming(servers.rabbitmq) as inbox:
        try:
            relay(servers, inbox, counts, seconds)
        except KeyboardInterrupt:
            console.print('\n[dim]Interrupted: waiting for what is still under way.[/]')
        await_stragglers(inbox, counts)
        if counts.waiting:
            console.print(f'\nWhat mikkood said:\n{escape(servers.daemon.log())}')
    report(counts)
    return 1 if counts.waiting else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='scripts/demo', description=__doc__)
    parser.add_argument('--seconds', type=float, metavar='N', help='end after N seconds (default: at Ctrl-C)')
    return parser.parse_args()


@contextmanager
def consuming(rabbitmq: RabbitServer) -> Iterator[Inbox]:
    """Everything that arrives in the bound queue, read by a thread."""
    inbox: Inbox = queue.SimpleQueue()

    def arrived(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        inbox.put(Arrival(time.monotonic(), method.routing_key, properties, body))

    login = Credentials('guest', 'guest')
    place = ConnectionParameters(rabbitmq.host, rabbitmq.port, credentials=login)
    reader = ConsumerThread(place, BOUND_QUEUE, arrived)
    reader.start()
    try:
        yield inbox
    finally:
        reader.join()


def relay(servers: Stage, inbox: Inbox, counts: Counts, seconds: float | None) -> None:
    """Insert an event every second and show what arrives meanwhile."""
    until_when = f'for {seconds:g} seconds' if seconds is not None else 'until Ctrl-C'
    console.print(f'\nOne event a second, {until_when}; the latency is from the commit to the delivery.\n')
    connection = servers.postgres.connect(DATABASE, PRODUCER)
    connection.autocommit = False
    due = time.monotonic()
    end = due + (seconds if seconds is not None else float('inf'))
    try:
        while due < end:
            servers.daemon.check_alive()
            insert(connection, servers.queues[counts.inserted % len(servers.queues)], counts)
            due += INTERVAL
            show_arrivals(inbox, counts, min(due, end))
    finally:
        connection.close()


def insert(connection: Connection, into: str, counts: Counts) -> None:
    """One event, as an application inserts it: in the transaction of its own data."""
    number = counts.inserted + 1
    payload = json.dumps({'order': number, 'total': round(random.uniform(5, 500), 2)})
    properties = json.dumps({'type': 'order', 'priority': number % 5})
    headers = json.dumps({'customer': random.choice(CUSTOMERS)})
    with connection.cursor() as cursor:
        cursor.execute(
            'select mikkoo.insert_event(%s, %s, %s, %s, %s, %s, %s)',
            (into, EXCHANGE, KEYS[number % 3], payload, 'application/json', properties, headers),
        )
    counts.waiting[number] = time.monotonic()
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
    properties = {name: getattr(arrival.properties, name) for name in SHOWN}
    console.print(
        f'[bold]#{number:<4}[/] [cyan]{EXCHANGE}[/] → [cyan]{escape(arrival.routing_key)}[/]  '
        f'{escape(arrival.body.decode())}  [bold green]{took}[/]\n'
        f'      [dim]{escape(pairs(properties))}[/]\n'
        f'      [dim]headers: {escape(pairs(arrival.properties.headers or {}))}[/]'
    )


def pairs(values: dict[str, Any]) -> str:
    return '  '.join(f'{name}={value}' for name, value in values.items() if value is not None)


def await_stragglers(inbox: Inbox, counts: Counts) -> None:
    deadline = time.monotonic() + PATIENCE
    while counts.waiting and time.monotonic() < deadline:
        show_arrivals(inbox, counts, min(deadline, time.monotonic() + 0.1))


def report(counts: Counts) -> None:
    numbers = {
        'inserted': counts.inserted,
        'delivered': len(counts.latencies),
        'lost': len(counts.waiting),
        'repeated': counts.repeated,
    }
    times = {'median latency': median, 'longest latency': max} if counts.latencies else {}
    table = Table(*numbers, *times)
    table.add_row(
        *(f'[bold red]{n}[/]' if n and name == 'lost' else str(n) for name, n in numbers.items()),
        *(f'{of(counts.latencies) * 1000:.1f} ms' for of in times.values()),
    )
    console.print('', table)
    console.print(', '.join(f'{name} {number}' for name, number in numbers.items()))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (ServerError, AssertionError, psycopg2.Error, AMQPError) as error:
        console.print(f'[bold red]The demo failed:[/] {escape(str(error))}')
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
