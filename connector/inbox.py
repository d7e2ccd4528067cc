"""Deduplication by message_id: a callback that drops what this consumer has already handled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mikkoo.common.errors import DatabaseError, DatabaseLost
from mikkoo.connector.attempts import Callback, Unavailable, caused_by
from mikkoo.connector.hand import Hand

LOGGER = logging.getLogger('mikkoo.connector')

KEEP = 7 * 24 * 3600.0  # seconds that a handled message is remembered


INBOX_SQL = """
create schema if not exists mikkoo;
create table if not exists mikkoo.inbox (
    consumer   text not null,
    message_id text not null,
    handled_at timestamptz not null default now(),
    constraint inbox_pkey primary key (consumer, message_id)
);
create index if not exists inbox_handled_at on mikkoo.inbox (consumer, handled_at);
"""  # of mikkoo.sql, for databases without PgQ


class Inbox(Protocol):
    """Remembers messages; see inbox_postgres.py and inbox_sqlite.py."""

    def begin(self, message_id: str | None) -> bool: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def lost(self) -> bool: ...
    def close(self) -> None: ...
    def undisturbed(self) -> AbstractContextManager[None]: ...


class Deduplicated:
    """A callback around a callback. Raises Unavailable, and what the callback raises.

    What the callback settles itself is sent when its transaction is committed, never before.
    """

    def __init__(self, callback: Callback, inbox: Inbox, hand: Hand, duplicate: Callable[[], object]) -> None:
        self._callback = callback
        self._inbox = inbox
        self._hand = hand
        self._warned = False
        self._duplicate = duplicate

    def __call__(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        tag = method.delivery_tag
        if properties.message_id is None and not self._warned:
            self._warned = True
            LOGGER.warning('a message without message_id: it cannot be deduplicated')
        if not self._begin(properties.message_id):
            self._duplicate()
            LOGGER.info('message %s was handled before', properties.message_id)
            self._hand.ack(tag)
            return
        with self._inbox.undisturbed():
            self._hand.hold(tag)
            try:
                self._callback(channel, method, properties, body)
            except BaseException as error:
                self._hand.forget(tag)
                self._inbox.rollback()
                if self._inbox.lost() and caused_by(error, DatabaseLost):
                    raise Unavailable(str(error)) from error
                raise
            self._end(tag)

    def _begin(self, message_id: str | None) -> bool:
        try:
            return self._inbox.begin(message_id)
        except DatabaseError as error:
            raise Unavailable(str(error)) from error

    def _end(self, tag: int) -> None:
        if self._hand.held_is_refused:
            self._inbox.rollback()
        else:
            try:
                self._inbox.commit()
            except DatabaseError as error:
                self._hand.forget(tag)
                self._inbox.rollback()
                if self._inbox.lost() or not error.sqlstate:
                    raise Unavailable(str(error)) from error
                raise
        self._hand.release(tag)
