"""One channel of a publisher: the flights on it, what waits to be written, the round trips. Never waits."""

from __future__ import annotations

from collections import deque

from mikkoo.common.amqp import Link, Signal
from mikkoo.worker.flights import Flight, Flights
from mikkoo.worker.frames import encoder

CHUNK_MESSAGES = 32  # in one write: fewer system calls, acks in bulk; 64 left the broker idle at times
CHUNK_BYTES = 64 * 1024


class Lane:
    """`flights`: sent and not judged, by delivery tag. `encode`: a Message to bytes for this channel."""

    def __init__(self, link: Link, confirm: bool) -> None:
        self._channel = link.publisher_channel(confirm=confirm)
        self._confirm = confirm
        self.encode = encoder(self._channel.number, link.frame_max)
        self.flights = Flights()
        self._chunk: list[bytes] = []
        self._chunk_bytes = 0
        self._sync_marks: deque[int] = deque()  # the last tag before each round trip that was asked for
        self._synced_tag = 0

    @property
    def unsynced(self) -> int:
        """Messages since the last round trip was asked for."""
        return self.flights.last_tag - self._synced_tag

    def add(self, flight: Flight, data: bytes) -> bool:
        """Take a message; True: it is time to write."""
        self.flights.add(flight)
        self._chunk.append(data)
        self._chunk_bytes += len(data)
        return len(self._chunk) >= CHUNK_MESSAGES or self._chunk_bytes >= CHUNK_BYTES

    def write(self) -> None:
        """Send what was taken. Raises BrokerLost."""
        if self._chunk:
            chunk, self._chunk, self._chunk_bytes = b''.join(self._chunk), [], 0
            self._channel.send(chunk)

    def ask_for_sync(self) -> None:
        """Without confirms: a round trip, whose answer follows the Return of all unroutable before it."""
        if not self._confirm and self.unsynced:
            self.write()
            self._synced_tag = self.flights.last_tag
            self._sync_marks.append(self._synced_tag)
            self._channel.sync()

    def synced(self) -> list[Flight]:
        """The answer to the oldest round trip: the flights before it."""
        return self.flights.take(self._sync_marks.popleft(), True)

    def signals(self) -> list[Signal]:
        """What arrived since the last call. Raises BrokerLost."""
        return self._channel.signals()
