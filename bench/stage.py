"""Where the benchmarks run: a PostgreSQL (fsync on) and a RabbitMQ of their own, and what they are asked."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.load import EXCHANGE, HEADERS, PROPERTIES, ROUTE
from bench.sides import CONSUMER, Side, auditing, configuration, family, ours
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer

DATABASE = 'bench'
INSERT = """
    select count(pgq.insert_event(%s, %s, %s, %s, 'application/json', %s, %s)) from generate_series(1, %s)
"""


class Stage:
    """The servers. A route is a RabbitMQ queue and the routing key that leads to it."""

    def __init__(self, postgres: PostgresServer, rabbitmq: RabbitServer, folder: Path) -> None:
        self.postgres, self.rabbitmq = postgres, rabbitmq
        self.pinned_now = False
        self._folder = folder
        self._url = postgres.create_database(DATABASE)
        self._connection = postgres.connect(DATABASE)
        self._cursor = self._connection.cursor()
        self._broker = rabbitmq.connect()
        self._channel = self._broker.channel()
        self._channel.exchange_declare(EXCHANGE, 'topic', durable=True)
        self.route(ROUTE)

    def close(self) -> None:
        self._broker.close()
        self._connection.close()

    def route(self, name: str, key: str | None = None, **arguments: str) -> None:
        """Make a durable queue, bound by its name or by `key`; `arguments` with '_' for '-'."""
        given = {key.replace('_', '-'): value for key, value in arguments.items()}
        self._channel.queue_declare(name, durable=True, arguments=given)
        self._channel.queue_bind(name, EXCHANGE, key or name)

    def purge(self, route: str) -> None:
        self._channel.queue_purge(route)

    def queued(self, route: str) -> int:
        return int(self._channel.queue_declare(route, passive=True).method.message_count)

    def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row."""
        self._cursor.execute(sql, arguments)
        row = self._cursor.fetchone() if self._cursor.description else None
        return row[0] if row else None

    def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        self._cursor.execute(sql, arguments)
        return self._cursor.fetchall()

    @contextmanager
    def queues(self, count: int = 1, ticks_at_once: bool = True) -> Iterator[list[str]]:
        """New PgQ queues with a consumer each. `ticks_at_once`: when asked; else by PgQ's defaults."""
        names = [f'bench_{time.time_ns()}' for _ in range(count)]
        for name in names:
            self.value('select pgq.create_queue(%s)', name)
            if ticks_at_once:
                self.value("select pgq.set_queue_config(%s, 'ticker_max_lag', '0')", name)
            self.value('select pgq.register_consumer(%s, %s)', name, CONSUMER)
        yield names
        for name in names:
            self.value('select pgq.drop_queue(%s, true)', name)

    def insert(self, queue: str, route: str, body: str, events: int) -> None:
        """In one transaction."""
        self.value(INSERT, queue, route, body, EXCHANGE, PROPERTIES, HEADERS, events)

    def tick(self, queue: str) -> int:
        return int(self.value('select pgq.ticker(%s)', queue))

    def last_tick(self, queue: str) -> int:
        """The one up to which the relay has finished."""
        return int(self.value('select last_tick from pgq.get_consumer_info(%s, %s)', queue, CONSUMER))

    def has_batch(self, queue: str) -> bool:
        """Whether the relay has one open."""
        sql = 'select current_batch is not null from pgq.get_consumer_info(%s, %s)'
        return bool(self.value(sql, queue, CONSUMER))

    def side(
        self,
        name: str,
        command: Sequence[str],
        queues: Sequence[str],
        confirm: bool = True,
        tls: bool = False,
    ) -> Side:
        """A relay of these queues, to be entered."""
        rabbitmq: dict[str, object] = {'port': self.rabbitmq.port}
        if tls:
            options = {'ca_certs': self.rabbitmq.ca_file}
            rabbitmq = {'port': self.rabbitmq.tls_port, 'ssl_options': options}
        return Side(name, command, self._new_folder(), configuration(queues, self._url, rabbitmq, confirm))

    def auditor(self, name: str, routing_key: str, **options: object) -> Side:
        """An auditor of what goes to the exchange with this routing key, to be entered."""
        bindings = [{'exchange': EXCHANGE, 'routing_key': routing_key}]
        rabbitmq = {'port': self.rabbitmq.port}
        text = auditing(name, self._url, rabbitmq, bindings=bindings, **options)
        return Side(name, ours(), self._new_folder(), text)

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """RabbitMQ has the last core to itself; PostgreSQL, this process and what it starts the others."""
        cores = os.sched_getaffinity(0)
        last = max(cores)
        others = cores - {last}
        if not others:
            raise SystemExit('--pin needs two cores')
        self._place({last}, others)
        self.pinned_now = True
        try:
            yield
        finally:
            self._place(cores, cores)
            self.pinned_now = False

    def _place(self, brokers: set[int], others: set[int]) -> None:
        os.sched_setaffinity(0, others)
        # One scheduler for each core: two on one get in each other's way.
        self.rabbitmq.ctl('eval', f'erlang:system_flag(schedulers_online, {min(2, len(brokers))}).')
        for server, cores in ((self.rabbitmq, brokers), (self.postgres, others)):
            for pid in family(server.pid):
                for thread in Path(f'/proc/{pid}/task').iterdir():
                    os.sched_setaffinity(int(thread.name), cores)


def wait(side: Side, condition: Callable[[], bool], patience: float, interval: float = 0.02) -> None:
    """Poll until it is true. RuntimeError if the relay ends before, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        side.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f'{side.name} has not relayed its events within {patience:g} s')
        time.sleep(interval)


@contextmanager
def stage(tls: bool = False, **settings: str) -> Iterator[Stage]:
    """Servers for the time of the benchmark. `settings`: further ones of PostgreSQL."""
    with (
        tempfile.TemporaryDirectory(prefix='mikkoo-bench-') as folder,
        RabbitServer(tls=tls) as rabbitmq,
        PostgresServer(fsync=True, **settings) as postgres,
    ):
        made = Stage(postgres, rabbitmq, Path(folder))
        try:
            yield made
        finally:
            made.close()
