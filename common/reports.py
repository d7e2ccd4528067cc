"""Sentry: what went wrong, told to the people who run Mikkoo; nothing at all while no DSN is set.

sentry_sdk is imported when there is a DSN: it takes 14 MiB of each process. Its integrations are off, so that
an ERROR in the log is not reported by itself (whoever logs what a person has to see reports it too) and
nothing but `flush` waits at exit. Events leave in a thread of the SDK's, through a queue that drops when
full: an endpoint that hangs or refuses holds nobody up. Variables are not sent, passwords are struck out, and
the SDK's default is to send nothing about persons (its `send_default_pii` is deprecated, so it is not named).
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Hashable
from importlib.metadata import version
from typing import Any

from mikkoo.common.redaction import redact_all

EXIT_TIMEOUT = 2.0  # seconds that `flush` may hold up the end of a process
QUIET_TIME = 60.0  # seconds within which the same report is not sent again, only counted
MOST_KEYS = 200  # different reports that are remembered

logger = logging.getLogger(__name__)


class Limiter:
    """At most one report of a kind in `QUIET_TIME`; those held back are counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Hashable, tuple[float, int]] = {}  # key: sent at, held back since

    def admit(self, key: Hashable) -> int | None:
        """How many were held back before this one, which may be sent; None: hold it back."""
        now = self._clock()
        sent_at, held = self._seen.pop(key, (float('-inf'), 0))
        fresh = now >= sent_at + QUIET_TIME
        self._seen[key] = (now, 0) if fresh else (sent_at, held + 1)
        if len(self._seen) > MOST_KEYS:
            del self._seen[next(iter(self._seen))]  # the one not reported for longest
        return held if fresh else None

    def take_held(self) -> dict[Hashable, int]:
        """What is held back and was told to nobody; forgets it."""
        held = {key: number for key, (_, number) in self._seen.items() if number}
        self._seen.update({key: (self._seen[key][0], 0) for key in held})
        return held


class _State:
    def __init__(self) -> None:
        self.sdk: Any = None  # the module sentry_sdk, while there is a DSN
        self.dsn: str | None = None
        self.tags: dict[str, str] = {}
        self.release = ''
        self.limiter = Limiter()


_state = _State()


def init(dsn: str | None, *, process: str, worker: str = '', queue: str = '', release: str = '') -> None:
    """Once in a process, after a daemon's forks. `process` ('supervisor', 'worker'), worker, queue: tags.

    `release` '' means the installed version. A wrong DSN is logged at ERROR; the relay goes on without.
    """
    tags = {'process': process, 'worker': worker, 'queue': queue}
    _state.tags = {name: value for name, value in tags.items() if value}
    _state.release = release
    _state.limiter = Limiter()
    configure(dsn)


def configure(dsn: str | None) -> None:
    """Take a changed DSN at once; None turns reports off. What has not left for the old one is dropped."""
    dsn = dsn or None
    if dsn == _state.dsn:
        return
    if _state.sdk is not None:
        _state.sdk.get_client().close(timeout=0)
        _state.sdk.Scope.get_global_scope().set_client(None)
    _state.dsn, _state.sdk = dsn, None
    if dsn is not None:
        _start(dsn)


def exception(error: BaseException, **context: Any) -> None:
    """Report an exception. `context`: plain values shown with it; `fingerprint`: what is the same report."""
    if _state.sdk is not None:
        key = context.pop('fingerprint', None) or (type(error).__qualname__, *_place(error))
        _send(key, context, 'error', lambda: _state.sdk.capture_exception(error))


def message(text: str, level: str = 'error', **context: Any) -> None:
    """Report a text at 'info', 'warning', 'error' or 'fatal'. `context` as in `exception`.

    The same text, or `fingerprint`, is the same report: what differs each time belongs into `context`.
    """
    if _state.sdk is not None:
        key = context.pop('fingerprint', None) or (text,)
        _send(key, context, level, lambda: _state.sdk.capture_message(text))


def flush(timeout: float = EXIT_TIMEOUT) -> None:
    """Before the process ends: tell what was held back, and wait at most `timeout` seconds for all to go."""
    if _state.sdk is not None:
        for key, held in _state.limiter.take_held().items():
            _capture(key, {'held_back': held}, 'info', lambda: _state.sdk.capture_message('reported before'))
        _state.sdk.flush(timeout=timeout)


def _start(dsn: str) -> None:
    import sentry_sdk

    try:
        sentry_sdk.init(
            dsn=dsn,
            release=_state.release or f'mikkoo@{version("mikkoo")}',
            server_name=platform.node(),
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,
            include_local_variables=False,
            max_breadcrumbs=0,
            spotlight=False,
            in_app_include=['mikkoo'],
            shutdown_timeout=EXIT_TIMEOUT,
            before_send=lambda event, hint: redact_all(event),
        )
    except ValueError as error:  # BadDsn, or a port that is no number
        logger.error('reports to Sentry are off: sentry_dsn is not the DSN of a Sentry project: %s', error)
        return
    _state.sdk = sentry_sdk


def _send(key: Hashable, context: dict[str, Any], level: str, capture: Callable[[], object]) -> None:
    held = _state.limiter.admit(key)
    if held is not None:
        _capture(key, {**context, 'held_back': held} if held else context, level, capture)


def _capture(key: Hashable, context: dict[str, Any], level: str, capture: Callable[[], object]) -> None:
    with _state.sdk.new_scope() as scope:
        for name, value in _state.tags.items():
            scope.set_tag(name, value)
        scope.set_level(level)
        scope.fingerprint = [str(part) for part in (key if isinstance(key, tuple) else (key,))]
        if context:
            scope.set_context('mikkoo', context)
        capture()


def _place(error: BaseException) -> tuple[str, int]:
    """File and line where it was raised; ('', 0) if it never was."""
    place, trace = ('', 0), error.__traceback__
    while trace is not None:
        place, trace = (trace.tb_frame.f_code.co_filename, trace.tb_lineno), trace.tb_next
    return place
