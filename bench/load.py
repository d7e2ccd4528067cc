"""What is relayed, and what a run of it gave: plain records that every benchmark shares."""

from __future__ import annotations

import base64
import json
import random
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

EXCHANGE = 'bench'
ROUTE = 'bench.key'  # a routing key, and the RabbitMQ queue that is bound by it
SMALL = 200  # bytes
PROPERTIES = '{"type": "bench"}'
HEADERS = '{"tenant": "north", "shard": 7}'
OURS, PEER, CEILING = 'mikkoo 4', 'mikkoo 3.0.0', 'bare socket'
MB = 1_000_000  # bytes


def body(size: int, compressible: bool = True) -> str:
    """JSON of so many bytes; what is not compressible lies in PostgreSQL at its full size."""
    room = size - len(json.dumps({'n': 0, 'filler': ''}))
    if room < 0:
        raise ValueError(f'a body has more than {size} bytes')
    noise = b'x' * room if compressible else base64.b64encode(random.Random(0).randbytes(room))
    return json.dumps({'n': 0, 'filler': noise[:room].decode()})


@dataclass(frozen=True)
class Load:
    """So many events of `size` bytes for each route, all of a route in one batch.

    `consumed`: by a bare socket as they come (bench.consumer); else they stay in RabbitMQ's queue.
    `compressible`: by PostgreSQL, see `body`. One worker, or one bare socket, for each route.
    """

    events: int
    size: int = SMALL
    routes: tuple[str, ...] = (ROUTE,)
    confirm: bool = True
    tls: bool = False
    consumed: bool = False
    compressible: bool = True

    @property
    def total(self) -> int:
        return self.events * len(self.routes)

    @property
    def body(self) -> str:
        return body(self.size, self.compressible)


@dataclass(frozen=True)
class Result:
    """One run of one side: over all its workers, or sockets."""

    side: str
    load: Load
    pinned: bool
    seconds: float
    rate: float  # messages a second
    mb: float  # MB of bodies a second
    cpu: float  # microseconds a message
    peak: float  # MB resident, of the largest process

    @classmethod
    def of(cls, side: str, load: Load, pinned: bool, seconds: float, cpu: float, peak: int) -> Result:
        """`cpu` in seconds, `peak` in KiB."""
        rate = load.total / seconds
        megabytes = rate * load.size / MB
        return cls(side, load, pinned, seconds, rate, megabytes, cpu / load.total * 1e6, peak * 1024 / MB)

    def __str__(self) -> str:
        return (
            f'{self.side:12} {self.load.total:9,} of {self.load.size:9,} bytes: {self.seconds:7.2f} s'
            f' {self.rate:8,.0f} msg/s {self.mb:7.1f} MB/s {self.cpu:7.1f} µs CPU/msg {self.peak:6.1f} MB'
        )


def median(results: Iterable[Result], field: Literal['rate', 'mb', 'cpu', 'peak', 'seconds']) -> float:
    return float(statistics.median(getattr(result, field) for result in results))
