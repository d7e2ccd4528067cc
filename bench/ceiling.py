"""What the broker takes: ready-made frames on a bare socket, confirms in flight, and nothing else.

`python -m bench.ceiling PORT COUNT` publishes COUNT copies of the very bytes that the relay sends for the
benchmarks' event, and prints JSON: `started` and `ended` by the monotonic clock, from the first write to the
last confirm, `cpu` seconds for that and the `peak` KiB of this process. With `--wait` it says `ready` and
begins with the next line that it reads, so that many can begin together. Without confirms it ends with a
round trip.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
from datetime import UTC, datetime

from pamqp import commands

from bench.load import EXCHANGE, HEADERS, PROPERTIES, ROUTE, SMALL, body
from bench.sides import usage_of
from bench.wire import CHANNEL, FRAME_MAX, Link
from mikkoo.worker.event import Event
from mikkoo.worker.frames import encoder
from mikkoo.worker.translate import Translator

CHUNK, CHUNK_BYTES = 64, 256 * 1024  # messages, or bytes, in a write
ACK = struct.Struct('>BHIHHQBB')  # a whole Basic.Ack frame, AMQP 0-9-1 section 1.8.3.13
BASIC_ACK = (60, 80)


class Confirms:
    """Counts the messages that the broker has confirmed."""

    def __init__(self) -> None:
        self._all_up_to = 0
        self._single: set[int] = set()

    def hear(self, data: bytes) -> bytes:
        """Take the whole acks from the stream; the rest of the bytes."""
        whole = len(data) // ACK.size * ACK.size
        for _, _, _, class_id, method_id, tag, multiple, _ in ACK.iter_unpack(data[:whole]):
            if (class_id, method_id) != BASIC_ACK:
                raise RuntimeError(f'not an ack: class {class_id} method {method_id}')
            if multiple:
                self._all_up_to = max(tag, self._all_up_to)
                self._single = {one for one in self._single if one > tag}
            else:
                self._single.add(tag)
        return data[whole:]

    @property
    def count(self) -> int:
        return self._all_up_to + len(self._single)


def publish(link: Link, message: bytes, count: int, window: int) -> None:
    """Return when so many copies are confirmed, `window` of them in flight at most."""
    each = max(1, min(CHUNK, CHUNK_BYTES // len(message), window))
    chunk, sent, confirms = message * each, 0, Confirms()
    while confirms.count < count:
        size = min(each, count - sent)
        if size and sent + size - confirms.count <= window:
            link.send(chunk if size == each else message * size)
            sent += size
        else:
            link.rest = confirms.hear(link.rest + link.receive())


def publish_unconfirmed(link: Link, message: bytes, count: int) -> None:
    """Return when the broker has answered a question asked after so many copies."""
    each = max(1, min(CHUNK, CHUNK_BYTES // len(message)))
    for sent in range(0, count, each):
        link.send(message * min(each, count - sent))
    link.say(commands.Basic.Qos(prefetch_count=1))
    link.expect('Basic.QosOk')


def message(routing_key: str, size: int) -> bytes:
    """The frames that the relay sends for an event with a body of so many bytes."""
    translate = Translator(database='bench', queue='bench', origin='bench.example.org')
    event = Event(
        id=1_000_000, time=datetime(2026, 1, 1, tzinfo=UTC), txid=1_000_000, retry=None, type=routing_key,
        data=body(size), extra1=EXCHANGE, extra2='application/json', extra3=PROPERTIES, extra4=HEADERS,
    )  # fmt: skip
    return encoder(CHANNEL, FRAME_MAX)(translate(event))


def main() -> None:
    parser = argparse.ArgumentParser(description='What the broker takes from a bare socket.')
    parser.add_argument('port', type=int)
    parser.add_argument('count', type=int)
    parser.add_argument('--route', default=ROUTE, help='routing key (default %(default)s)')
    parser.add_argument('--size', type=int, default=SMALL, help='bytes of a body (default %(default)s)')
    parser.add_argument('--window', type=int, default=1_000, help='in flight (default %(default)s)')
    parser.add_argument('--no-confirm', action='store_true', help='without publisher confirms')
    parser.add_argument('--authority', help='PEM file: connect by TLS')
    parser.add_argument('--wait', action='store_true', help='begin with the next line on standard input')
    options = parser.parse_args()
    frames = message(options.route, options.size)
    link = Link(options.port, options.authority)
    if not options.no_confirm:
        link.say(commands.Confirm.Select())
        link.expect('Confirm.SelectOk')
    if options.wait:
        print('ready', flush=True)
        sys.stdin.readline()
    started, used = time.monotonic(), time.process_time()
    if options.no_confirm:
        publish_unconfirmed(link, frames, options.count)
    else:
        publish(link, frames, options.count, options.window)
    ended, cpu = time.monotonic(), time.process_time() - used
    link.close()
    usage = usage_of(os.getpid())
    assert usage is not None
    print(json.dumps({'started': started, 'ended': ended, 'cpu': cpu, 'peak': usage.peak}))


if __name__ == '__main__':
    main()
