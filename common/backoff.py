"""Delays between attempts: doubling, with jitter, without I/O or a clock of its own."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Seconds to wait before the next attempt: `first`, then `factor` times more, up to `most`.

    Each delay is spread over its upper half, so that many processes do not come back together.
    """

    def __init__(
        self,
        first: float = 0.5,
        most: float = 30.0,
        factor: float = 2.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._most = most
        self._factor = factor
        self._chance = chance
        self.attempts = 0

    def next(self) -> float:
        """The delay before the next attempt, in seconds; counts the attempt."""
        full = min(self._most, self._first * self._factor ** min(self.attempts, 64))
        self.attempts += 1
        return full * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """After a success: the next delay is the first again."""
        self.attempts = 0
