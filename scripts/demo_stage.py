"""The demo's stage: PostgreSQL with PgQ, its ticker, RabbitMQ, and mikkood between them, all throwaway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from mikkoo.common.resources import example_configuration_path
from mikkoo.supervisor.places import RUNTIME_VARIABLE
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.process import Server
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

DATABASE, EXCHANGE, BOUND_QUEUE = 'demo', 'orders', 'demo'
RELAY, PRODUCER = 'demo_relay', 'demo_producer'  # login roles with the rights that mikkoo.sql gives, no more
TICKER_PERIOD = 0.1  # seconds
READY_TIMEOUT = 30.0  # seconds until mikkood has registered its consumers

console = Console(highlight=False, soft_wrap=True)


class Daemon(Server):
    """`mikkood start -f`, ready once its workers have registered with PgQ."""

    name = 'mikkood'

    def __init__(self, configuration: Any, postgres: PostgresServer) -> None:
        super().__init__()
        self._file, self._postgres = self.folder / 'mikkoo.yml', postgres
        with self._file.open('w') as file:
            YAML().dump(configuration, file)

    def _launch(self) -> subprocess.Popen[bytes]:
        program = Path(sys.executable).with_name('mikkood')
        environment = {**os.environ, RUNTIME_VARIABLE: str(self.folder)}
        return self._spawn([str(program), '-c', str(self._file), 'start', '-f'], environment)

    def _await_ready(self) -> None:
        until(self._registered, READY_TIMEOUT, lambda: f'mikkood registers its consumers:\n{self.log()}')

    def _registered(self) -> bool:
        self.check_alive()
        sql = (
            'select 1 from pgq.queue left join pgq.subscription on sub_queue = queue_id where sub_id is null'
        )
        return not self._postgres.execute(sql, dbname=DATABASE)


@dataclass(frozen=True)
class Stage:
    """What runs, and the PgQ queues that the daemon relays."""

    postgres: PostgresServer
    rabbitmq: RabbitServer
    daemon: Daemon
    queues: list[str]


@contextmanager
def stage() -> Iterator[Stage]:
    """Start everything, saying how long each took; stop everything at the end."""
    with ExitStack() as stack:
        with step('PostgreSQL'):
            postgres = stack.enter_context(PostgresServer())
            create_database(postgres)
        with step('RabbitMQ'):
            rabbitmq = stack.enter_context(RabbitServer())
            bind_queue(rabbitmq)
        configuration = configure(postgres, rabbitmq)
        workers = configuration['Application']['workers']
        queues = [settings.get('queue', name) for name, settings in workers.items()]
        with step('pgqd'):
            create_queues(postgres, queues)
            stack.enter_context(Pgqd(postgres, DATABASE, TICKER_PERIOD))
        with step('mikkood'):
            daemon = stack.enter_context(Daemon(configuration, postgres))
        yield Stage(postgres, rabbitmq, daemon, queues)


@contextmanager
def step(name: str) -> Iterator[None]:
    start = time.monotonic()
    with console.status(f'Starting {name}'):
        yield
    console.print(f'[green]✓[/] {name:<11}[dim]{time.monotonic() - start:5.1f} s[/]')


def create_database(postgres: PostgresServer) -> None:
    """A database with PgQ, mikkoo.sql and a login for each of its two roles."""
    postgres.create_database(DATABASE)
    postgres.execute(f'create role {RELAY} login in role mikkoo_relay')
    postgres.execute(f'create role {PRODUCER} login in role mikkoo_producer')


def create_queues(postgres: PostgresServer, queues: list[str]) -> None:
    """Queues that tick as soon as the ticker looks, also where it missed an event that was committed late."""
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


def configure(postgres: PostgresServer, rabbitmq: RabbitServer) -> Any:
    """The shipped example configuration with the addresses of our servers."""
    configuration = YAML().load(example_configuration_path())
    for settings in configuration['Application']['workers'].values():
        settings['postgres_url'] = postgres.url(DATABASE, RELAY)
        settings['rabbitmq'].update(host=rabbitmq.host, port=rabbitmq.port)
    return configuration
