"""Deduplication in PostgreSQL: the message is remembered in the transaction of what its callback does."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mikkoo.common.errors import DatabaseError, DatabaseLost
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.connector.errors import ConnectorError

PRUNE_INTERVAL = 3600.0  # seconds
UNDEFINED_TABLE, NO_SCHEMA = '42P01', '3F000'

# The relay's sessions look for names in pg_catalog alone; a service's statements are its own.
OWN_SETTINGS = 'set local search_path to default; set local timezone to default'
INSERT = """
    insert into mikkoo.inbox (consumer, message_id) values (%s, %s) on conflict do nothing returning true
"""
PRUNE = "delete from mikkoo.inbox where consumer = %s and handled_at < now() - %s * interval '1 second'"


class Cursor:
    """Runs statements in the transaction of the message in hand: what a service needs of PEP 249."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: Iterator[tuple[Any, ...]] = iter(())
        self.rowcount = -1

    def execute(self, sql: str, args: Sequence[object] = ()) -> None:
        """Run one statement. Raises DatabaseError with its `sqlstate`; DatabaseLost."""
        rows, self.rowcount = self._session.run(sql, args)
        self._rows = iter(rows)

    def executemany(self, sql: str, many: Sequence[Sequence[object]]) -> None:
        for args in many:
            self.execute(sql, args)

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows


class PostgresInbox:
    """What one consumer thread remembers. `begin`, the callback, then `commit` or `rollback`."""

    def __init__(self, url: str, consumer: str, keep: float, pulse: Pulse) -> None:
        self._url = url
        self._consumer = consumer
        self._keep = keep
        self._pulse = pulse
        self._session: Session | None = None
        self._prune_at = 0.0

    def begin(self, message_id: str | None) -> bool:
        """Begin a transaction; False, and none, if the message is handled already.

        Waits for another transaction that handles the same message. Raises DatabaseError, Stopping.
        """
        session = self._opened()
        session.begin()
        try:
            session.execute(OWN_SETTINGS)
            if message_id is None or session.fetch(INSERT, (self._consumer, message_id)):
                return True
        except DatabaseError as error:
            self.rollback()
            if error.sqlstate in (UNDEFINED_TABLE, NO_SCHEMA):
                raise DatabaseError(
                    f'{session.where}: mikkoo.inbox is missing: run `mikkood sql`, or without PgQ the '
                    'statements of mikkoo.connector.INBOX_SQL', error.sqlstate,
                ) from error  # fmt: skip
            raise
        except BaseException:
            self.rollback()
            raise
        self.rollback()
        return False

    def commit(self) -> None:
        """Raises DatabaseError: nothing of it is done; DatabaseLost: all or nothing of it is."""
        session = self._session
        if session is None or not session.in_transaction:
            raise DatabaseLost('the transaction of the message in hand is gone')
        session.commit()
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_INTERVAL
            session.execute(PRUNE, (self._consumer, self._keep))

    def rollback(self) -> None:
        """Never raises."""
        if self._session is not None:
            self._session.rollback()

    def lost(self) -> bool:
        """Whether the session is gone, and what was done in it."""
        return self._session is None or self._session.closed

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """Part of the transaction of the message in hand; an exception undoes this part.

        Raises ConnectorError where no message is in hand, DatabaseError.
        """
        session = self._session
        if session is None or not session.in_transaction:
            raise ConnectorError('no message is being handled: transaction() is for callbacks')
        session.execute('savepoint mikkoo_callback')
        try:
            yield Cursor(session)
        except BaseException:
            if not session.closed:
                session.execute('rollback to mikkoo_callback')
            raise
        session.execute('release mikkoo_callback')

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The message in hand is finished, even if a stop is asked for meanwhile."""
        with self._pulse.grace(math.inf):
            yield

    def _opened(self) -> Session:
        if self._session is None or self._session.closed:
            self._session = Session.connect(
                self._url, self._pulse, application_name=f'mikkoo {self._consumer}'
            )
        return self._session
