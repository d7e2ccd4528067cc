"""The parent's log handlers: a dictConfig dictionary applied whole or not at all.

When it is refused the old handlers go on, never closed. Two of its keys mean nothing here:
`disable_existing_loggers` (a logger that is not named answers to the root, whichever process made it first)
and `incremental`. After dictConfig every handler gets what is common to all: passwords are struck out, a
record is written once although the handler hangs on a logger and on the root, and a failure is counted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from mikkoo.common.errors import ConfigurationError, Mistake
from mikkoo.common.log_pipe import LOST, PLAIN, text_of
from mikkoo.common.redaction import redact, writable

OURS = 'mikkoo'
# Loggers that say too much for the level that suits all others. watchdog's at DEBUG would never end: a line
# about each write in the configuration's folder, and the log may be there.
QUIET = ('rabbitpy', 'watchdog')
QUIET_LEVEL = logging.WARNING


class _Applied:
    """What `configure` set last, to be undone by the next."""

    def __init__(self) -> None:
        self.handlers: list[logging.Handler] = []
        self.loggers: set[str] = set()
        self.config: dict[str, Any] | None = None


_applied = _Applied()


def configure(settings: Mapping[str, Any], *, foreground: bool, source: str = 'the configuration') -> None:
    """In the parent: apply a Logging section. Handlers with `debug_only` are left out of a daemon.

    A daemon whose records would reach no handler sends warnings to syslog. ConfigurationError, with the old
    logging left as it was: it cannot be applied (a file cannot be opened), or there is no syslog either.
    """
    config = prepared(settings, foreground)
    if config == _applied.config:
        return  # above all after a daemon's change of user, who might not be able to open the files again
    old = _applied.handlers
    with _all_or_nothing(source):
        _forget(_applied.loggers)
        names = {'', *config['loggers']}
        _dict_config(config)
        _quiet()
        if not foreground and not any(map(_is_heard, _reached(OURS))):
            _fall_back_on_syslog()
        handlers = _attached(names)
        for handler in handlers:
            _furnish(handler)
    _applied.loggers, _applied.handlers = names.union(QUIET), handlers
    _applied.config = prepared(settings, foreground)
    for handler in old:
        _close(handler)


def prepared(settings: Mapping[str, Any], foreground: bool) -> dict[str, Any]:
    """A Logging section as dictConfig takes it, for the foreground or for a daemon."""
    config: dict[str, Any] = {'version': 1, **_plain(settings)}
    config |= {'disable_existing_loggers': False, 'incremental': False}
    for key in ('handlers', 'loggers', 'root'):
        config[key] = config.get(key) or {}
    marked = {name for name, handler in config['handlers'].items() if handler.pop('debug_only', False)}
    if not foreground:
        for name in marked:
            del config['handlers'][name]
        for logger in (config['root'], *config['loggers'].values()):
            logger['handlers'] = [name for name in logger.get('handlers') or () if name not in marked]
    return config


def reopen() -> None:
    """Open the log files again whose name has come to mean another file: logrotate moved them away."""
    import logging.handlers

    for handler in _applied.handlers:
        if isinstance(handler, logging.FileHandler) and not isinstance(
            handler, logging.handlers.WatchedFileHandler
        ):
            try:
                _reopen(handler)
            except OSError as error:
                logging.getLogger(__name__).warning('the log goes on in the old file: %s', error)


class _Once(logging.Filter):
    """Lets a record through its handler once, with its passwords struck out, message and traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        passed: set[int] | None = record.__dict__.get('_passed')
        if passed is None:
            passed = record.__dict__['_passed'] = set()
            _redact(record)
        fresh = id(self) not in passed
        passed.add(id(self))
        return fresh


def _redact(record: logging.LogRecord) -> None:
    record.msg, record.args = redact(writable(text_of(record))), None
    if record.exc_info and not record.exc_text:
        record.exc_text = PLAIN.formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = redact(writable(record.exc_text))
    record.exc_info = None  # formatters print exc_text; nothing shall print the exception itself
    if record.processName == 'MainProcess':
        record.processName = 'supervisor'


def _furnish(handler: logging.Handler) -> None:
    handler.filters.insert(0, _Once())

    def fail(record: logging.LogRecord) -> None:
        LOST.add(f'{type(handler).__name__}: {sys.exception()!r}')

    handler.handleError = fail  # type: ignore[method-assign]


