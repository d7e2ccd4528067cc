"""What becomes of a batch: failures are retried or kept as dead letters, progress is saved."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.log_pipe import LOST
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Batch, Consumer, Dead, Opening, Retry, Stage
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker import isolation
from mikkoo.worker.event import Event
from mikkoo.worker.routes import PutBack
from mikkoo.worker.verdict import Failure, Kind, Verdict, attempts, describe, judge

LOGGER = logging.getLogger('mikkoo.worker')
SAVE_EVERY = 1_900  # judged events; with what is in flight (1,000) a crash repeats less than 3,000
SAVE_INTERVAL = 1.0  # seconds
LOG_INTERVAL = 0.05  # seconds between attempts to log a given-up event while the pipe is full
PIECE = 15_000  # characters of an event in one log record: one message of the pipe, whatever the script
TOLD_EACH = 10  # failures of a batch that are logged one by one
EVENT_OVERHEAD = 500  # bytes of an event in memory besides its texts


class Settling:
    """Collects a batch's failures, saves how far it has got, and settles it.

    Any call may raise Fenced: the batch is not ours any more. Where mikkoo.sql keeps dead letters and
    progress, failures are committed with the progress that covers them. Elsewhere retries wait for the end,
    unless they are many (a crash then makes their events come twice), and what is given up is logged whole
    at once, before PgQ forgets it: dying in between tells it twice, never not at all.
    """

    def __init__(
        self,
        consumer: Consumer,
        batch: Batch,
        settings: WorkerSettings,
        metrics: Metrics,
        pulse: Pulse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = consumer
        self._batch = batch
        self._settings = settings
        self._metrics = metrics
        self._pulse = pulse
        self._clock = clock
        self._retries: list[Retry] = []
        self._dead: list[Dead] = []
        self._came_back: set[int] = set()  # ids of retried events that have not failed this time
        self._bytes = 0
        self._told = 0
        self._saved_at = clock()
        self._saved_count = 0
        self.buried = 0
        self.dues: set[float] = set()  # when what goes back to PgQ is due, by the clock, in whole seconds

    def came_back(self, event: Event) -> None:
        """A retried event is on its way."""
        self._came_back.add(event.id)

    def add(self, failures: Iterable[Failure]) -> None:
        """Judge failures."""
        for failure in failures:
            self._metrics.count(names.FAILED)
            self._came_back.discard(failure.event.id)
            if judge(failure, self._settings.max_failures) is Verdict.RETRY:
                self._retry(failure)
            elif self._consumer.keeps:
                self._bury(failure)
            else:
                _give_up(failure, self._settings, self._pulse)
                self._metrics.count(names.DEAD)

    def put_back(self, events: Iterable[PutBack]) -> None:
        """They go back to PgQ as they came: nobody's failure, and no attempt."""
        for event, delay in events:
            self._came_back.discard(event.id)
            self._retries.append(Retry(event, delay, counted=False))
            self._bytes += _size(event)

    def is_full(self) -> bool:
        """Whether failures take their share of memory, or more."""
        return self._bytes > self._settings.window_bytes // 2

    def is_due(self, judged: int) -> bool:
        """Whether to save now; `judged`: events of the batch so far."""
        if self.is_full():
            return True
        if not self._consumer.keeps or judged == self._saved_count:
            return False
        return judged >= self._saved_count + SAVE_EVERY or self._clock() >= self._saved_at + SAVE_INTERVAL

    def save(self, last_event_id: int | None, judged: int, stage: Stage = Stage.TOGETHER) -> None:
        """Every event up to this one is judged: commit their failures and that. None: none is."""
        last = float('-inf') if last_event_id is None else last_event_id
        retries, later_retries = _parted(self._retries, last)
        dead, later_dead = _parted(self._dead, last)
        recovered = [number for number in self._came_back if number <= last]
        self._consumer.save(self._batch, last_event_id, retries, dead, recovered, stage)
        self._retries, self._dead = later_retries, later_dead
        self._came_back.difference_update(recovered)
        self._saved_at, self._saved_count = self._clock(), judged
        self._count(retries, dead)

    def bury_killer(self, opening: Opening) -> int | None:
        """The event over which a process ended that relayed it alone becomes a dead letter; its id.

        It is not read here. None: no event is left, so it was none that ended the process.
        """
        code, reason = Kind.KILLS_WORKER.value, isolation.reason(opening)
        ends = isolation.ends(opening)
        buried = self._consumer.bury_next(self._batch, opening.last_event_id, ends, code, reason)
        if buried is None:
            return None
        self._metrics.count(names.FAILED)
        self._metrics.count(names.DEAD)
        self.buried += 1
        self._report(code, 1, *buried, reason)
        return buried[0]

    def finish(self) -> None:
        """What is left, and the end of the batch, in one commit."""
        self._consumer.settle(self._batch, self._retries, self._dead, list(self._came_back))
        self._metrics.count(names.BATCHES)
        self._count(self._retries, self._dead)
        more = self._told - TOLD_EACH
        if more > 0:
            LOGGER.warning('%d more events of that batch of %s have failed', more, self._settings.queue)

    def _count(self, retries: list[Retry], dead: list[Dead]) -> None:
        counted = sum(retry.counted for retry in retries)
        self._metrics.count(names.RETRIED, counted)
        self._metrics.count(names.PUT_BACK, len(retries) - counted)
        self.dues.update(math.ceil(self._clock() + retry.at) for retry in retries)
        self._metrics.count(names.DEAD, len(dead))
        self.buried += len(dead)
        kept = [*(one.row for one in self._retries), *(one.row for one in self._dead)]
        self._bytes = sum(_size(row) for row in kept)
        examples = {one.code: one for one in reversed(dead)}
        for code, count in Counter(one.code for one in dead).items():
            example = examples[code]
            self._report(code, count, example.row[0], example.attempts, example.reason)

    def _report(self, code: str, count: int, event_id: int, attempts: int, reason: str) -> None:
        """A line and a report for each reason, not each event: ten thousand are one report with a count."""
        queue = self._settings.queue
        say = 'queue %s: %d events are dead letters, %s: mikkood dead-letters list; event %d: %s'
        LOGGER.error(say, queue, count, code, event_id, reason)
        reports.message(
            f'queue {queue}: events are dead letters: {code}',
            'error',
            count=count,
            event_id=event_id,
            attempts=attempts,
            reason=reason,
        )

    def _retry(self, failure: Failure) -> None:
        self._tell(failure, f'it is tried again in {self._settings.retry_delay:g} s')
        self._retries.append(Retry(failure.event, self._settings.retry_delay))
        self._bytes += _size(failure.event)

    def _bury(self, failure: Failure) -> None:
        self._tell(failure, 'it becomes a dead letter')
        event = failure.event
        # A name in the reason may hold what a text in PostgreSQL, in whatever encoding, cannot.
        reason = describe(failure).encode('ascii', 'backslashreplace').decode().replace('\0', '\\x00')
        self._dead.append(Dead(event, attempts(event), failure.kind.value, reason))
        self._bytes += _size(event)

    def _tell(self, failure: Failure, then: str) -> None:
        self._told += 1
        if self._told > TOLD_EACH:
            return
        LOGGER.warning(
            'event %d of %s: %s; %s (attempt %d of %d)',
            failure.event.id,
            self._settings.queue,
            describe(failure),
            then,
            attempts(failure.event),
            self._settings.max_failures,
        )


T = TypeVar('T', Retry, Dead)


def _parted(failed: list[T], last_event_id: float) -> tuple[list[T], list[T]]:
    """Those up to that event, and those behind it."""
    first = [one for one in failed if one.row[0] <= last_event_id]
    return first, [one for one in failed if one.row[0] > last_event_id]


def _size(row: tuple[Any, ...]) -> int:
    return EVENT_OVERHEAD + sum(len(text) for text in row[4:10] if text)


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
