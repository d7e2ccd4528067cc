"""Takes messages off a queue as fast as Python can, on a bare socket and without acks.

`python -m bench.consumer PORT QUEUE COUNT` says `ready` once it consumes, ends after COUNT messages and
prints JSON: `marks`, the monotonic times of the first message and of every `--mark`th. With `--arrivals`,
too, for each message the time of day in seconds at which it was read, and its body. It consumes until its
standard input ends; a message more than COUNT is an error.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from dataclasses import dataclass, field

from pamqp import commands

from bench.wire import Link

HEADER, BODY = 2, 3  # types of frames; 1 is a method
FRAME = struct.Struct('>BHI')  # type, channel, size; AMQP 0-9-1 section 4.2.3
TAG = 'bench'
FRAME_END = 1  # byte
METHOD_ID = struct.Struct('>HH')  # class, method
CANCEL_OK = (60, 31)
BODY_SIZE = struct.Struct('>4xQ')  # class and weight are before it in a content header, section 4.2.6.1


@dataclass
class Deliveries:
    """Finds the messages in the stream. `bodies`: of the whole ones, where they are kept.

    `ended`: the broker has said that no more will come.
    """

    keep: bool = False
    count: int = 0
    ended: bool = False
    bodies: list[bytes] = field(default_factory=list)
    _left: int = 0  # bytes of the message's body that are still to come
    _body: bytes = b''

    def hear(self, data: bytes) -> bytes:
        """Take the whole frames; the rest of the bytes."""
        position, end = 0, len(data)
        while end - position >= FRAME.size:
            kind, _, size = FRAME.unpack_from(data, position)
            start = position + FRAME.size
            if start + size + FRAME_END > end:
                break
            position = start + size + FRAME_END
            if kind == HEADER:
                (self._left,) = BODY_SIZE.unpack_from(data, start)
                if not self._left:
                    self._take(b'', 0)
            elif kind == BODY:
                self._take(data[start : start + size] if self.keep else b'', size)
            elif METHOD_ID.unpack_from(data, start) == CANCEL_OK:
                self.ended = True
        return data[position:]

    def _take(self, piece: bytes, size: int) -> None:
        self._left -= size
        self._body += piece
        if not self._left:
            self.count += 1
            if self.keep:
                self.bodies.append(self._body)
                self._body = b''


def consume(link: Link, queue: str) -> None:
    link.say(commands.Basic.Consume(queue=queue, consumer_tag=TAG, no_ack=True))
    link.expect('Basic.ConsumeOk')


def finish(link: Link, deliveries: Deliveries, rest: bytes) -> None:
    """Cancel, and take what was still on its way."""
    link.say(commands.Basic.Cancel(consumer_tag=TAG))
    while not deliveries.ended:
        rest = deliveries.hear(rest + link.receive())
    link.close()


def main() -> None:
    parser = argparse.ArgumentParser(description='Takes messages off a queue.')
    parser.add_argument('port', type=int)
    parser.add_argument('queue')
    parser.add_argument('count', type=int)
    parser.add_argument('--mark', type=int, default=1_000_000, help='messages (default %(default)s)')
    parser.add_argument('--arrivals', action='store_true', help='also when each came, and its body')
    options = parser.parse_args()
    link, deliveries = Link(options.port, silence=None), Deliveries(options.arrivals)
    consume(link, options.queue)
    print('ready', flush=True)
    marks: list[float] = []
    arrivals: list[tuple[float, str]] = []
    rest = link.rest
    while deliveries.count < options.count:
        data = link.receive()
        clock, day = time.monotonic(), time.time()
        rest = deliveries.hear(rest + data)
        while deliveries.count and deliveries.count >= len(marks) * options.mark:
            marks.append(clock)
        arrivals += ((day, one.decode()) for one in deliveries.bodies)
        deliveries.bodies.clear()
    sys.stdin.read()
    finish(link, deliveries, rest)
    if deliveries.count > options.count:
        raise RuntimeError(f'{deliveries.count} messages where {options.count} were expected')
    print(json.dumps({'marks': marks, 'arrivals': arrivals}))


if __name__ == '__main__':
    main()
