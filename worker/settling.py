"""The end of a batch: what failed is retried or given up, and PgQ is told that the batch is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.log_pipe import LOST
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Batch, Consumer, Retry
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.event import Event
from mikkoo.worker.verdict import Failure, Verdict, attempts, describe, judge

LOGGER = logging.getLogger('mikkoo.worker')
LOG_INTERVAL = 0.05  # seconds between attempts to log a given-up event while the pipe is full
PIECE = 15_000  # characters of an event in one log record: one message of the pipe, whatever the script
TOLD_EACH = 10  # retries of a batch that are logged one by one
EVENT_OVERHEAD = 500  # bytes of an event in memory besides its texts


class Settling:
    """Collects a batch's failures and settles it. Any call may raise Fenced: the batch is not ours any more.

    Retries wait for the settling transaction; beyond half of window_bytes of them go to PgQ earlier, and a
    crash before the batch is finished then makes their events come twice. What is given up is told at once,
    before PgQ forgets it: dying in between tells it twice, never not at all.
    """

    def __init__(
        self, consumer: Consumer, batch: Batch, settings: WorkerSettings, metrics: Metrics, pulse: Pulse
    ) -> None:
        self._consumer = consumer
        self._batch = batch
        self._settings = settings
        self._metrics = metrics
        self._pulse = pulse
        self._retries: list[Retry] = []
        self._bytes = 0
        self.retried = 0

    def add(self, failures: Iterable[Failure]) -> None:
        """Judge failures."""
        for failure in failures:
            self._metrics.count(names.FAILED)
            if judge(failure, self._settings.max_failures) is Verdict.DEAD:
                _give_up(failure, self._settings, self._pulse)
                self._metrics.count(names.DEAD)
            else:
                self._retry(failure)

    def finish(self) -> None:
        """Retries and the end of the batch, in one commit."""
        self._consumer.settle(self._batch, self._retries)
        self._metrics.count(names.BATCHES)
        self._metrics.count(names.RETRIED, len(self._retries))
        self._tell_of_retries()

    def _retry(self, failure: Failure) -> None:
        self.retried += 1
        if self.retried <= TOLD_EACH:
            self._tell_of_retry(failure)
        self._retries.append(Retry(failure.event, self._settings.retry_delay))
        self._bytes += _size(failure.event)
        if self._bytes > self._settings.window_bytes // 2:
            self._consumer.retry(self._batch, self._retries)
            self._metrics.count(names.RETRIED, len(self._retries))
            self._retries, self._bytes = [], 0

    def _tell_of_retry(self, failure: Failure) -> None:
        LOGGER.warning(
            'event %d of %s: %s; it is tried again in %g s (attempt %d of %d)',
            failure.event.id,
            self._settings.queue,
            describe(failure),
            self._settings.retry_delay,
            attempts(failure.event),
            self._settings.max_failures,
        )

    def _tell_of_retries(self) -> None:
        more = self.retried - TOLD_EACH
        if more > 0:
            LOGGER.warning('%d more events of that batch of %s are tried again', more, self._settings.queue)


def _size(event: Event) -> int:
    return EVENT_OVERHEAD + sum(len(text) for text in event[4:10] if text)


def _give_up(failure: Failure, settings: WorkerSettings, pulse: Pulse) -> None:
    """The event whole at ERROR, in pieces where it is large, and reported: nothing else keeps it."""
    event = failure.event
    say = 'event %d of %s is given up after attempt %d: %s'
    _log_surely(pulse, say, event.id, settings.queue, attempts(event), describe(failure))
    whole = str(event._asdict())
    pieces = range(0, len(whole), PIECE)
    for number, start in enumerate(pieces, 1):
        piece = whole[start : start + PIECE]
        _log_surely(pulse, 'given up event %d, part %d of %d: %s', event.id, number, len(pieces), piece)
    reports.message(
        f'queue {settings.queue}: events are given up: {failure.kind.value}',
        'error',
        event_id=event.id,
        attempts=attempts(event),
        reason=describe(failure),
    )


def _log_surely(pulse: Pulse, text: str, *values: object) -> None:
    """Log at ERROR, again and again while there is no room for the record: here a record is all that is left.

    A stop meanwhile leaves the batch unsettled, and the event comes again.
    """
    while True:
        before = LOST.count
        LOGGER.error(text, *values)
        if LOST.count == before:
            return
        pulse.sleep('room for a log record', LOG_INTERVAL)
