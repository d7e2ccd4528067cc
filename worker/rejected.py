"""Messages that the broker rejected (Basic.Nack), to be sent again later. No I/O; the clock is passed in.

A Nack is back-pressure, such as that of a full queue with `overflow: reject-publish`: nobody's failure,
however long it lasts. Only where the broker takes most other messages to the same exchange, time and again,
is the rejected one to blame. Where its route has been full for a while (`routes`), its event is put back.
"""

from __future__ import annotations

from collections import Counter, deque

from mikkoo.common.backoff import Backoff
from mikkoo.worker.flights import Flight
from mikkoo.worker.routes import PutBack, Routes

MOST_ROUNDS = 10  # sendings of a message, all rejected while most others passed, that count as its failure
CALM = 10.0  # seconds without a rejection after which delays are short again


class Rejected:
    """Holds rejected messages until `due`, about half a minute of rounds before any of them is given up."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._put_back: list[PutBack] = []
        self._flights: deque[Flight] = deque()
        self._backoff = Backoff(first=0.1, most=5.0)
        self._passed: Counter[str] = Counter()  # by exchange, since the last round began
        self._refused: Counter[str] = Counter()
        self._last = float('-inf')
        self.due = 0.0  # when to take them, if there are any
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flights: list[Flight], now: float) -> None:
        """Hold what was just rejected, or put it back."""
        for flight in flights:
            self._routes.rejected(flight.message, now)
            put_back = self._routes.put_back(flight, now)
            if put_back is None:
                self._hold(flight, now)
            else:
                self._put_back.append(put_back)

    def _hold(self, flight: Flight, now: float) -> None:
        if not self._flights:
            if now - self._last > CALM:
                self._backoff.reset()
            self.due = now + self._backoff.next()
        full_at = self._routes.full_at(flight.message)
        if now < full_at:
            self.due = min(self.due, full_at)
        self._last = now
        flight.returned = None
        self._flights.append(flight)
        self.bytes += flight.size
        self._refused[flight.message.exchange] += 1

    def passed(self, flights: list[Flight], now: float) -> None:
        """The broker took these; counted only while rejections are about."""
        self._routes.passed(flights, now)
        if self._refused:
            self._passed.update(flight.message.exchange for flight in flights)

    def take(self, now: float) -> tuple[list[Flight], list[Flight]]:
        """Begin a round: what to send again, and what has failed. The rest is put back."""
        again: list[Flight] = []
        failed: list[Flight] = []
        passed, refused = self._passed, self._refused
        for flight in self.clear():
            exchange = flight.message.exchange
            flight.rounds += passed[exchange] > refused[exchange]
            if flight.rounds >= MOST_ROUNDS:
                failed.append(flight)
            elif (put_back := self._routes.put_back(flight, now)) is not None:
                self._put_back.append(put_back)
            else:
                again.append(flight)
        return again, failed

    def take_put_back(self) -> list[PutBack]:
        """What was put back since the last call."""
        put_back, self._put_back = self._put_back, []
        return put_back

    def clear(self) -> list[Flight]:
        """Give up holding them: all, in the order in which they were rejected."""
        flights = list(self._flights)
        self._flights.clear()
        self._passed, self._refused = Counter(), Counter()
        self.bytes = 0
        return flights

    def held(self) -> list[Flight]:
        """All, in the order in which they were rejected."""
        return list(self._flights)
