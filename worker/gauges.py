"""The gauges that are looked up in PostgreSQL, each seldom enough to cost nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from mikkoo.common import metrics as names
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Consumer, Pending

PENDING_INTERVAL = 5.0  # seconds between looks at how far behind the consumer is
DEAD_LETTERS_INTERVAL = 60.0  # seconds between counts of dead letters, which others may retry or discard
BURIED_INTERVAL = 5.0  # the same while our own are being added


class Gauges:
    """How far behind a consumer is, and how many dead letters are kept of it."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._pending_due = self._dead_letters_due = self._counted_at = float('-inf')

    def look(self, consumer: Consumer) -> Pending | None:
        """Set those whose time has come; how far behind, where that was one. Raises DatabaseError."""
        now, pending = self._clock(), None
        if now >= self._pending_due:
            self._pending_due = now + PENDING_INTERVAL
            pending = consumer.pending()
            self._metrics.gauge(names.PENDING_EVENTS, pending.events)
            self._metrics.gauge(names.LAG, pending.lag)
        if now >= self._dead_letters_due:
            self._counted_at, self._dead_letters_due = now, now + DEAD_LETTERS_INTERVAL
            count = consumer.dead_letters()
            if count is not None:
                self._metrics.gauge(names.DEAD_LETTERS, count)
        return pending

    def buried(self) -> None:
        """Dead letters were added: count them soon."""
        self._dead_letters_due = min(self._dead_letters_due, self._counted_at + BURIED_INTERVAL)
