"""Routes whose queues are full, so that what the broker rejects for one does not hold up the others.

A route is an exchange, or a queue where the exchange is the default one. No I/O; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mikkoo.worker.event import Event, Message
from mikkoo.worker.flights import Flight

FULL_AFTER = 5.0  # seconds of rejections until a route's events are put back
PERIOD = 5.0  # seconds over which rejections are compared with confirms
CALM = 10.0  # seconds without a rejection after which a confirm shows that it is over
FORGOTTEN = 600.0  # seconds after which an old rejection tells nothing of the present
MOST_DELAY = 300.0  # seconds until an event that was put back is due, at most
NAMED = 3  # routes that a text names

Route = tuple[str, str]


class PutBack(NamedTuple):
    """An event that goes back to PgQ for so many seconds, without counting as an attempt."""

    event: Event
    delay: float


def route_of(message: Message) -> Route:
    """The exchange and ''; for the default exchange '' and the queue's name, which is the routing key."""
    return message.exchange, '' if message.exchange else message.routing_key


class Routes:
    """What the process knows of its routes. `several`: it has seen messages for more than one.

    `least_delay`: seconds; `may_put_back`: whether PgQ takes this event back without counting.
    """

    def __init__(self, least_delay: float, may_put_back: Callable[[Event], bool]) -> None:
        self._least_delay = least_delay
        self._may_put_back = may_put_back
        self._first: Route | None = None
        self.exchange: str | None = None  # the one of the first message, unless it is the default exchange
        self._rejecting: dict[Route, _Rejecting] = {}
        self.several = False

    def see(self, message: Message) -> None:
        """A message is on its way; need not be called for `exchange`, or once there are `several`."""
        route = route_of(message)
        if self._first is None:
            self._first = route
            self.exchange = message.exchange or None
        self.several = self.several or route != self._first

    def rejected(self, message: Message, now: float) -> None:
        """The broker rejected it."""
        route = route_of(message)
        state = self._rejecting.get(route)
        if state is None or now - state.last > FORGOTTEN:
            self._forget(now)
            state = self._rejecting[route] = _Rejecting(now)
        state.roll(now)
        state.refused += 1
        state.last = now

    def _forget(self, now: float) -> None:
        """Routes may be many, and some are never heard of again."""
        old = [route for route, state in self._rejecting.items() if now - state.last > FORGOTTEN]
        for route in old:
            del self._rejecting[route]

    def passed(self, flights: Iterable[Flight], now: float) -> None:
        """The broker took these."""
        if not self._rejecting:
            return
        for flight in flights:
            route = route_of(flight.message)
            state = self._rejecting.get(route)
            if state is not None:
                state.roll(now)
                state.passed += 1
                state.taken = now
                if now - state.last >= CALM:
                    del self._rejecting[route]

    def put_back(self, flight: Flight, now: float) -> PutBack | None:
        """A rejected message: what to do with its event now, or None: keep it, to be sent again.

        Where there is one route only, nothing else would gain, and the order would be lost.
        """
        state = self._rejecting.get(route_of(flight.message))
        if state is None or not self.several:
            return None
        state.roll(now)
        if now - state.since < FULL_AFTER or not self._may_put_back(flight.event):
            return None
        stuck_for = now - max(state.since, state.taken)
        return PutBack(flight.event, max(self._least_delay, min(MOST_DELAY, stuck_for)))

    def full_at(self, message: Message) -> float:
        """When the route of this message is full, if it goes on so; infinity if nothing could be put back."""
        state = self._rejecting.get(route_of(message))
        return state.since + FULL_AFTER if state is not None and self.several else float('inf')

    def full(self, now: float) -> list[Route]:
        """Those that are full now."""
        if not self.several:
            return []
        return [
            route
            for route, state in self._rejecting.items()
            if now - state.since >= FULL_AFTER and now - state.last < FORGOTTEN and not state.over(now)
        ]


class _Rejecting:
    """A route that has rejected a message. `since`: when it began to reject as much as it takes, or more.

    Single confirms do not end that: a full queue with a slow consumer has one for each message consumed.
    `taken`: the last of them. `last`: the last rejection.
    """

    __slots__ = ('last', 'passed', 'period', 'refused', 'since', 'taken')

    def __init__(self, now: float) -> None:
        self.since = self.taken = self.period = self.last = now
        self.passed = self.refused = 0

    def over(self, now: float) -> bool:
        """Whether the last news was a confirm, and has been for a while."""
        return self.taken > self.last and now - self.last >= CALM

    def roll(self, now: float) -> None:
        """Begin a new period if it is time."""
        if now - self.period >= PERIOD:
            if self.passed > self.refused or self.over(now):
                self.since = now
            self.period = now
            self.passed = self.refused = 0


def names(routes: list[Route]) -> str:
    """Routes in a text; the first few of many."""
    named = [f'exchange {exchange!r}' if exchange else f'queue {queue!r}' for exchange, queue in routes]
    more = f' and {len(named) - NAMED} more' if len(named) > NAMED else ''
    return ', '.join(named[:NAMED]) + more
