"""When a batch is relayed one event at a time: an event in it ends the process. Pure decisions, no I/O.

A batch that was opened `MOST_ENDS` times without getting on is relayed so that the next end tells which event
does it: the first one behind what was saved. Only that one is given up; its neighbours are delivered.
"""

from __future__ import annotations

from enum import Enum

from mikkoo.common.pgq import Opening

MOST_ENDS = 3  # ends of a process running, without progress in between, that are taken for chance
# How far an event that was being handled may be behind what was saved last, besides the window: a saving
# interval (1,900), a slice (500), and what has come since the last look (64) and the last write (32).
REACH = 2_500
PROOF = 100  # events that pass alone and show that it is some events that end the process, not the machine


class Way(Enum):
    """How to go on with a batch."""

    TOGETHER = 'together'  # as always: many events in flight
    ALONE = 'alone'  # for a stretch one at a time
    BURY = 'bury'  # the same, behind the first event: it ended the process


def way(opening: Opening, survived: bool) -> Way:
    """What to do with a batch that is opened.

    `survived`: this process was the last to open it, so nothing in it has ended a process.
    """
    if opening.alone:
        return Way.ALONE if survived else Way.BURY
    return Way.ALONE if opening.attempts > MOST_ENDS else Way.TOGETHER


def stretch(confirm_window: int) -> int:
    """How many events to relay one at a time until the cause would have shown itself."""
    return confirm_window + REACH


def ends(opening: Opening) -> int:
    """How many processes have ended over the batch since it last got on."""
    return max(1, opening.attempts - 1)


def reason(opening: Opening) -> str:
    """Of the dead letter."""
    count = ends(opening)
    if count == 1:
        return 'the process ended while it relayed this event alone'
    return f'the process ended {count} times running, the last time while it relayed this event alone'
