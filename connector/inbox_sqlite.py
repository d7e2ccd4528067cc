"""Deduplication in a local file: it narrows the window in which a message can be handled twice, no more.

The message is remembered after its callback and before its ack: a crash between the callback's effect and
the memory repeats the effect.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mikkoo.common.errors import DatabaseError

DEFAULT_PATH = '~/.local/state/mikkoo/inbox.sqlite'
PRUNE_INTERVAL = 3600.0  # seconds
BUSY_TIMEOUT = 10.0  # seconds that another process may hold the file

TABLE = """
create table if not exists inbox (
    consumer text not null, message_id text not null, handled_at real not null,
    primary key (consumer, message_id)
) without rowid
"""
INDEX = 'create index if not exists inbox_handled_at on inbox (consumer, handled_at)'


class SqliteInbox:
    """What one consumer thread remembers. Several threads and processes may share the file."""

    def __init__(self, path: str | os.PathLike[str], consumer: str, keep: float) -> None:
        self._path = Path(path).expanduser()
        self._consumer = consumer
        self._keep = keep
        self._file: sqlite3.Connection | None = None
        self._message_id: str | None = None
        self._prune_at = 0.0

    def begin(self, message_id: str | None) -> bool:
        """False if the message is handled already. Raises DatabaseError."""
        self._message_id = message_id
        seen = 'select 1 from inbox where consumer = ? and message_id = ?'
        with self._errors():
            found = self._opened().execute(seen, (self._consumer, message_id)).fetchone()
        return found is None

    def commit(self) -> None:
        """Remember it. Raises DatabaseError."""
        now = time.time()
        with self._errors(), self._opened() as file:
            if self._message_id is not None:
                row = (self._consumer, self._message_id, now)
                file.execute('insert or ignore into inbox values (?, ?, ?)', row)
            if time.monotonic() >= self._prune_at:
                self._prune_at = time.monotonic() + PRUNE_INTERVAL
                old = 'delete from inbox where consumer = ? and handled_at < ?'
                file.execute(old, (self._consumer, now - self._keep))

    def rollback(self) -> None:
        self._message_id = None

    def lost(self) -> bool:
        return False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        yield

    def _opened(self) -> sqlite3.Connection:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT)
            try:
                file.execute('pragma journal_mode = wal')
                with file:
                    file.execute(TABLE)
                    file.execute(INDEX)
            except BaseException:
                file.close()
                raise
            self._file = file
        return self._file

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DatabaseError(f'{self._path}: {error}') from error
