"""Who relays, and what an event is called: origin, sequence numbers, ids that survive every redelivery."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from uuid import UUID

NAMESPACE = UUID(
    '30dd6d3b-408d-4c43-af5b-74ec3e7a8cfa'
)  # never change it: consumers deduplicate by what it yields
LOOKUP_TIMEOUT = 5.0  # seconds that the lookup of this host's full name may take
NODE_BITS = 10
COUNTER_BITS = 11
VARIANT = {digit: '89ab'[int(digit, 16) & 3] for digit in '0123456789abcdef'}  # RFC 9562 section 4.1


def origin(timeout: float = LOOKUP_TIMEOUT) -> str:
    """This host's fully qualified name; the short one where the resolver takes more than `timeout` seconds.

    The lookup cannot be interrupted, so it has a thread of its own, which is left behind when it hangs.
    """
    found: list[str] = []
    lookup = threading.Thread(target=lambda: found.append(socket.getfqdn()), name='getfqdn', daemon=True)
    lookup.start()
    lookup.join(timeout)
    if not found or found[0].startswith('localhost'):
        return socket.gethostname()
    return found[0]


class Sequence:
    """63-bit integers that sort by time: 42 bits of milliseconds since 1970, 10 of node, 11 of counter.

    They only ever grow in one process, whatever its clock does; more than 2,048 in a millisecond borrow from
    the next. `node` None: a random one, so that two workers rarely share it. `clock`: nanoseconds since 1970.
    """

    def __init__(self, node: int | None = None, clock: Callable[[], int] = time.time_ns) -> None:
        if node is None:
            node = int.from_bytes(os.urandom(2), 'big')
        self._node = (node & (1 << NODE_BITS) - 1) << COUNTER_BITS
        self._clock = clock
        self._millisecond = 0
        self._counter = 0

    def __call__(self) -> int:
        now = self._clock() // 1_000_000
        if now > self._millisecond:
            self._millisecond = now
            self._counter = 0
        else:
            self._counter += 1
            if self._counter >> COUNTER_BITS:
                self._millisecond += 1
                self._counter = 0
        return self._millisecond << NODE_BITS + COUNTER_BITS | self._node | self._counter


def event_ids(database: str, queue: str) -> Callable[[int, int], str]:
    """A function of (ev_id, ev_time in microseconds since 1970) that gives the event's UUIDv5.

    Its name in NAMESPACE is the four values, each on a line: `database`, `queue`, ev_id, microseconds.
    It equals what `uuid.uuid5` gives, at a fraction of the cost: what all events share is hashed once.
    """
    shared = hashlib.sha1(NAMESPACE.bytes + f'{database}\n{queue}\n'.encode(), usedforsecurity=False)

    def event_id(number: int, microseconds: int) -> str:
        digest = shared.copy()
        digest.update(b'%d\n%d' % (number, microseconds))
        text = digest.hexdigest()
        return f'{text[:8]}-{text[8:12]}-5{text[13:16]}-{VARIANT[text[16]]}{text[17:20]}-{text[20:32]}'

    return event_id
