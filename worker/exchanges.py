"""What is known of exchanges: those that were looked up, and those that are held after a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

NOT_FOUND = 404
ACCESS_REFUSED = 403


class Refusal(NamedTuple):
    """Why the broker takes nothing for an exchange: its reply code and text."""

    code: int
    text: str


class Exchanges:
    """Asks about each exchange once, and once again after `hold` seconds if it was refused.

    A publish to an exchange that does not exist closes the channel with all that is in flight on it
    (AMQP 0-9-1 §1.3, channel exceptions), so it is looked up before the first message to it leaves.
    """

    def __init__(
        self,
        look_up: Callable[[str], Refusal | None],
        hold: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._hold = hold
        self._clock = clock
        self._known = {''}
        self._held: dict[str, tuple[float, Refusal]] = {}  # those held longest come first

    def known(self, exchange: str) -> bool:
        """Whether it was looked up and may be published to."""
        return exchange in self._known

    def refusal(self, exchange: str) -> Refusal | None:
        """None if messages may be published to it, else why not."""
        if exchange in self._known:
            return None
        held = self._held.get(exchange)
        if held is not None and self._clock() < held[0]:
            return held[1]
        refusal = self._look_up(exchange)
        if refusal is None:
            self._known.add(exchange)
            self._held.pop(exchange, None)
        else:
            self.hold(exchange, refusal)
        return refusal

    def hold(self, exchange: str, refusal: Refusal) -> None:
        """Take nothing for it for `hold` seconds: the broker has just refused it."""
        now = self._clock()
        self._known.discard(exchange)
        self._held.pop(exchange, None)
        self._held[exchange] = (now + self._hold, refusal)
        while self._held[oldest := next(iter(self._held))][0] < now:  # each event may name another
            del self._held[oldest]

    def forget(self) -> None:
        """After a channel was closed: what was known may have changed. What is held stays held."""
        self._known = {''}

    @staticmethod
    def concerns_exchange(refusal: Refusal) -> bool:
        """Whether a closed channel tells of the whole exchange, not of one message's key or properties."""
        return refusal.code == NOT_FOUND or (
            refusal.code == ACCESS_REFUSED and 'access to exchange' in refusal.text
        )
