"""A worker or auditor process for tests, without a supervisor: the test holds its pipe's other end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from mikkoo.auditor import main as auditor_main
from mikkoo.common.pipe import Pipe
from mikkoo.common.settings import BrokerSettings, ProcessSettings, Telemetry, WorkerSettings
from mikkoo.worker import main as worker_main
from tests.conftest import Database
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

QUEUE = 'events'
UNTICKED = """
    select exists (select from pgq.event_template as e, (
        select tick_snapshot from pgq.tick join pgq.queue on tick_queue = queue_id
        where queue_name = %s order by tick_id desc limit 1) as last
        where not txid_visible_in_snapshot(e.ev_txid, last.tick_snapshot))
"""
SPAWN = multiprocessing.get_context('spawn')
START_TIMEOUT = 30.0


def enter(settings: ProcessSettings, telemetry: Telemetry, end: socket.socket) -> None:
    run: Any = worker_main.run if isinstance(settings, WorkerSettings) else auditor_main.run
    raise SystemExit(run(settings, telemetry, end))


class Worker:
    """A relay, or an auditor, as a process.

    `states`, `logs`, `recovered` (times): what it has told so far; `numbers`: its last report.
    """

    def __init__(self, settings: ProcessSettings, telemetry: Telemetry | None = None) -> None:
        parent, child = Pipe.pair()
        self.pipe = Pipe(parent)
        self.states: list[tuple[str, str]] = []
        self.logs: list[dict[str, Any]] = []
        self.numbers: dict[str, Any] = {}
        self.recovered = 0
        telemetry = telemetry or Telemetry(levels={'mikkoo': 20})
        self.process = SPAWN.Process(target=enter, args=(settings, telemetry, child))
        self.process.start()
        child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(15)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if error is not None:
            self.hear()
            print('\n'.join(self.log_lines()), *self.states, self.numbers, sep='\n')
        self.pipe.close()

    def hear(self) -> None:
        for message in self.pipe.receive(100_000):
            if message['kind'] == 'state':
                self.states.append((message['state'], message['reason']))
            elif message['kind'] == 'log':
                self.logs.append(message)
            elif message['kind'] == 'report':
                self.numbers = message
            elif message['kind'] == 'recovered':
                self.recovered += 1

    def log_lines(self) -> list[str]:
        self.hear()
        return [str(log.get('message', log)) for log in self.logs]

    def await_state(self, *states: str, timeout: float = START_TIMEOUT) -> tuple[str, str]:
        """Until its state is one of these; (state, reason)."""

        def reached() -> tuple[str, str] | None:
            self.hear()
            assert self.process.is_alive(), f'it ended: {self.process.exitcode}, {self.log_lines()}'
            return self.states[-1] if self.states and self.states[-1][0] in states else None

        return until(reached, timeout, lambda: f'a state in {states}, not {self.states} {self.log_lines()}')  # type: ignore[return-value]

    def await_log(self, text: str, count: int = 1, timeout: float = START_TIMEOUT) -> list[str]:
        """Until `count` log lines hold the text; those lines."""

        def found() -> list[str]:
            lines = [line for line in self.log_lines() if text in line]
            return lines if len(lines) >= count else []

        return until(found, timeout, lambda: f'{count} lines with {text!r} in {self.log_lines()}')

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send a signal and wait for the end; the seconds it took."""
        started = time.monotonic()
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.process.join(60)
        assert self.process.exitcode is not None, 'it does not end'
        return time.monotonic() - started


