"""The auditor's loop: own the audit, take a batch of messages, settle their records, acknowledge.

A message is acknowledged when its record's settlement is committed, so that a death in between brings it
again: it then counts as a duplicate, or as unknown. Losing PostgreSQL leaves the batch in hand to be settled
later; RabbitMQ's outages are met by the connector's consumer.
"""

from __future__ import annotations

import logging
import time
from typing import Literal, cast

from mikkoo.auditor.compare import Memory
from mikkoo.auditor.intake import Intake, Taken
from mikkoo.auditor.lateness import Lateness
from mikkoo.auditor.pruning import Pruning
from mikkoo.auditor.settling import Outcome, Settling
from mikkoo.common import metrics as names
from mikkoo.common import reports
from mikkoo.common.audit_settle import FIRST_VERSION, Records
from mikkoo.common.backoff import Backoff
from mikkoo.common.bell import Bell
from mikkoo.common.errors import DatabaseError, DatabaseLost, Stopping
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import mikkoo_schema_version
from mikkoo.common.postgres import Backend, Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings

LOGGER = logging.getLogger('mikkoo.auditor')

PATIENCE = 0.2  # seconds that a message waits for others to be settled with it
LOOK_INTERVAL = 1.0  # seconds between looks at how the consumer is
INSPECT_INTERVAL = 60.0  # seconds between looks at whether the queue and its bindings are there
STANDBY_INTERVAL = 2.0  # seconds between attempts to become the only process of this auditor
GRACE = 2.0  # seconds that a stop leaves a batch to be settled; the supervisor kills after 4.5
REMEMBERED = 100_000  # messages whose records are deleted
# SQLSTATEs (PostgreSQL, Appendix A) that tell of one record's contents, not of the server: cardinality, data,
# constraints, limits, and what is corrupted on disk
OF_A_RECORD = ('21', '22', '23', '54', 'XX001')
COUNTED = (
    (names.AUDIT_RECEIVED, 'received'),
    (names.AUDIT_DUPLICATE, 'duplicates'),
    (names.AUDIT_DIFFERING, 'differing'),
    (names.AUDIT_UNKNOWN, 'unknown'),
    (names.AUDIT_UNIDENTIFIED, 'unidentified'),
)


