"""Makes processes: the table of their kinds, and a child's first steps.

Children are spawned, not forked: the supervisor has threads. What a spawned child must not do is run the
supervisor's console script again (multiprocessing re-imports `__main__`), so a child is given an empty one.

A child ends with the supervisor, however that dies: its pipe ends, the kernel sends it SIGTERM
(PR_SET_PDEATHSIG, which follows the *thread* that forked: spawn from the main thread only), and a thread of
its own kills it where it does not go within ORPHAN_DEADLINE.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from types import ModuleType
from typing import Any

from mikkoo.common.errors import ConfigurationError, Exit, MikkooError, Stopping
from mikkoo.common.pipe import Pipe
from mikkoo.common.redaction import redact
from mikkoo.common.settings import ProcessSettings, Telemetry

ENTRIES: Mapping[str, str] = {'worker': 'mikkoo.worker.main:run', 'auditor': 'mikkoo.auditor.main:run'}

__all__ = ['ENTRIES', 'Entry', 'SpawnProcess', 'forget', 'spawn']

Entry = Callable[[Any, Telemetry, socket.socket], int]  # takes the settings of its kind

ORPHAN_DEADLINE = 4.5  # seconds that a child may drain after the supervisor's death
LONGEST_REASON = 2000  # characters of a failure that is sent to the supervisor

_HELD_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h


def spawn(entry: str, settings: ProcessSettings, telemetry: Telemetry) -> tuple[SpawnProcess, Pipe]:
    """Start a child; its process and our end of its pipe. Main thread only. Raises OSError.

    `entry`: 'module:function', an Entry. It is called with TERM, INT and HUP blocked and has to unblock them.
    """
    ours, theirs = Pipe.pair()
    try:
        process = multiprocessing.get_context('spawn').Process(
            target=_run, args=(entry, settings, telemetry, theirs, os.getpid()), daemon=True
        )
        # The tracker's start unblocks TERM and INT behind our back: let it happen before.
        with _signals_held():
            resource_tracker.ensure_running()
        with _signals_held(), _empty_main():
            process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, Pipe(ours)


def forget(process: SpawnProcess) -> None:
    """Let the interpreter exit without it: multiprocessing would wait for it without end."""
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait, here and in what is started: a child that has no handlers yet must not die of one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _empty_main() -> Iterator[None]:
    """Without a file or a spec of ours in `__main__`, the child has nothing to run again."""
    before = sys.modules['__main__']
    sys.modules['__main__'] = ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = before


def _run(
    entry: str, settings: ProcessSettings, telemetry: Telemetry, end: socket.socket, parent: int
) -> None:
    """In the child: tie it to its parent, run its entry, leave with an exit code."""
    _die_with(parent, settings.name)
    try:
        module, _, function = entry.partition(':')
        run: Entry = getattr(importlib.import_module(module), function)
        code = run(settings, telemetry, end)
    except Stopping:
        code = Exit.OK
    except ConfigurationError as error:
        code = _explained(end, Exit.CONFIG, str(error))
    except MikkooError as error:
        code = _explained(end, Exit.FAILURE, str(error))
    except Exception:  # noqa: BLE001 (whatever it is, the supervisor is told)
        code = _explained(end, Exit.SOFTWARE, traceback.format_exc())
    sys.exit(int(code))


def _explained(end: socket.socket, code: Exit, reason: str) -> Exit:
    """Say why, without passwords, on standard error, which a daemon does not have, and on the pipe."""
    reason = redact(reason)
    print(reason, file=sys.stderr)
    if end.fileno() >= 0:
        Pipe(end).send('died', reason=reason[-LONGEST_REASON:])
    return code


def _die_with(parent: int, name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, f'mikkoo:{name}'.encode()[:15], 0, 0, 0)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), 'prctl(PR_SET_PDEATHSIG)')
    if os.getppid() != parent:
        sys.exit(Exit.FAILURE)  # it died before the kernel knew
    threading.Thread(target=_kill_orphan, name='orphan', daemon=True).start()


def _kill_orphan() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    threading.Event().wait(ORPHAN_DEADLINE)
    os.kill(os.getpid(), signal.SIGKILL)
