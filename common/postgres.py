"""Sessions with PostgreSQL: the only home of psycopg2.

psycopg2's asynchronous connections are driven here by hand, and every wait ends in `Pulse.wait`: it beats,
hears a stop and has a deadline. (psycopg2's wait callback would be one for the whole process, and closes a
connection whose wait was interrupted.) An asynchronous connection knows no `connect_timeout`, so each host of
a libpq url gets its share of one deadline. Only a host name's look-up still blocks, inside libpq.

So many lines, because nothing of psycopg2 may be elsewhere: logins, statements, their end by a stop, errors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import psycopg2
from psycopg2 import extensions

from mikkoo.common.errors import DatabaseError, DatabaseLost, MikkooError, Stopping
from mikkoo.common.pulse import Pulse

CONNECT_TIMEOUT = 10.0  # seconds for all hosts of a url together
STATEMENT_TIMEOUT = 300.0  # seconds; the first FETCH of a batch of millions takes tens
SILENCE_TIMEOUT = 15.0  # seconds past the statement's own after which a silent server counts as lost
LOOK_AFTER = 15.0  # seconds of silence in a statement after which another session looks what the server does
LOOK_TIMEOUT = 10.0  # seconds for that look
LATE_ANSWER = 1.0  # seconds for an answer that the server has sent, as that look has found
CANCEL_GRACE = 2.0  # seconds that a stop waits for a cancelled statement

# For libpq; a url may give its own. A dead peer is noticed within about half a minute.
LINK_DEFAULTS = {
    'keepalives': '1',
    'keepalives_idle': '20',
    'keepalives_interval': '5',
    'keepalives_count': '3',
    'tcp_user_timeout': '30000',
}

# Some are unknown to older servers; those are left out by the join with pg_settings.
SETTINGS = {
    'search_path': 'pg_catalog, pg_temp',
    'TimeZone': 'UTC',
    'default_transaction_isolation': 'read committed',
    'idle_in_transaction_session_timeout': '0',
    'idle_session_timeout': '0',
    'transaction_timeout': '0',
    'jit': 'off',
    'tcp_keepalives_idle': '20',
    'tcp_keepalives_interval': '5',
    'tcp_keepalives_count': '3',
    'tcp_user_timeout': '30000',
}
PREPARE = """
    select count(set_config(wanted.name, wanted.value, false))
    from unnest(%s::text[], %s::text[]) as wanted (name, value) join pg_catalog.pg_settings as s
        on lower(s.name) = lower(wanted.name)
"""

BACKEND = 'select pid, backend_start from pg_stat_activity where pid = pg_backend_pid()'
# A statement that ended without our hearing is no work, nor is an answer that cannot be sent. NULL: unknown.
AT_WORK = """
    select coalesce(state not like 'idle%%' and wait_event_type is distinct from 'Client', true)
    from pg_stat_activity where (pid, backend_start) = (%s, %s)
"""
TERMINATE = """
    select pg_terminate_backend(pid) from pg_stat_activity where (pid, backend_start) = (%s, %s)
