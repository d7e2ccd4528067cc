"""The connector beside pika and neon-mq-connector 0.10.0: `python -m bench.connector`.

Starts a RabbitMQ of its own. The sides take turns, each in a process of its own: an empty callback with a
manual ack on a queue of 200-byte messages, from the first delivery to the last ack; then publishing to that
queue with a confirm each, and `publish_many`. The same prefetch everywhere: 50, which is neon-mq-connector's
and cannot be changed. That one is installed from PyPI into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from bench.connector_side import BODY, QUEUE
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

PEER = 'neon-mq-connector==0.10.0'
PREFETCH = 50
SIDE = Path(__file__).with_name('connector_side.py')
GOALS = {'consume': 1.5, 'publish': 1.0}  # times pika's rate
PATIENCE = 660.0  # seconds for one run
CONSUME, PUBLISH = ('mikkoo', 'pika', 'neon'), ('mikkoo', 'pika', 'many')


class Bench:
    """What is measured on one broker; `rates` in messages a second, by task and side."""

    def __init__(self, rabbitmq: RabbitServer, peer: Path | None) -> None:
        self._rabbitmq = rabbitmq
        self._peer = peer
        self.rates: dict[tuple[str, str], list[float]] = {}

    def consume(self, side: str, count: int, prefetch: int) -> None:
        self._fill(count)
        self._measure(side, 'consume', count, prefetch)

    def publish(self, side: str, count: int) -> None:
        self._fill(0)
        self._measure(side, 'publish', count, 0)

    def _fill(self, count: int) -> None:
        with self._rabbitmq.connect() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE)
            channel.queue_purge(QUEUE)
            for _ in range(count):
                channel.basic_publish('', QUEUE, BODY)
            until(
                lambda: channel.queue_declare(QUEUE, passive=True).method.message_count == count,
                60,
                'all messages are there',
            )

    def _measure(self, side: str, task: str, count: int, prefetch: int) -> None:
        python = self._peer / 'bin' / 'python' if side == 'neon' and self._peer else sys.executable
        command = [str(python), str(SIDE), side, task, str(self._rabbitmq.port), str(count), str(prefetch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f'{side} {task}: {done.stderr[-2000:]}')
        found = json.loads(done.stdout.splitlines()[-1])
        rate = count / found['seconds']
        self.rates.setdefault((task, side), []).append(rate)
        print(f'{task:8} {side:7} {rate:8,.0f} msg/s {found["cpu"]:6.1f} µs CPU a message', flush=True)

    def ratio(self, task: str) -> float:
        """Mikkoo's median rate to pika's."""
        ours, pikas = (statistics.median(self.rates[task, side]) for side in ('mikkoo', 'pika'))
        return ours / pikas


def install(folder: Path) -> Path:
    """neon-mq-connector in an environment of its own."""
    venv.create(folder, with_pip=True)
    subprocess.run([str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q', PEER], check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--messages', type=int, default=30_000, help='to consume, in each run')
    parser.add_argument('--published', type=int, default=10_000, help='to publish, in each run')
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--prefetch', type=int, default=PREFETCH)
    parser.add_argument('--no-peer', action='store_true', help='leave neon-mq-connector out')
    parser.add_argument('--json', type=Path, help='write the rates there')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, RabbitServer() as rabbitmq:
        bench = Bench(rabbitmq, None if given.no_peer else install(Path(folder, 'peer')))
        for _ in range(given.runs):
            for side in CONSUME:
                if side != 'neon' or not given.no_peer:
                    bench.consume(side, given.messages, given.prefetch)
            for side in PUBLISH:
                bench.publish(side, given.published)
    for (task, side), rates in bench.rates.items():
        print(f'{task:8} {side:7} median {statistics.median(rates):8,.0f} msg/s')
    for task, least in GOALS.items():
        ratio = bench.ratio(task)
        met = 'met' if ratio >= least else 'missed'
        print(f'goal: {task} at least {least:g} times as fast: {ratio:.2f} times pika, {met}')
    if given.json:
        given.json.write_text(
            json.dumps({f'{task} {side}': rates for (task, side), rates in bench.rates.items()})
        )


if __name__ == '__main__':
    main()
