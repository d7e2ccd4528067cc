"""How many records are outstanding, and late: gauges, and a word when the one becomes the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.audit_settle import Records
from mikkoo.common.metrics import Metrics
from mikkoo.common.settings import AuditorSettings

LOGGER = logging.getLogger('mikkoo.auditor')

SHARE = 20  # looking takes no more than one part in so many of the time


class Lateness:
    """Looks every `interval` seconds at most. The first look is one interval after the start."""

    def __init__(
        self,
        settings: AuditorSettings,
        metrics: Metrics,
        interval: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._interval = interval
        self._clock = clock
        self._late = 0
        self._looked_at, self._took = clock(), 0.0

    @property
    def due(self) -> float:
        """When to look next, by the clock."""
        return self._looked_at + max(self._interval(), SHARE * self._took)

    def look(self, records: Records) -> None:
        """Set the gauges, and report where lateness began or ended. Raises DatabaseError."""
        begun = self._clock()
        settings = self._settings
        try:
            outstanding, late, oldest = records.outstanding(settings.exchanges, settings.grace)
        finally:  # what fails shall not be all that is done
            self._looked_at = self._clock()
            self._took = self._looked_at - begun
        self._metrics.gauge(names.AUDIT_OUTSTANDING, outstanding)
        self._metrics.gauge(names.AUDIT_LATE, late)
        before, self._late = self._late, late
        if late and not before:
            say = 'auditor %s: %d records are older than %g s without their message, the oldest of message %s'
            LOGGER.warning(say, settings.name, late, settings.grace, oldest)
            reports.message(f'auditor {settings.name}: records are late', 'warning', late=late, oldest=oldest)
        elif before and not late:
            LOGGER.info('auditor %s: no record is late any more', settings.name)
            reports.message(f'auditor {settings.name}: no record is late any more', 'info')
