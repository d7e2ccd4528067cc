"""The end of a batch: what failed is retried or given up, and PgQ is told that the batch is finished."""

from __future__ import annotations

import logging

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.log_pipe import LOST
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Batch, Consumer, Retry
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.verdict import Failure, Verdict, attempts, describe, judge

LOGGER = logging.getLogger('mikkoo.worker')
LOG_INTERVAL = 0.05  # seconds between attempts to log a given-up event while the pipe is full
PIECE = 15_000  # characters of an event in one log record: one message of the pipe, whatever the script


def settle(
    consumer: Consumer,
    batch: Batch,
    failures: list[Failure],
    settings: WorkerSettings,
    metrics: Metrics,
    pulse: Pulse,
) -> int:
    """Retry what may be retried and finish the batch, in one commit; how many are retried.

    What is given up is told before PgQ forgets it: dying in between tells it twice, never not at all.
    Raises Fenced, with nothing settled, where the batch is not ours any more.
    """
    retries = []
    for failure in failures:
        if judge(failure, settings.max_failures) is Verdict.DEAD:
            _give_up(failure, settings, pulse)
            metrics.count(names.DEAD)
        else:
            _tell_of_retry(failure, settings)
            retries.append(Retry(failure.event, settings.retry_delay))
    consumer.settle(batch, retries)
    metrics.count(names.BATCHES)
    metrics.count(names.FAILED, len(failures))
    metrics.count(names.RETRIED, len(retries))
    return len(retries)


def _tell_of_retry(failure: Failure, settings: WorkerSettings) -> None:
    LOGGER.warning(
        'event %d of %s: %s; it is tried again in %g s (attempt %d of %d)',
        failure.event.id,
        settings.queue,
        describe(failure),
        settings.retry_delay,
        attempts(failure.event),
        settings.max_failures,
    )


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