class Scene:
    """A PgQ queue; in a virtual host an exchange `mikkoo`, bound to the queue `arrivals` by 'good.#'."""

    def __init__(self, database: Database, rabbitmq: RabbitServer, vhost: str) -> None:
        self.database = database
        self.rabbitmq = rabbitmq
        self.vhost = vhost
        self.connection = database.connect()
        self.cursor = self.connection.cursor()
        self.sql('select pgq.create_queue(%s)', QUEUE)
        for key, value in (('ticker_max_lag', '0'), ('ticker_idle_period', '1 s')):
            self.sql('select pgq.set_queue_config(%s, %s, %s)', QUEUE, key, value)
        self.broker = rabbitmq.connect(vhost)
        self.channel = self.broker.channel()
        self.channel.exchange_declare('mikkoo', 'topic', durable=True)
        self.channel.queue_declare('arrivals', durable=True)
        self.channel.queue_bind('arrivals', 'mikkoo', 'good.#')

    def close(self) -> None:
        self.connection.close()
        if self.broker.is_open:
            self.broker.close()

    def settings(self, **changes: Any) -> WorkerSettings:
        made = WorkerSettings(
            name='test',
            queue=QUEUE,
            postgres_url=self.database.relay_url,
            rabbitmq=BrokerSettings(nodes=((self.rabbitmq.host, self.rabbitmq.port),), vhost=self.vhost),
            wait_duration=1.0,
            retry_delay=1.0,
        )
        return replace(made, **changes)

    def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        self.cursor.execute(statement, arguments)
        return self.cursor.fetchall() if self.cursor.description else []

    def register(self, consumer: str = 'mikkoo') -> None:
        self.sql('select pgq.register_consumer(%s, %s)', QUEUE, consumer)

    def insert(
        self, keys: Sequence[str], exchange: str = 'mikkoo', properties: str | None = None
    ) -> list[int]:
        """One event for each routing key, with the body {"n": position}; their ids."""
        return [
            row[0]
            for row in self.sql(
                """select pgq.insert_event(%s, key, format('{"n": %%s}', n), %s, 'application/json', %s, null)
                   from unnest(%s::text[]) with ordinality as given(key, n) order by n""",
                QUEUE, exchange, properties, list(keys),
            )
        ]  # fmt: skip

    def tick(self) -> None:
        self.sql('select pgq.ticker(%s)', QUEUE)

    def queued(self, queue: str = 'arrivals') -> int:
        return int(self.channel.queue_declare(queue, passive=True).method.message_count)

    def settled(self) -> bool:
        """Whether every event up to now is finished by the consumer, and no retry waits or is on its way."""
        row = self.sql(
            """select bool_and(sub_batch is null and sub_last_tick = last)
                   and not exists (select from pgq.retry_queue) from pgq.subscription, lateral (
                   select max(tick_id) as last from pgq.tick where tick_queue = sub_queue) as ticks"""
        )
        # A retry that was just moved back is in no tick yet, and PgQ does not count it as pending.
        return bool(row[0][0]) and self.sql(UNTICKED, QUEUE) == [(False,)]

    def await_settled(self, timeout: float = 60.0) -> None:
        def done() -> bool:
            self.tick()
            return self.settled() and self.sql(
                'select count(*) from pgq.get_consumer_info() where pending_events > 0'
            ) == [(0,)]

        until(done, timeout, 'every event is settled', interval=0.1)

    def await_queued(self, count: int, timeout: float = 60.0) -> None:
        """Tick until the queue `arrivals` holds that many messages. One tick may be too early for PgQ."""

        def reached() -> bool:
            self.tick()
            return self.queued() >= count

        until(reached, timeout, lambda: f'{count} messages arrive, not {self.queued()}')

    def take(self, queue: str = 'arrivals') -> list[tuple[Any, Any, bytes]]:
        """All messages that a queue holds now, acknowledged: (method, properties, body)."""
        taken: list[tuple[Any, Any, bytes]] = []
        count = self.queued(queue)
        if not count:
            return taken
        messages = self.channel.consume(queue, inactivity_timeout=10)
        while len(taken) < count:
            method, properties, body = next(messages)
            assert method is not None, f'{count - len(taken)} of {count} messages do not come'
            taken.append((method, properties, body))
        self.channel.basic_ack(taken[-1][0].delivery_tag, multiple=True)
        self.channel.cancel()  # what came beyond the count goes back
        return taken


def bodies(scene: Scene, queue: str = 'arrivals') -> list[int]:
    """The n of each body that a queue holds, in its order; taken."""
    return [json.loads(body)['n'] for _, _, body in scene.take(queue)]


def peak_memory(worker: Worker) -> int:
    """KiB resident, at most so far."""
    with open(f'/proc/{worker.process.pid}/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM'))


def through(proxy: Proxy, vhost: str) -> BrokerSettings:
    """Settings for a broker behind a proxy."""
    return BrokerSettings(nodes=(('127.0.0.1', proxy.port),), vhost=vhost)
