"""The process's logging as it was, after a test that configures it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mikkoo.common import log_handlers, logs


@contextmanager
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    log_handlers._applied.loggers = {''}  # the test runner's handlers go, as those of a former configuration
    try:
        yield
    finally:
        logs.set_levels({})
        names = {n for n, v in root.manager.loggerDict.items() if isinstance(v, logging.Logger)}
        log_handlers._forget(names - {'concurrent.futures'})
        for handler in log_handlers._applied.handlers:
            log_handlers._close(handler)
        log_handlers._applied.__init__()  # type: ignore[misc]
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions = raising
        logs.take_lost()
