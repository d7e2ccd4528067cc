"""Logging: the parent alone opens handlers; a child sends its records through the pipe.

In the parent `configure`, then `handle` for each `log` message, `reopen` on SIGHUP. In a child `child`, then
`set_levels` when told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mikkoo.common.log_handlers import QUIET, QUIET_LEVEL, configure, reopen
from mikkoo.common.log_pipe import LOST, PipeHandler, to_record
from mikkoo.common.pipe import Pipe

__all__ = ['JsonFormatter', 'child', 'configure', 'handle', 'reopen', 'set_levels', 'take_lost']

_levelled: set[str] = set()  # loggers that `set_levels` has given a level


def handle(message: Mapping[str, Any]) -> None:
    """In the parent: give the record in a child's `log` message to the handlers."""
    logging.getLogger(message['name']).handle(to_record(message))


def child(pipe: Pipe, levels: Mapping[str, int], *, name: str) -> None:
    """In a child: send all records through the pipe. `name`: what they bear as processName."""
    logging.raiseExceptions = False
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(PipeHandler(pipe, name))
    set_levels(levels)


def set_levels(levels: Mapping[str, int]) -> None:
    """In a child: logger name to level number, '' for the root; other loggers inherit again."""
    root = levels.get('', logging.WARNING)
    levels = {'': root, **{name: max(QUIET_LEVEL, root) for name in QUIET}, **levels}
    for name in _levelled - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _levelled.clear()
    _levelled.update(levels)


def take_lost() -> tuple[int, str]:
    """How many records were lost since the last call (no room in the pipe, a failing handler), and why."""
    return LOST.take()


class JsonFormatter(logging.Formatter):
    """One JSON object a line; in a Logging section `json: {'()': mikkoo.common.logs.JsonFormatter}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            'time': datetime.fromtimestamp(record.created, UTC).isoformat(timespec='milliseconds'),
            'level': record.levelname,
            'logger': record.name,
            'process': record.processName,
            'pid': record.process,
            'message': record.getMessage(),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line['exception'] = record.exc_text
        return json.dumps(line)
