"""What is too old goes: what is settled; and, by name and counted, what never arrived."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mikkoo.common import metrics as names
from mikkoo.common.audit_settle import PRUNED_AT_ONCE, Records
from mikkoo.common.metrics import Metrics
from mikkoo.common.settings import AuditorSettings

LOGGER = logging.getLogger('mikkoo.auditor')

LONGEST_INTERVAL = 600.0  # seconds
SHORTEST_INTERVAL = 1.0
MOST_NAMED = 20  # expired records that one pruning logs by name


class Pruning:
    """Prunes ten times in `keep`, and every ten minutes at least."""

    def __init__(
        self, settings: AuditorSettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.interval = min(LONGEST_INTERVAL, max(SHORTEST_INTERVAL, settings.keep / 10))
        self.due = clock() + self.interval

    def run(self, records: Records, *, caught_up: bool) -> None:
        """Prune. `caught_up`: no message waits in RabbitMQ that could be of a record that is too old.

        Raises DatabaseError.
        """
        self.due = self._clock() + self.interval
        records.prune(self._settings.keep)
        if caught_up:
            self._expire(records)

    def _expire(self, records: Records) -> None:
        total = 0
        while True:
            expired = records.expire(self._settings.exchanges, self._settings.keep)
            for queue, exchange, message_id in expired[: max(0, MOST_NAMED - total)]:
                say = 'auditor %s: message %s of queue %s, exchange %s never arrived; its record is removed'
                LOGGER.warning(say, self._settings.name, message_id, queue, exchange)
            total += len(expired)
            self._metrics.count(names.AUDIT_EXPIRED, len(expired))
            if len(expired) < PRUNED_AT_ONCE:
                break
        if total:
            LOGGER.warning('auditor %s: records expired: %d', self._settings.name, total)
