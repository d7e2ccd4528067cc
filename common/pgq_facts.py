"""What a session finds out about PgQ and mikkoo.sql, for `mikkood check --connect` and for error texts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mikkoo.common.errors import DatabaseError
from mikkoo.common.postgres import Session

SCHEMA_VERSION = 5  # what the mikkoo.sql beside this makes
FUTURE_TICK = 5.0  # seconds ahead of the server's clock from which a tick shows that the clock was set back
PL_ONLY = 'PL/pgSQL only'  # what pgq_version says of pgq_pl_only.sql, whose pgq.version() is NULL

HAS_PGQ = "select to_regclass('pgq.queue') is not null"
VERSION = 'select pgq.version()'
USER = "select quote_ident(current_user), has_schema_privilege('pgq', 'USAGE')"
QUEUES = 'select queue_name from pgq.queue order by queue_name'
TICK_AGE = 'select extract(epoch from ticker_lag)::float8 from pgq.get_queue_info(%s)'
# create_queue makes tick 1. PgQ removes old ticks, so there may be but one of a queue that ticks for long.
ONE_TICK = 'select last_tick_id = 1 from pgq.get_queue_info(%s)'
HAS_SCHEMA_VERSION = """
    select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'mikkoo' and c.relname = 'schema_version'
"""
SCHEMA_VERSION_NOW = 'select max(version) from mikkoo.schema_version'
LACKING = """
    select signature from unnest(%s::text[]) as wanted (signature)
    where not coalesce(has_function_privilege(to_regprocedure(signature), 'EXECUTE'), false)
"""
UNREADABLE = """
    select c.oid::regclass::text
    from pgq.queue q join pg_inherits i on i.inhparent = q.queue_data_pfx::regclass
        join pg_class c on c.oid = i.inhrelid
    where q.queue_name = %s and not has_table_privilege(c.oid, 'SELECT')
"""
READ_ONLY = """
    select pg_is_in_recovery() where current_setting('transaction_read_only')::bool
"""
# txid_current() would use a transaction id up each time; the snapshot's end is the first id yet to come.
AHEAD = """
    select txid_snapshot_xmax(tick_snapshot), txid_snapshot_xmax(txid_current_snapshot())
    from pgq.tick join pgq.queue on tick_queue = queue_id where queue_name = %s order by tick_id desc limit 1
"""
MOVER = """
    select has_schema_privilege(n.oid, 'USAGE') and has_function_privilege(p.oid, 'EXECUTE')
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'mikkoo' and p.proname = 'move_retries' and p.pronargs = 0
"""

CONSUMING = (
    'pgq.register_consumer(text,text)',
    'pgq.unregister_consumer(text,text)',
    'pgq.next_batch_custom(text,text,interval,integer,interval)',
    'pgq.batch_event_sql(bigint)',
    'pgq.event_retry(bigint,bigint,timestamptz)',
    'pgq.finish_batch(bigint)',
)
CREATING = 'pgq.create_queue(text)'
# Not needed, but quicker than event_retry
RETRYING = (
    'pgq.event_retry_raw(text,text,timestamptz,bigint,timestamptz,integer,text,text,text,text,text,text)'
)


def pgq_version(session: Session) -> str | None:
    """PgQ's version as '3.5', PL_ONLY where it does not know, None where PgQ is not installed."""
    [(installed,)] = session.fetch(HAS_PGQ)
    if not installed:
        return None
    [(version,)] = session.fetch(VERSION)
    return version or PL_ONLY


def queue_exists(session: Session, queue: str) -> bool:
    return (queue,) in session.fetch(QUEUES)


def nearest_queue(session: Session, queue: str) -> str | None:
    """The existing queue whose name is most like `queue`, if any is."""
    names = [name for (name,) in session.fetch(QUEUES)]
    return next(iter(difflib.get_close_matches(queue, names, 1)), None)


@dataclass(frozen=True, slots=True)
class Ahead:
    """PgQ's ticks are ahead of the server: the next transaction ids when the last was made, and now."""

    tick: int
    server: int

    def __str__(self) -> str:
        return (
            f'Invalid PgQ state: the last tick is of transaction {self.tick}, the server has come to '
            f'{self.server}: restored into a younger cluster. Nothing ticks, new events would be passed over'
        )


def ahead(session: Session, queue: str) -> Ahead | None:
    """Whether the database was dumped, and restored into a cluster that has used fewer transaction ids.

    PgQ tells by transaction ids which events are between two ticks.
    """
    row = session.one(AHEAD, (queue,))
    return None if row is None or row[0] <= row[1] else Ahead(*row)


def raise_if_read_only(session: Session) -> None:
    """DatabaseError that says why nothing can be written here."""
    row = session.one(READ_ONLY)
    if row is not None:
        why = 'a standby, in recovery' if row[0] else 'default_transaction_read_only is on'
        raise DatabaseError(f'{session.where}: read only: {why}', '25006')


def last_tick_age(session: Session, queue: str) -> float | None:
    """Seconds since the queue's last tick; None for an unknown queue. PgQ's default is under a minute."""
    row = session.one(TICK_AGE, (queue,))
    return None if row is None else row[0]


def only_first_tick(session: Session, queue: str) -> bool:
    """Whether the queue has not ticked since create_queue, which makes a tick without any ticker."""
    row = session.one(ONE_TICK, (queue,))
    return row is not None and bool(row[0])


def mikkoo_schema_version(session: Session) -> int | None:
    """The version of the installed mikkoo.sql; None: there is none, or one without a version."""
    if session.one(HAS_SCHEMA_VERSION) is None:
        return None
    [(version,)] = session.fetch(SCHEMA_VERSION_NOW)
    return version  # type: ignore[no-any-return]


def lacking(session: Session, *signatures: str) -> list[str]:
    """Those of the functions that the session's user may not call, or that do not exist."""
    return [signature for (signature,) in session.fetch(LACKING, (list(signatures),))]


def may_move_retries(session: Session) -> bool | None:
    """Whether the session's user may call mikkoo.move_retries; None: mikkoo.sql is not installed."""
    row = session.one(MOVER)
    return None if row is None else row[0]


def missing_privileges(session: Session, queue: str, *, create_queue: bool = False) -> list[str]:
    """What the relay needs and its user may not, each with the GRANT that cures it."""
    [(user, schema_usable)] = session.fetch(USER)
    if not schema_usable:
        return [f'USAGE on schema pgq: GRANT USAGE ON SCHEMA pgq TO {user};']
    movable = may_move_retries(session)
    role = 'pgq_reader' if movable is None else 'mikkoo_relay'
    missing = [f'{signature}: GRANT {role} TO {user};' for signature in lacking(session, *CONSUMING)]
    missing += [
        f'SELECT on {table}: GRANT {role} TO {user};' for (table,) in session.fetch(UNREADABLE, (queue,))
    ]
    if movable is False:
        missing.append(f'mikkoo.move_retries(): GRANT mikkoo_relay TO {user};')
    if create_queue and lacking(session, CREATING):
        missing.append(f'{CREATING}: GRANT EXECUTE ON FUNCTION {CREATING} TO {user};')
    return missing


def no_such_queue(session: Session, queue: str) -> DatabaseError:
    """The error that names an unknown queue and the one that was perhaps meant."""
    nearest = nearest_queue(session, queue)
    hint = f'; did you mean "{nearest}"?' if nearest else ''
    return DatabaseError(f'{session.where}: PgQ has no queue "{queue}"{hint}', '42704')
