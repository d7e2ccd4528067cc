"""The end of a batch: what failed is retried or given up, and PgQ is told that the batch is finished."""

from __future__ import annotations

import logging

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Batch, Consumer, Retry
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.verdict import Failure, Verdict, attempts, describe, judge

LOGGER = logging.getLogger('mikkoo.worker')
PGQ_COLUMNS = 10  # of an Event, those that are PgQ's
PIECE = 20_000  # characters of an event in one log record: one message of the pipe, whatever the script


def settle(
    consumer: Consumer, batch: Batch, failures: list[Failure], settings: WorkerSettings, metrics: Metrics
) -> int:
    """Retry what may be retried and finish the batch, in one commit; how many are retried.

    What is given up is told before PgQ forgets it: dying in between tells it twice, never not at all.
    Raises Fenced, with nothing settled, where the batch is not ours any more.
    """
    retries = []
    for failure in failures:
        if judge(failure, settings.max_failures) is Verdict.DEAD:
            _give_up(failure, settings)
            metrics.count(names.DEAD)
        else:
            _tell_of_retry(failure, settings)
            retries.append(Retry(failure.event[:PGQ_COLUMNS], settings.retry_delay))
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


def _give_up(failure: Failure, settings: WorkerSettings) -> None:
    """The event whole at ERROR, in pieces where it is large, and reported: nothing else keeps it."""
    event = failure.event
    LOGGER.error(
        'event %d of %s is given up after attempt %d: %s',
        event.id,
        settings.queue,
        attempts(event),
        describe(failure),
    )
    whole = str(event._asdict())
    pieces = range(0, len(whole), PIECE)
    for number, start in enumerate(pieces, 1):
        place = (event.id, number, len(pieces), whole[start : start + PIECE])
        LOGGER.error('given up event %d, part %d of %d: %s', *place)
    reports.message(
        f'queue {settings.queue}: events are given up: {failure.kind.value}',
        'error',
        event_id=event.id,
        attempts=attempts(event),
        reason=describe(failure),
    )