class Auditor:
    """One auditor, for ever."""

    def __init__(self, settings: AuditorSettings, pulse: Pulse, metrics: Metrics) -> None:
        self._settings = settings
        self._pulse = pulse
        self._metrics = metrics
        self._bell = Bell()
        self._intake = Intake(settings, self._bell)
        self._lateness = Lateness(settings, metrics, lambda: pulse.poll_interval)
        self._pruning = Pruning(settings, metrics)
        self._memory = Memory(REMEMBERED)
        self._backoff = Backoff(first=0.5, most=30.0)
        self._records: Records | None = None
        self._settling: Settling | None = None
        self._former: Backend | None = None  # of the session that was dropped
        self._batch: list[Taken] = []  # in hand, and not settled
        self._inspect_at = 0.0

    def run(self) -> None:
        """Audit until asked to stop."""
        try:
            while True:
                try:
                    self._own()
                    while True:
                        self._turn()
                except DatabaseError as error:
                    self._lose(error)
        except Stopping:
            LOGGER.info('stopping')
            self._leave()
        finally:
            self._intake.close()
            self._drop()
            self._bell.close()

    def _own(self) -> None:
        """Connect, and return as the only process of this auditor."""
        settings = self._settings
        session = Session.connect(
            settings.postgres_url, self._pulse, application_name=f'mikkoo auditor {settings.name}'
        )
        self._records = None
        try:
            self._end_former(session)
            version = mikkoo_schema_version(session)
            if version is None or version < FIRST_VERSION:
                found = 'is not installed' if version is None else f'has version {version}'
                raise DatabaseError(
                    f'{session.where}: mikkoo.sql {found}, audits need {FIRST_VERSION}: mikkood sql | psql'
                )
            records = Records(session, settings.name)
            self._stand_by(records)
        except BaseException:
            session.close()
            raise
        self._records = records
        action = cast(Literal['delete', 'mark'], settings.action)
        self._settling = Settling(records, action, self._memory)
        LOGGER.info('auditing %s', ', '.join(settings.exchanges))

    def _end_former(self, session: Session) -> None:
        """Of a session that we have lost the server may not know yet: it would go on being this auditor."""
        if self._former is not None and session.terminate(self._former):
            LOGGER.info('ended a session of ours that the server still took for alive')
        self._former = None

    def _stand_by(self, records: Records) -> None:
        while not records.own():
            self._batch = []
            self._intake.close()
            reason = f'auditor {self._settings.name} is another process'
            self._pulse.state('standby', reason)
            self._pulse.sleep(reason, STANDBY_INTERVAL)

    def _turn(self) -> None:
        self._intake.open()
        self._tell()
        self._gather()
        if self._batch:
            with self._pulse.grace(GRACE):
                self._settle()
        self._look_after()
        self._backoff.reset()

    def _tell(self) -> None:
        outage = self._intake.outage
        self._pulse.state('paused' if outage else 'running', outage or self._intake.unbound)

    def _gather(self) -> None:
        """Until a batch is full, or its first message has waited long enough, or something else is due."""
        intake = self._intake
        look = time.monotonic() + LOOK_INTERVAL
        while not self._batch:
            self._bell.clear()
            now = time.monotonic()
            if len(intake) >= intake.full or now >= intake.first_at + PATIENCE:
                self._batch = intake.take()
                return
            until = min(look, intake.first_at + PATIENCE, self._lateness.due, self._pruning.due)
            if now >= until:
                return
            self._pulse.wait(f'messages in {self._settings.queue}', until - now, [self._bell.fileno()])

    def _settle(self) -> None:
        """Settle the batch in hand, and only then acknowledge it."""
        self._settle_first(len(self._batch))

    def _settle_first(self, number: int) -> None:
        """Of the batch. Where one record makes the statement fail, its message is found by halving."""
        assert self._settling is not None
        batch = self._batch[:number]
        try:
            arrivals = [taken.arrival for taken in batch if taken.arrival is not None]
            unidentified = [taken.exchange for taken in batch if taken.arrival is None]
            outcome = self._settling.run(arrivals, unidentified, time.monotonic())
        except DatabaseError as error:
            if not error.sqlstate.startswith(OF_A_RECORD):
                raise
            if number > 1:
                self._settle_first(number // 2)
                self._settle_first(number - number // 2)
                return
            outcome = self._give_up(batch[0], error)
        del self._batch[:number]
        self._intake.acknowledge(batch)
        self._count(outcome)

    def _give_up(self, taken: Taken, error: DatabaseError) -> Outcome:
        """A message that cannot be settled counts as unknown: its record stays, and will be late."""
        assert self._settling is not None
        message_id = taken.arrival.message_id if taken.arrival is not None else None
        LOGGER.error('auditor %s: message %s cannot be settled: %s', self._settings.name, message_id, error)
        reports.exception(error, message_id=message_id)
        return self._settling.count_unknown(taken.exchange)

    def _count(self, outcome: Outcome) -> None:
        for metric, name in COUNTED:
            self._metrics.count(metric, outcome.sum(name))
        for latency in outcome.latencies:
            self._metrics.timing(names.AUDIT_LATENCY, max(0.0, latency))

    def _look_after(self) -> None:
        """What is due now and then."""
        assert self._records is not None
        now = time.monotonic()
        if now >= self._inspect_at:
            self._inspect_at = now + min(INSPECT_INTERVAL, self._pruning.interval)
            self._intake.inspect()
        if now >= self._pruning.due:
            self._pruning.run(self._records, caught_up=self._intake.caught_up)
        if now >= self._lateness.due:
            self._lateness.look(self._records)

    def _lose(self, error: DatabaseError) -> None:
        """PostgreSQL is out, or refuses: keep what is in hand, and wait."""
        self._drop()
        delay = self._backoff.next()
        what = 'PostgreSQL is out' if isinstance(error, DatabaseLost) else 'PostgreSQL refuses'
        LOGGER.warning('%s: %s; next attempt in %.1f s', what, error, delay)
        self._pulse.state('paused', f'{what}: {error}')
        self._pulse.sleep(f'{what}: {error}', delay)

    def _leave(self) -> None:
        """Settle what is in hand, if that is quick."""
        if self._records is None or self._records.session.closed:
            return
        try:
            with self._pulse.last_act(GRACE):
                self._batch = self._batch or self._intake.take()
                while self._batch:
                    self._settle()
                    self._batch = self._intake.take()
        except (DatabaseError, Stopping) as error:
            LOGGER.info('left unsettled, to come again: %s', error)

    def _drop(self) -> None:
        if self._records is not None:
            self._former = self._records.session.backend
            self._records.session.close()
        self._records = self._settling = None
