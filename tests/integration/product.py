"""The whole product: a database with pgqd, a virtual host, and mikkood with a file that tests edit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import psycopg2
from pika.exceptions import AMQPError

from mikkoo.supervisor.control import ask
from tests.conftest import Database
from tests.integration import readable
from tests.integration.mikkood import Mikkood, alive
from tests.integration.readable import Program
from tests.servers.pgqd import Pgqd
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

if TYPE_CHECKING:
    from pika.adapters.blocking_connection import BlockingChannel

START = 60.0  # seconds until workers relay
ARRIVAL = 120.0  # seconds until everything has arrived; a few on an idle machine
SAVE = 3 * 1.0  # seconds from a save to its effect: three times what is promised
STOP = 3 * 5.0  # seconds for a graceful stop: three times

Message = tuple[Any, Any, bytes]  # pika's method and properties, and the body


class Product(Mikkood):
    """`workers`, `auditors`: name to settings; `application`: beside them. `save` writes all, `popen` runs.

    `pgqd`: ticks the database. It comes back to a server that was away only after a minute: restart it.
    """

    pgqd: Pgqd

    def __init__(self, folder: Path, database: Database, rabbitmq: RabbitServer, vhost: str) -> None:
        super().__init__(Program(readable.SCRIPT), folder)
        self.database, self.rabbitmq, self.vhost = database, rabbitmq, vhost
        self.workers: dict[str, dict[str, Any]] = {}
        self.auditors: dict[str, dict[str, Any]] = {}
        self.application: dict[str, Any] = {'poll_interval': 0.5}
        self.connection = database.connect()
        self.cursor = self.connection.cursor()
        self.broker = rabbitmq.connect(vhost)
        self.channel: BlockingChannel = self.broker.channel()

    # PostgreSQL

    def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """One statement; once more on a new connection where the server has ended ours."""
        try:
            self.cursor.execute(statement, arguments)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            self.connection.close()
            self.connection = self.database.connect()
            self.cursor = self.connection.cursor()
            self.cursor.execute(statement, arguments)
        return self.cursor.fetchall() if self.cursor.description else []

    def create_queue(self, queue: str) -> None:
        """A PgQ queue, ticked at every look of pgqd, with the consumer registered: nothing is missed."""
        self.sql('select pgq.create_queue(%s)', queue)
        for key, value in (('ticker_max_lag', '0'), ('ticker_idle_period', '1 s')):
            self.sql('select pgq.set_queue_config(%s, %s, %s)', queue, key, value)
        self.sql("select pgq.register_consumer(%s, 'mikkoo')", queue)

    def until_settled(self, timeout: float = ARRIVAL) -> None:
        """Until every event that is committed by now is in a batch that is finished, and no retry waits."""
        since = None  # a retry that was moved back right before that is in a tick after it

        def settled() -> bool:
            nonlocal since
            waits, now = self.sql('select exists (select from pgq.retry_queue), clock_timestamp()')[0]
            since = None if waits else since or now
            [(done,)] = self.sql(
                """select bool_and(sub_batch is null and tick_time > %s) from pgq.subscription
                       join pgq.tick on tick_queue = sub_queue and tick_id = sub_last_tick""",
                since,
            )
            return bool(done)

        until(settled, timeout, lambda: f'every event is settled:\n{self.logged()[-5000:]}', interval=0.1)

    # RabbitMQ

    def reconnect(self) -> None:
        """After a fault that ended our own connection, a new one."""
        self._disconnect()
        self.broker = self.rabbitmq.connect(self.vhost)
        self.channel = self.broker.channel()

    def arrivals(self, queue: str, exchange: str = '', key: str = '#') -> None:
        """A queue in RabbitMQ; with `exchange` a topic exchange, bound to it."""
        self.channel.queue_declare(queue, durable=True)
        if exchange:
            self.channel.exchange_declare(exchange, 'topic', durable=True)
            self.channel.queue_bind(queue, exchange, key)

    def queued(self, queue: str) -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def take(self, queue: str) -> list[Message]:
        """All messages that a queue holds now, acknowledged."""
        taken: list[Message] = []
        count = self.queued(queue)
        if not count:
            return taken
        messages = self.channel.consume(queue, inactivity_timeout=10)
        while len(taken) < count:
            method, properties, body = next(messages)
            assert method is not None, f'{count - len(taken)} of {count} messages do not come'
            taken.append((method, properties, body))
        self.channel.basic_ack(taken[-1][0].delivery_tag, multiple=True)
        self.channel.cancel()
        return taken

    # The configuration

    def worker(self, name: str, **changes: Any) -> None:
        """Settings of a worker that relays the queue of its name; saved by `save`."""
        broker = {'host': self.rabbitmq.host, 'port': self.rabbitmq.port, 'vhost': self.vhost}
        self.workers[name] = {
            'postgres_url': self.database.relay_url,
            'rabbitmq': broker,
            'wait_duration': 1,
            'retry_delay': 1,
            **changes,
        }

    def auditor(self, name: str, *exchanges: str, **changes: Any) -> None:
        """Settings of an auditor; saved by `save`."""
        broker = {'host': self.rabbitmq.host, 'port': self.rabbitmq.port, 'vhost': self.vhost}
        self.auditors[name] = {
            'postgres_url': self.database.auditor_url,
            'rabbitmq': broker,
            'bindings': [{'exchange': exchange} for exchange in exchanges],
            **changes,
        }

    def text(self) -> str:
        """JSON is YAML, and a key a line lets `sed` find it."""
        logging = {
            'formatters': {'plain': {'format': '%(asctime)s %(levelname)s %(processName)s: %(message)s'}},
            'handlers': {
                'file': {'class': 'logging.FileHandler', 'filename': str(self.log), 'formatter': 'plain'}
            },
            'root': {'level': 'DEBUG', 'handlers': ['file']},
        }
        whole = {
            'Application': {'workers': self.workers, 'auditors': self.auditors, **self.application},
            'Logging': logging,
        }
        return orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode()

    def save(self) -> None:
        """By renaming a new file over the old."""
        new = self.path.with_suffix('.new')
        new.write_text(self.text())
        new.replace(self.path)

    # The daemon

    def run(self) -> int:
        """Save, start in the foreground, and wait until every worker relays; the supervisor's pid."""
        self.save()
        process = self.foreground()
        self.until_running()
        return process.pid

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        [control] = (self.folder / 'run').glob('*/control')
        return ask(control, {'command': command, **fields})

    def children(self) -> dict[str, dict[str, Any]]:
        return {child['name']: child for child in self.ask('status')['children']}

    def pids(self) -> dict[str, int]:
        return {name: child['pid'] for name, child in self.children().items()}

    def until_running(self, *names: str, timeout: float = START) -> None:
        """Until these workers and auditors (all, where none is named) run."""

        def running() -> bool:
            states = {name: child['state'] for name, child in self.children().items()}
            return all(states.get(name) == 'RUNNING' for name in names or [*self.workers, *self.auditors])

        until(running, timeout, lambda: f'{names} relay:\n{self.children()}\n{self.logged()}')

    def until_logged(self, text: str, timeout: float = START) -> str:
        """Until a line of the log holds the text; that line."""

        def found() -> list[str]:
            return [line for line in self.logged().splitlines() if text in line]

        return until(found, timeout, lambda: f'{text!r} is logged:\n{self.logged()}')[0]

    def logged(self) -> str:
        return self.log.read_text() if self.log.exists() else ''

    def processes(self) -> list[int]:
        """The pids of all that runs for this configuration, by what it has in its environment."""
        mark = f'MIKKOO_RUNTIME_DIR={self.folder / "run"}'.encode()
        found = []
        for entry in Path('/proc').iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / 'environ').read_bytes().split(b'\0'):
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
        return found

    def close(self) -> None:
        """In order where that works; by force where a test left it hanging."""
        self('stop', '--timeout', f'{STOP:g}')
        for pid in filter(alive, self.processes()):
            os.kill(pid, signal.SIGKILL)
        super().close()
        self.connection.close()
        self._disconnect()

    def _disconnect(self) -> None:
        try:
            if self.broker.is_open:
                self.broker.close()
        except AMQPError:
            pass  # a test has ended it


def bodies(messages: list[Message]) -> list[Any]:
    return [json.loads(body) for _, _, body in messages]
