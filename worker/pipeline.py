"""Keeps many messages in flight on one link, and learns of each what became of it.

Delivered messages are only counted; failures are kept until `take_failures`. A lost link raises BrokerLost
(a stop Stopping) out of any call; every message that was taken and not judged is then in `unjudged`, to be
sent again. What a closed channel means is left to `publisher`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from mikkoo.common.amqp import Ack, ChannelClosed, Link, Nack, Returned, Signal, Synced
from mikkoo.common.errors import BrokerLost, EventError
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.event import Event, Message
from mikkoo.worker.exchanges import Exchanges, Refusal
from mikkoo.worker.flights import Flight, Flights
from mikkoo.worker.lane import CHUNK_MESSAGES, Lane
from mikkoo.worker.rejected import MOST_ROUNDS, Rejected
from mikkoo.worker.routes import PutBack, Routes
from mikkoo.worker.verdict import Failure, Kind

WAIT_SLICE = 1.0  # seconds between two looks at the clock while nothing happens


class Pipeline:
    """Publishes on one link. `idle` is called with the seconds without progress, about once a second."""

    def __init__(
        self,
        link: Link,
        pulse: Pulse,
        settings: WorkerSettings,
        routes: Routes,
        idle: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._link = link
        self._pulse = pulse
        self._confirm = settings.confirm
        self._window = settings.confirm_window
        self._window_bytes = settings.window_bytes // 2  # the other half is for slices read ahead
        self._confirm_timeout = settings.confirm_timeout
        self._idle = idle
        self._exchanges = Exchanges(self._look_up, settings.retry_delay)
        self._failures: list[Failure] = []
        self._backlog: deque[Flight] = deque()  # taken, to be sent
        self._looked_up: Flight | None = None  # the first of them, while its exchange is asked for
        self._routes = routes
        self._nacked = Rejected(routes)
        self._progress_at = self._answer_due_from = time.monotonic()
        self.delivered = self.returned = self.nacked = self.repeated = self.alarms = 0
        self._was_blocked = False
        self._undelivered = 0
        self.last_delivered: Event | None = None
        self._open_channel()

    @property
    def in_flight(self) -> int:
        return self._outstanding() + len(self._backlog)

    @property
    def waiting_nacked(self) -> int:
        """Messages that the broker rejected and that will be sent again."""
        return len(self._nacked)

    def publish(self, event: Event, message: Message) -> None:
        """Send one message, once there is room. EventError: it cannot be encoded, and was not taken."""
        data = self._encode(message)
        flight = Flight(event, message, len(data))
        if not self._routes.several and message.exchange != self._routes.exchange:
            self._routes.see(message)
        self._start_clocks()
        if self._exchanges.known(message.exchange):
            if self._lane.add(flight, data):
                self._flush_chunk()
            self._make_room()
        else:
            self.resend([flight])

    def resend(self, flights: Iterable[Flight]) -> None:
        """Take and send flights, such as what another link left unjudged."""
        self._start_clocks()
        self._backlog.extend(flights)
        while self._backlog:
            taken = self._next_of_backlog()
            if taken is not None:
                self._send(*taken)
                self._make_room()

    def look(self) -> None:
        """While nothing is in flight: hear the broker. BrokerLost if it is gone."""
        self._absorb()

    def drain(self) -> None:
        """Return when every message is judged."""
        while True:
            self.resend(())
            self._flush()
            self._lane.ask_for_sync()
            if not self.in_flight:
                return
            self._wait()

    def _start_clocks(self) -> None:
        if not self._flights and not self.in_flight:  # until now nothing was due from the broker
            self._progress_at = self._answer_due_from = time.monotonic()

    def take_failures(self) -> list[Failure]:
        """Failures since the last call."""
        failures, self._failures = self._failures, []
        return failures

    def take_put_back(self) -> list[PutBack]:
        """Events since the last call that go back to PgQ, as their queue is full."""
        return self._nacked.take_put_back()

    def unjudged(self) -> list[Flight]:
        """All that was taken and is not judged, in the order of the events."""
        flights = [*self._flights.outstanding(), *self._nacked.held(), *self._backlog]
        return sorted(flights, key=lambda flight: flight.event.id)

    def _isolate(self) -> None:
        """The broker has closed the channel."""
        raise NotImplementedError

    def _open_channel(self) -> None:
        self._flights = (
            Flights()
        )  # where the link is lost meanwhile, those of the old channel are not there twice
        self._lane = Lane(self._link, self._confirm)
        self._flights = self._lane.flights
        self._encode = self._lane.encode

    def _look_up(self, exchange: str) -> Refusal | None:
        while self._link.blocked is not None:  # it would answer only when that is over
            self._wait()
        closed = self._link.exchange_exists(exchange)
        return None if closed is None else Refusal(closed.code, closed.text)

    def _next_of_backlog(self) -> tuple[Flight, bytes] | None:
        """Take the next one, or judge it: refused by its exchange, or too large for this link's frames.

        It leaves the backlog only after the exchange was looked up, which may lose the link.
        """
        flight = self._looked_up = self._backlog[0]
        refusal = self._exchanges.refusal(flight.message.exchange)
        self._looked_up = None
        if not self._backlog or self._backlog[0] is not flight:
            return None  # others came before it, or took it, while an alarm was waited for
        self._backlog.popleft()
        flight.returned = None
        if refusal is not None:
            self._failures.append(Failure(flight.event, Kind.REFUSED, *refusal))
            return None
        try:
            return flight, self._encode(flight.message)
        except EventError as error:
            self._failures.append(Failure(flight.event, Kind.UNTRANSLATABLE, 0, str(error), error.permanent))
            return None

    def _send(self, flight: Flight, data: bytes) -> None:
        if self._lane.add(flight, data):
            self._flush_chunk()

    def _flush_chunk(self) -> None:
        self._flush()
        if self._lane.unsynced >= self._window // 2:
            self._lane.ask_for_sync()

    def _flush(self) -> None:
        """Write the chunk and look, without waiting, at what the broker has said meanwhile."""
        self._lane.write()
        self._absorb()

    def _make_room(self) -> None:
        if self._outstanding() < self._window and self._bytes() < self._window_bytes:
            return
        self._flush()
        self._lane.ask_for_sync()
        # Not only until one fits: room for a chunk keeps the writes large.
        low = max(0, self._window - CHUNK_MESSAGES)
        while self._outstanding() > low or self._bytes() >= self._window_bytes:
            self._wait()

    def _outstanding(self) -> int:
        """What the broker owes an answer for or has rejected. Not the backlog: it waits for this room."""
        return len(self._flights) + len(self._nacked)

    def _bytes(self) -> int:
        return self._flights.bytes + self._nacked.bytes

    def _wait(self) -> None:
        """Wait for news of what is in flight, for a time slice at most."""
        if self._nacked and time.monotonic() >= self._nacked.due:
            self._resend_nacked()
        timeout = WAIT_SLICE
        if self._nacked:
            timeout = min(timeout, max(0.0, self._nacked.due - time.monotonic()))
        self._pulse.wait(self._waits_for(), timeout, read=[self._link.fileno()])
        self._absorb()
        self._check_progress()

    def _waits_for(self) -> str:
        if self._link.blocked is not None:
            return f'the broker, which is blocked: {self._link.blocked}'
        if self._nacked:
            return f'the broker to take {len(self._nacked)} messages that it rejected'
        return f'{len(self._flights)} confirms'

    def _check_progress(self) -> None:
        now = time.monotonic()
        blocked = self._link.blocked is not None
        self.alarms += blocked and not self._was_blocked
        self._was_blocked = blocked
        if now - self._progress_at >= WAIT_SLICE:
            self._idle(now - self._progress_at)
        before, self._undelivered = self._undelivered, self._link.undelivered
        if blocked or self._undelivered < before or not len(self._flights):
            self._answer_due_from = now
        elif now - self._answer_due_from > self._confirm_timeout:
            raise BrokerLost(
                f'no confirm for {self._confirm_timeout:g} s with {len(self._flights)} in flight'
            )

    def _absorb(self) -> None:
        for signal in self._lane.signals():
            if isinstance(signal, ChannelClosed):
                self._isolate()
                return
            self._hear(signal)

    def _hear(self, signal: Signal) -> None:
        if isinstance(signal, Ack):
            self._judged(self._flights.take(signal.tag, signal.multiple))
        elif isinstance(signal, Nack):
            rejected = self._flights.take(signal.tag, signal.multiple)
            if rejected:
                self.nacked += len(rejected)
                self._answer_due_from = time.monotonic()
                self._nacked.add(rejected, self._answer_due_from)
        elif isinstance(signal, Synced):
            self._judged(self._lane.synced())
        elif isinstance(signal, Returned) and not self._flights.mark_returned(*signal):
            raise BrokerLost(
                'it returned a message that is not in flight: '
                f'exchange {signal.exchange!r}, routing key {signal.routing_key!r}',
                provoked=True,
            )

    def _judged(self, flights: list[Flight]) -> None:
        if not flights:  # an answer that was given before: it must not put off the deadline for the others
            return
        self._progress_at = self._answer_due_from = time.monotonic()
        self._nacked.passed(flights, self._progress_at)
        for flight in flights:
            if flight.returned is None:
                self.delivered += 1
                self.last_delivered = flight.event
            else:
                self.returned += 1
                self._failures.append(Failure(flight.event, Kind.RETURNED, *flight.returned))

    def _resend_nacked(self) -> None:
        again, failed = self._nacked.take(time.monotonic())
        self._backlog.extendleft(reversed(again))
        text = f'in {MOST_ROUNDS} sendings, while most others to its exchange were confirmed'
        self._failures += [Failure(flight.event, Kind.NACKED, 0, text) for flight in failed]
        for _ in again:
            if self._backlog:  # a closed channel may have emptied it meanwhile
                taken = self._next_of_backlog()
                if taken is not None:
                    self._send(*taken)
        self._flush()
        self._lane.ask_for_sync()
