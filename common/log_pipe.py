"""Log records as messages of the pipe: a child's only handler, and the way back in the parent."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from mikkoo.common.pipe import LARGEST_MESSAGE, Pipe
from mikkoo.common.redaction import redact, writable

LARGEST_TEXT = LARGEST_MESSAGE * 6 // 10  # bytes of a record's message as JSON; 'logged whole' within this
LARGEST_TRACEBACK = LARGEST_MESSAGE * 3 // 10
SHARE = 0.5  # of the pipe's buffer is for log records: beats must find room in any flood

# For tracebacks, and for standard error when nobody reads the pipe any more.
PLAIN = logging.Formatter('%(asctime)s %(levelname)-8s %(processName)s %(name)s: %(message)s')


class Lost:
    """Log records that came to nothing in this process: how many, and why the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.reason = ''

    def add(self, reason: str) -> None:
        self.count += 1
        self.reason = reason

    def take(self) -> tuple[int, str]:
        """The number since the last call, and the last reason."""
        taken = self.count, self.reason
        self.count, self.reason = 0, ''
        return taken


LOST = Lost()


class PipeHandler(logging.Handler):
    """Sends records through the pipe; to standard error once that has ended.

    What does not fit is dropped, counted, and said in one WARNING as soon as there is room again.
    """

    def __init__(self, pipe: Pipe, process: str) -> None:
        super().__init__()
        self._pipe = pipe
        self._process = process
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            record.processName = self._process
            if not self._deliver(record):
                self._dropped += 1
                LOST.add('no room in the pipe to the supervisor')
        except Exception:  # noqa: BLE001 - logging must not end the relay; handleError counts it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        LOST.add(f'{record.name}: {sys.exception()!r}')

    def _deliver(self, record: logging.LogRecord) -> bool:
        if not self._pipe.ended and self._pipe.fill() < SHARE:
            if self._dropped and self._pipe.send('log', **to_message(self._notice())):
                self._dropped = 0
            if not self._dropped and self._pipe.send('log', **to_message(record)):
                return True
        if not self._pipe.ended:
            return False
        sys.stderr.write(redact(PLAIN.format(record)) + '\n')
        return True

    def _notice(self) -> logging.LogRecord:
        notice = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, f'{self._dropped} log records were dropped', (), None
        )
        notice.processName = self._process
        return notice


def to_message(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a `log` message, small enough for the pipe."""
    return {
        'name': record.name,
        'level': record.levelno,
        'message': cut(text_of(record), LARGEST_TEXT),
        'exc_text': cut(_traceback(record), LARGEST_TRACEBACK, end=True),
        'created': record.created,
        'process': os.getpid(),
        'processName': record.processName,
        'threadName': record.threadName,
        'pathname': record.pathname,
        'lineno': record.lineno,
        'funcName': record.funcName,
    }


def to_record(message: Mapping[str, Any]) -> logging.LogRecord:
    """The record that `to_message` was given, for the parent's handlers."""
    record = logging.LogRecord(
        message['name'], message['level'], message['pathname'], message['lineno'], message['message'],
        None, None, message['funcName'],
    )  # fmt: skip
    record.exc_text = message['exc_text'] or None
    record.created = message['created']
    record.msecs = int(record.created % 1 * 1000)
    record.process = message['process']
    record.processName = message['processName']
    record.threadName = message['threadName']
    record.thread = None
    return record


def cut(text: str, most: int, end: bool = False) -> str:
    """The text, or as much of its start (`end`: of its end) as `most` bytes of JSON hold, and a note."""
    text = writable(text)
    if len(text) * 6 <= most:  # no character takes more in JSON
        return text
    kept = text
    while (size := len(json.dumps(kept, ensure_ascii=False).encode())) > most:
        keep = int(len(kept) * (most - 64) / size * 0.99)
        kept = kept[-keep:] if end else kept[:keep]
    if kept is text:
        return text
    note = f'[cut: {len(text)} characters]'
    return f'{note} …{kept}' if end else f'{kept}… {note}'


def text_of(record: logging.LogRecord) -> str:
    """The record's message, though its arguments may not fit it."""
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - an argument's __str__ may raise anything
        return f'{record.msg!r} cannot be formatted: {error!r}'


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = PLAIN.formatException(record.exc_info)
    return '\n'.join(filter(None, (record.exc_text, record.stack_info)))
