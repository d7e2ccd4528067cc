"""What becomes of an event that failed: pure decisions, no I/O."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from mikkoo.worker.event import Event


class Kind(Enum):
    """How an event failed. The values are reason codes: they appear in logs and reports."""

    UNTRANSLATABLE = 'untranslatable'  # it cannot become a message
    RETURNED = 'returned'  # the broker found no queue for it (Basic.Return)
    REFUSED = 'refused'  # the broker closed the channel over it, or would have
    KILLS_LINK = 'kills_link'  # links were lost over it, time and again
    NACKED = 'nacked'  # the broker rejected it while it took others to the same exchange
    KILLS_WORKER = 'kills_worker'  # a process ended while it relayed this event alone


class Failure(NamedTuple):
    """One failed attempt of an event. `code`: the broker's reply code, 0 where it gave none.

    `permanent`: no retry can cure it.
    """

    event: Event
    kind: Kind
    code: int
    text: str
    permanent: bool = False


class Verdict(Enum):
    RETRY = 'retry'
    DEAD = 'dead'


def attempts(event: Event) -> int:
    """How many times this event has been tried, the present time included (ev_retry is NULL at first)."""
    return (event.retry or 0) + 1


def judge(failure: Failure, max_failures: int) -> Verdict:
    """Try again later, or give up: at once if permanent, else at attempt number `max_failures`."""
    if failure.permanent or attempts(failure.event) >= max_failures:
        return Verdict.DEAD
    return Verdict.RETRY


def describe(failure: Failure) -> str:
    """The failure in a line, for logs and reports."""
    code = f' {failure.code}' if failure.code else ''
    return f'{failure.kind.value}{code}: {failure.text}'