def _close(handler: logging.Handler | TextIO) -> None:
    """Close a handler, or the file of one."""
    try:
        handler.close()
    except OSError as error:  # the disk is full: what was buffered is lost, the file is closed all the same
        LOST.add(f'{type(handler).__name__}: {error!r}')


def _is_heard(handler: logging.Handler) -> bool:
    """Whether a daemon, whose standard streams lead nowhere, is heard through a handler."""
    stream = getattr(handler, 'stream', None)
    return not isinstance(handler, logging.NullHandler) and (
        stream is None or stream not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    )


def _reached(name: str) -> list[logging.Handler]:
    return [handler for logger in _chain(name) for handler in logger.handlers]


def _chain(name: str) -> list[logging.Logger]:
    """The loggers whose handlers a record of that logger reaches, the outermost last."""
    loggers = [logging.getLogger(name)]
    while loggers[-1].propagate and (parent := loggers[-1].parent) is not None:
        loggers.append(parent)
    return loggers


def _attached(names: set[str]) -> list[logging.Handler]:
    return list(dict.fromkeys(h for name in sorted(names) for h in logging.getLogger(name).handlers))


def _fall_back_on_syslog() -> None:
    from mikkoo.common import syslog

    try:
        handler = syslog.Syslog()
    except OSError as error:
        raise ValueError(
            'a daemon would log nowhere: every handler is debug_only or writes to the terminal, and there is'
            f' no syslog at {syslog.ADDRESS} ({error.strerror}); give it a handler that writes to a file'
        ) from None
    _chain(OURS)[-1].addHandler(handler)


def _dict_config(config: dict[str, Any]) -> None:
    import logging.config

    # dictConfig first closes every handler of the process, before it knows whether it can make the new ones.
    kept = logging._handlerList[:]  # type: ignore[attr-defined]
    logging._handlerList.clear()  # type: ignore[attr-defined]
    try:
        logging.config.dictConfig(config)
    except BaseException:
        logging.shutdown(logging._handlerList[:])  # type: ignore[attr-defined]
        raise
    finally:
        logging._handlerList[:0] = kept  # type: ignore[attr-defined]


def _forget(names: set[str]) -> None:
    """Loggers as they were before they were configured."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers[:], logger.filters[:] = [], []
        logger.propagate, logger.disabled = True, False
        logger.setLevel(logging.NOTSET if name else logging.WARNING)


def _quiet() -> None:
    """A level for those of QUIET that were given none: quieter than the root, never louder."""
    for logger in map(logging.getLogger, QUIET):
        if logger.level == logging.NOTSET:
            logger.setLevel(max(QUIET_LEVEL, logging.getLogger().level))


@contextmanager
def _all_or_nothing(source: str) -> Iterator[None]:
    """Put all loggers back as they were if the block fails; ConfigurationError says why."""
    loggers = [logging.getLogger(), *_loggers()]
    before = [(logger, dict(logger.__dict__), logger.handlers[:], logger.filters[:]) for logger in loggers]
    try:
        yield
    except Exception as error:
        _forget({logger.name for logger in _loggers()})
        for logger, fields, handlers, filters in before:
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.propagate, logger.disabled = fields['propagate'], fields['disabled']
            logger.setLevel(fields['level'])
        raise ConfigurationError(Mistake(source, 0, 0, 'Logging', '', redact(_reason(error)))) from error


def _loggers() -> list[logging.Logger]:
    """All but the root."""
    return [v for v in logging.root.manager.loggerDict.values() if isinstance(v, logging.Logger)]


def _reason(error: BaseException) -> str:
    """An exception and its causes in a line: dictConfig tells the handler, its cause the file."""
    texts = [str(error)]
    while (cause := error.__cause__) is not None:
        error = cause
        if str(error) not in texts:
            texts.append(str(error))
    return ': '.join(texts)


def _reopen(handler: logging.FileHandler) -> None:
    handler.acquire()
    try:
        if handler.stream is None or _same_file(handler.baseFilename, handler.stream.fileno()):
            return
        # Appending, whatever the handler's mode is: another process may have begun the new file.
        new = open(handler.baseFilename, 'a', encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115
        old, handler.stream = handler.stream, new
        _close(old)
    finally:
        handler.release()


def _same_file(path: str, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


def _plain(value: Any) -> Any:
    """A copy in plain dictionaries and lists, which dictConfig changes as it goes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
