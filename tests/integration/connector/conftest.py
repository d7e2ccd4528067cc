"""Services on a virtual host of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mikkoo.connector import Connection, ConsumerThread, MQConnector
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

PROXY_THREADS = ('(_pump)', '(_accept_all)')
PATIENCE = 60.0  # seconds for anything that a broker under load may take its time for


class Stage:
    """A virtual host, services on it, and pika to look at it from outside."""

    def __init__(self, rabbitmq: RabbitServer, vhost: str) -> None:
        self.rabbitmq, self.vhost = rabbitmq, vhost
        self._services: list[MQConnector] = []
        self._threads: list[ConsumerThread] = []
        self._connections: list[Connection] = []

    def config(self, port: int = 0, **given: Any) -> dict[str, Any]:
        users = {'test': {'username': 'guest', 'password': 'guest'}}
        return {'server': self.rabbitmq.host, 'port': port or self.rabbitmq.port, 'users': users, **given}

    def service(self, port: int = 0, **given: Any) -> MQConnector:
        """A service without consumers; it is stopped at the end of the test."""
        made = MQConnector(self.config(port, **given), 'test')
        made.vhost = self.vhost
        self._services.append(made)
        return made

    def connection(self, port: int = 0, **given: Any) -> Connection:
        self._connections.append(self.service(port).create_mq_connection(**given))
        return self._connections[-1]

    def thread(
        self, queue: str, callback: Callable[..., object], port: int = 0, **given: Any
    ) -> ConsumerThread:
        """A consumer that is started and subscribed."""
        heartbeat = given.pop('heartbeat', 60)
        parameters = self.service(port).get_connection_params(heartbeat=heartbeat)
        made = ConsumerThread(parameters, queue, callback, **given)
        self._threads.append(made)
        made.start()
        assert made.wait_ready(PATIENCE), made.exception
        return made

    def fill(self, queue: str, *bodies: bytes, durable: bool | None = False, **properties: Any) -> None:
        """Messages in a queue, which is declared so; `durable` None: it is there."""
        import pika

        with self.rabbitmq.connect(self.vhost) as connection:
            channel = connection.channel()
            if durable is not None:
                channel.queue_declare(queue, durable=durable)
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish('', queue, body, pika.BasicProperties(**properties), mandatory=True)

    def queued(self, queue: str) -> int:
        """Messages that wait; those in hand do not count."""
        with self.rabbitmq.connect(self.vhost) as connection:
            return int(connection.channel().queue_declare(queue, passive=True).method.message_count)

    def exists(self, queue: str) -> bool:
        import pika

        with self.rabbitmq.connect(self.vhost) as connection:
            try:
                connection.channel().queue_declare(queue, passive=True)
            except pika.exceptions.ChannelClosedByBroker:
                return False
        return True

    def take(self, queue: str, count: int) -> list[tuple[Any, Any, bytes]]:
        """`count` messages: method, properties, body; the queue may still have to be made."""
        taken: list[tuple[Any, Any, bytes]] = []
        until(lambda: self.exists(queue), PATIENCE, f'there is a queue {queue}')
        with self.rabbitmq.connect(self.vhost) as connection:
            channel = connection.channel()

            def all_there() -> bool:
                while len(taken) < count:
                    method, properties, body = channel.basic_get(queue, auto_ack=True)
                    if method is None:
                        return False
                    taken.append((method, properties, body))
                return True

            until(all_there, PATIENCE, lambda: f'{count} messages in {queue}, not {len(taken)}')
        return taken

    def settled(self, queue: str) -> None:
        """Wait until nothing waits in the queue and nothing of it is in hand."""

        def empty() -> bool:
            listed = self.rabbitmq.ctl('list_queues', '--vhost', self.vhost, 'name', 'messages')
            return any(line.split('\t') == [queue, '0'] for line in listed.splitlines())

        until(empty, PATIENCE, f'{queue} is settled', 0.2)

    def close(self) -> None:
        for service in self._services:
            service.stop()
        for thread in self._threads:
            thread.join(PATIENCE)
        for connection in self._connections:
            connection.close()


@pytest.fixture
def stage(rabbitmq: RabbitServer, vhost: str) -> Iterator[Stage]:
    """No thread of the connector's is left after the test."""
    before = set(threading.enumerate())
    made = Stage(rabbitmq, vhost)
    try:
        yield made
    finally:
        made.close()

    def left() -> list[str]:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [name for name in names if not name.endswith(PROXY_THREADS)]

    until(lambda: not left(), PATIENCE, lambda: f'no thread is left: {left()}')


@pytest.fixture
def proxy(rabbitmq: RabbitServer, proxy_factory: Callable[[str, int], Proxy]) -> Proxy:
    """Before the broker."""
    return proxy_factory(rabbitmq.host, rabbitmq.port)
