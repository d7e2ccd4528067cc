"""One side of bench/connector.py in a process of its own, run by path: it imports nothing of this project but
what is installed. `connector_side.py SIDE TASK PORT COUNT PREFETCH`; prints a JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

QUEUE = 'bench'
BODY = b'x' * 200
USERS = {'bench': {'username': 'guest', 'user': 'guest', 'password': 'guest'}}
PATIENCE = 600.0  # seconds

Consume = Callable[[Any, Callable[[Any, Any, Any, bytes], None]], Callable[[], None]]


class Counter:
    """An empty callback with a manual ack; `seconds` and `cpu` from the first message to the last."""

    def __init__(self, count: int) -> None:
        self.left = self.count = count
        self.done = threading.Event()

    def __call__(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if self.left == self.count:
            self.began, self.cpu_began = time.perf_counter(), time.process_time()
        channel.basic_ack(method.delivery_tag)
        self.left -= 1
        if not self.left:
            self.seconds = time.perf_counter() - self.began
            self.cpu = time.process_time() - self.cpu_began
            self.done.set()


def consume_mikkoo(port: int, prefetch: int, counter: Counter) -> None:
    from mikkoo.connector import MQConnector

    service = MQConnector({'server': '127.0.0.1', 'port': port, 'users': USERS}, 'bench')
    service.register_consumer('bench', '/', QUEUE, counter, auto_ack=False, prefetch=prefetch)
    with service:
        counter.done.wait(PATIENCE)


def consume_neon(port: int, prefetch: int, counter: Counter) -> None:
    """Its prefetch is always 50."""
    from neon_mq_connector.connector import MQConnector

    class Service(MQConnector):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__({'server': '127.0.0.1', 'port': port, 'users': USERS}, 'bench')
            self.vhost = '/'

    service = Service()
    service.register_consumer('bench', '/', QUEUE, counter, auto_ack=False)
    service.run_consumers()
    counter.done.wait(PATIENCE)


def consume_pika(port: int, prefetch: int, counter: Counter) -> None:
    channel = pika_channel(port)
    channel.basic_qos(prefetch_count=prefetch)

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        counter(channel, method, properties, body)
        if counter.done.is_set():
            channel.stop_consuming()

    channel.basic_consume(QUEUE, handle)
    channel.start_consuming()


def publish_mikkoo(port: int, count: int) -> float:
    with mikkoo_connection(port) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE)
        began = time.perf_counter()
        for _ in range(count):
            channel.basic_publish('', QUEUE, BODY)
        return time.perf_counter() - began


def publish_many(port: int, count: int) -> float:
    with mikkoo_connection(port) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE)
        began = time.perf_counter()
        channel.publish_many(('', QUEUE, BODY) for _ in range(count))
        return time.perf_counter() - began


def publish_pika(port: int, count: int) -> float:
    channel = pika_channel(port)
    channel.confirm_delivery()
    channel.queue_declare(QUEUE)
    began = time.perf_counter()
    for _ in range(count):
        channel.basic_publish('', QUEUE, BODY)
    return time.perf_counter() - began


def pika_channel(port: int) -> Any:
    import pika

    return pika.BlockingConnection(pika.ConnectionParameters('127.0.0.1', port)).channel()


def mikkoo_connection(port: int) -> Any:
    from mikkoo.connector import Connection, ConnectionParameters, Credentials

    login = Credentials('guest', 'guest')
    return Connection(ConnectionParameters('127.0.0.1', port, credentials=login))


CONSUMERS = {'mikkoo': consume_mikkoo, 'pika': consume_pika, 'neon': consume_neon}
PUBLISHERS = {'mikkoo': publish_mikkoo, 'pika': publish_pika, 'many': publish_many}


def main(side: str, task: str, port: int, count: int, prefetch: int) -> dict[str, float]:
    if task == 'consume':
        counter = Counter(count)
        CONSUMERS[side](port, prefetch, counter)
        return {'seconds': counter.seconds, 'cpu': counter.cpu / count * 1e6}
    cpu = time.process_time()
    seconds = PUBLISHERS[side](port, count)
    return {'seconds': seconds, 'cpu': (time.process_time() - cpu) / count * 1e6}


if __name__ == '__main__':
    print(json.dumps(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))), flush=True)
    sys.stdout.flush()
    import os

    os._exit(0)  # neon-mq-connector's threads would hold the process