"""

LOST = {'57P01', '57P02', '57P03', '57P05', '25P03'}  # the server ends the session; and class 08


@dataclass(frozen=True, slots=True)
class Backend:
    """The server process of one session: no other ever has both."""

    pid: int
    started: datetime


class Session:
    """One connection. Outside `transaction` every statement commits by itself. Not for use by threads."""

    def __init__(
        self,
        connection: extensions.connection,
        pulse: Pulse,
        target: Mapping[str, str],
        statement_timeout: float = STATEMENT_TIMEOUT,
    ) -> None:
        self._connection = connection
        self._pulse = pulse
        self._target = target
        self._statement_timeout = statement_timeout
        self._pooled = False
        self._backend: Backend | None = None
        self.backend_pid = 0
        self.where = _where(target)  # host:port/database, for people

    @classmethod
    def connect(
        cls,
        url: str,
        pulse: Pulse,
        *,
        application_name: str,
        timeout: float = CONNECT_TIMEOUT,
        statement_timeout: float = STATEMENT_TIMEOUT,
    ) -> Session:
        """Connect by a libpq url, several hosts and target_session_attrs included, and prepare the session.

        Raises DatabaseLost (nobody answered in `timeout` seconds), DatabaseError (refused), Stopping.
        """
        deadline = time.monotonic() + timeout
        targets = _targets(url)
        errors: list[DatabaseError] = []
        for index, target in enumerate(targets):
            given = LINK_DEFAULTS | target | {'application_name': application_name, 'client_encoding': 'UTF8'}
            share = max(0.0, deadline - time.monotonic()) / (len(targets) - index)
            try:
                return cls._open(given, pulse, share, statement_timeout)
            except DatabaseError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        lost = all(isinstance(error, DatabaseLost) for error in errors)
        text = '; '.join(str(error) for error in errors)
        raise (DatabaseLost if lost else DatabaseError)(text) from errors[-1]

    @property
    def closed(self) -> bool:
        return bool(self._connection.closed)

    @property
    def server_version(self) -> int:
        """As 150018 for 15.18."""
        return self._connection.server_version

    @property
    def backend(self) -> Backend | None:
        """The server's end, for `terminate`. None behind a pooler, which may lend it to another."""
        return None if self._pooled else self._backend

    @property
    def in_transaction(self) -> bool:
        return (
            not self.closed and self._connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE
        )

    def fileno(self) -> int:
        """To wait on for notifications; DatabaseLost if the session is closed."""
        try:
            return self._connection.fileno()
        except psycopg2.Error as error:
            self._raise(error)

    def fetch(
        self, sql: str, args: Sequence[object] = (), *, waits: str = 'an answer'
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return all of its rows, [] where it gives none.

        `waits`: what a beat calls this wait. Raises DatabaseError, DatabaseLost, Stopping (the statement was
        cancelled; the session lives, or is closed where the server did not answer in time).
        """
        cursor = self._run(sql, args, waits)
        if self._pooled and not self.in_transaction:
            self._check_backend()
        try:
            return cursor.fetchall() if cursor.description else []
        except (ValueError, OverflowError) as error:  # no text, or a time past the year 9999
            raise DatabaseError(f'{self.where}: a value that Python cannot hold: {error}', '22003') from error

    def run(self, sql: str, args: Sequence[object] = ()) -> tuple[list[tuple[Any, ...]], int]:
        """As `fetch`; the rows, and how many the statement gave or changed (-1: it does not tell)."""
        cursor = self._run(sql, args, 'an answer')
        return (cursor.fetchall() if cursor.description else []), cursor.rowcount

    def one(
        self, sql: str, args: Sequence[object] = (), *, waits: str = 'an answer'
    ) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = self.fetch(sql, args, waits=waits)
        return rows[0] if rows else None

    def execute(self, sql: str, args: Sequence[object] = (), *, waits: str = 'an answer') -> None:
        """Run one statement for its effect."""
        self.fetch(sql, args, waits=waits)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN..COMMIT; ROLLBACK after any exception. Does not nest."""
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def begin(self, options: str = '') -> None:
        """Open a READ COMMITTED transaction; `options` as 'read only'."""
        self._run(f'begin isolation level read committed {options}', (), 'begin')
        if self._pooled:
            self._check_backend()

    def commit(self) -> None:
        """Commit. DatabaseError if PostgreSQL rolled back instead, as it does after a failed statement."""
        cursor = self._run('commit', (), 'commit')
        if cursor.statusmessage != 'COMMIT':
            raise DatabaseError(f'{self.where}: the transaction was rolled back, not committed', '40000')

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Within a transaction: an error undoes only what is inside, and is raised."""
        self.execute('savepoint mikkoo')
        try:
            yield
        except DatabaseError:
            if not self.closed:
                self.execute('rollback to mikkoo')
            raise
        self.execute('release mikkoo')

    def rollback(self) -> None:
        """End the transaction, if there is one; closes the session where it cannot. Never raises."""
        try:
            if self.in_transaction:
                with self._pulse.last_act(CANCEL_GRACE):
                    self._run('rollback', (), 'rollback')
        except MikkooError:
            self.close()

    def notifications(self) -> list[tuple[str, str]]:
        """(channel, payload) of what arrived since the last call. Does not wait; DatabaseLost at the end."""
        try:
            self._connection.poll()
        except psycopg2.Error as error:
            self._raise(error)
        arrived = [(notice.channel, notice.payload) for notice in self._connection.notifies]
        self._connection.notifies.clear()
        return arrived

    def terminate(self, backend: Backend) -> bool:
        """End a former session of ours that the server still takes for alive; whether there was one.

        Such a session holds its locks for as long as the network answers for its dead client.
        """
        return self.one(TERMINATE, (backend.pid, backend.started), waits='terminate') is not None

    def close(self) -> None:
        """Never raises; the server rolls back what was open."""
        try:
            self._connection.close()
        except psycopg2.Error:
            pass  # it is gone already

    @classmethod
    def _open(
        cls, target: Mapping[str, str], pulse: Pulse, timeout: float, statement_timeout: float
    ) -> Session:
        deadline = time.monotonic() + timeout
        try:
            parameters: dict[str, Any] = {**target, 'async_': True}
            session = cls(psycopg2.connect(**parameters), pulse, target, statement_timeout)
        except psycopg2.Error as error:
            raise _refused(error, target) from error
        try:
            try:
                session._poll('connecting', deadline)
            except psycopg2.Error as error:
                raise _refused(error, target) from error
            session._prepare(deadline)
        except BaseException:
            session.close()
            raise
        return session

    def _prepare(self, deadline: float) -> None:
        wanted = SETTINGS | {'statement_timeout': f'{self._statement_timeout * 1000:.0f}'}
        self._run(PREPARE, (list(wanted), list(wanted.values())), 'session settings', deadline)
        [(self.backend_pid, started)] = self._run(BACKEND, (), 'backend', deadline).fetchall()
        self._backend = Backend(self.backend_pid, started)
        # A pooler makes up the process id that it tells at login. One that pools sessions keeps the real one.
        self._pooled = self.backend_pid != self._connection.info.backend_pid
        if self._pooled:
            self._check_backend()

    def _check_backend(self) -> None:
        [(pid,)] = self._run('select pg_backend_pid()', (), 'backend').fetchall()
        if pid != self.backend_pid:
            self.close()
            raise DatabaseError(
                f'{self.where}: a transaction pooler is in between: the server process changed from '
                f'{self.backend_pid} to {pid}. Locks, LISTEN and cursors need a direct connection, or a pool '
                'of sessions'
            )

    def _run(
        self, sql: str, args: Sequence[object], waits: str, deadline: float | None = None
    ) -> extensions.cursor:
        self._pulse.raise_if_stopping()
        looks = deadline is None and not self._pooled
        if deadline is None:
            deadline = time.monotonic() + self._statement_timeout + SILENCE_TIMEOUT
        try:
            cursor = self._connection.cursor()
            cursor.execute(sql, args or None)
            self._poll(waits, deadline, looks=looks)
        except psycopg2.Error as error:
            self._raise(error)
        except Stopping:
            self._abandon()
            raise
        except BaseException:
            self.close()  # a statement is under way that nobody will wait for
            raise
        return cursor

    def _poll(self, waits: str, deadline: float, *, looks: bool = False) -> None:
        waits = f'PostgreSQL {self.where}: {waits}'
        while (state := self._connection.poll()) != extensions.POLL_OK:
            number = self._connection.fileno()
            read, write = ((number,), ()) if state == extensions.POLL_READ else ((), (number,))
            timeout = max(0.0, deadline - time.monotonic())
            if any(self._pulse.wait(waits, min(timeout, LOOK_AFTER) if looks else timeout, read, write)):
                continue
            over = time.monotonic() >= deadline
            if over or not (self._is_at_work() or any(self._pulse.wait(waits, LATE_ANSWER, read, write))):
                self.close()
                raise DatabaseLost(f'{waits}: no answer in time')

    def _is_at_work(self) -> bool:
        """Whether the server is still at the statement, as far as another session can tell.

        A long statement is as silent as a link that lets nothing through; TCP finds that out only where the
        other end of it is gone, not where something on the way answers for it.
        """
        deadline = time.monotonic() + LOOK_TIMEOUT
        assert self._backend is not None
        question = (self._backend.pid, self._backend.started)
        try:
            with closing(self._open(self._target, self._pulse, LOOK_TIMEOUT, LOOK_TIMEOUT)) as other:
                rows = other._run(AT_WORK, question, 'a look', deadline).fetchall()
        except DatabaseLost:
            return False
        except DatabaseError:
            return True  # it has no room for another session, say: that tells nothing
        return rows == [(True,)]

    def _abandon(self) -> None:
        """Cancel the running statement and wait for its end; close the session where that does not come soon.

        Not by PQcancel: it blocks for as long as a stalled network does.
        """
        deadline = time.monotonic() + CANCEL_GRACE
        try:
            with self._pulse.last_act(CANCEL_GRACE):
                with closing(self._open(self._target, self._pulse, CANCEL_GRACE, CANCEL_GRACE)) as other:
                    other.execute('select pg_cancel_backend(%s)', (self.backend_pid,), waits='cancel')
                self._poll('cancel', deadline)
        except psycopg2.errors.QueryCanceled:
            pass
        except (psycopg2.Error, MikkooError):
            self.close()

    def _raise(self, error: psycopg2.Error) -> NoReturn:
        sqlstate = error.pgcode or ''
        text = f'{self.where}: {_scrubbed(error, self._target)}'
        if self.closed or sqlstate in LOST or sqlstate.startswith('08'):
            self.close()
            raise DatabaseLost(text, sqlstate) from error
        raise DatabaseError(text, sqlstate) from error


def _targets(url: str) -> list[dict[str, str]]:
    """The libpq parameters of each host of `url`, in the order to try them. DatabaseError: no libpq url."""
    try:
        whole: dict[str, str] = extensions.parse_dsn(url)
    except psycopg2.Error:
        # libpq's own words quote the url, password and all
        raise DatabaseError('not a libpq url, as postgresql://user:password@host:5432/database') from None
    lists = {key: whole[key].split(',') for key in ('host', 'hostaddr', 'port') if key in whole}
    count = max((len(lists[key]) for key in ('host', 'hostaddr') if key in lists), default=1)
    if any(len(values) not in ({1, count} if key == 'port' else {count}) for key, values in lists.items()):
        raise DatabaseError(f'a url with {count} hosts needs one port, or {count}')
    targets = [
        whole | {key: values[index % len(values)] for key, values in lists.items()} for index in range(count)
    ]
    if whole.get('load_balance_hosts') == 'random':
        random.shuffle(targets)
    if count > 1 and whole.get('target_session_attrs') == 'prefer-standby':
        return [
            target | {'target_session_attrs': attrs} for attrs in ('standby', 'any') for target in targets
        ]
    return targets


def _refused(error: psycopg2.Error, target: Mapping[str, str]) -> DatabaseError:
    """What a failed login was. libpq gives no SQLSTATE here; FATAL is the server's own word."""
    text = f'{_where(target)}: {_scrubbed(error, target)}'
    return DatabaseError(text) if 'FATAL:' in text else DatabaseLost(text)


def _scrubbed(error: psycopg2.Error, target: Mapping[str, str]) -> str:
    text = ' '.join(str(error).split())
    password = target.get('password')
    return text.replace(password, '***') if password else text


def _where(target: Mapping[str, str]) -> str:
    host = target.get('host') or target.get('hostaddr') or 'local'
    return f'{host}:{target.get("port", "5432")}/{target.get("dbname", "")}'
