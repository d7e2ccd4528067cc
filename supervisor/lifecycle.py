"""start, stop and restart: from a configuration's path to a process that lives, or is gone."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mikkoo.common.errors import ConfigurationError, Exit
from mikkoo.supervisor import daemon, places
from mikkoo.supervisor.control import ControlError, NotAllowed, ask
from mikkoo.supervisor.pidfile import AlreadyRunning, Mark, Pidfile, peek
from mikkoo.supervisor.refusal import Refusal

if TYPE_CHECKING:
    from mikkoo.common.settings import Settings

KILL_WAIT = 5.0  # seconds after each step past the first: a second TERM, then KILL


def load(path: Path) -> Settings:
    """The configuration, its warnings said on standard error. Raises ConfigurationError."""
    from mikkoo.common import config

    settings = config.load(path)
    for warning in settings.warnings:
        print(f'mikkood: warning: {warning}', file=sys.stderr)
    return settings


def absent(path: Path) -> str:
    """Said where nothing runs; one that runs is found, and can be stopped, after its file was deleted."""
    return '' if os.path.lexists(path) else f' (there is no file {path})'


def find(path: Path) -> places.Running | Mark | None:
    """The mikkood of a configuration, or the mark of a dead one; also while the configuration is broken."""
    found = places.find(path, None)
    if isinstance(found, places.Running):
        return found  # nearly always: and the file need not be read
    from mikkoo.common import config

    try:
        pidfile = places.configured_pidfile(path, config.load(path).daemon)
    except ConfigurationError:
        pidfile = None  # its runtime folder still leads to it
    return places.find(path, pidfile)


def start(path: Path, foreground: bool) -> int:
    """Start; return once the daemon is up, or, in the foreground, when it has ended. The exit code."""
    settings = load(path)
    running = places.find(path, places.configured_pidfile(path, settings.daemon))
    if isinstance(running, places.Running):
        raise AlreadyRunning(running.mark.path, running.pid)
    if foreground:
        return _run(path, settings)
    pid = _launch(path, settings)
    print(f'mikkood is running (pid {pid}, {processes(settings)})')
    return Exit.OK


def stop(path: Path, timeout: float) -> int:
    """Stop; return once the process is gone. Not running is no failure (LSB)."""
    running = find(path)
    if not isinstance(running, places.Running):
        print(f'mikkood is not running{absent(path)}')
        return Exit.OK
    terminate(running, timeout)
    print(f'mikkood has stopped (pid {running.pid})')
    return Exit.OK


def restart(path: Path, timeout: float) -> int:
    """Stop and start, only if the configuration is valid; start where nothing ran (LSB)."""
    settings = load(path)
    running = find(path)
    if isinstance(running, places.Running):
        if running.mark.foreground:
            raise Refusal(f'pid {running.pid} runs in the foreground: stop it and start it in its terminal')
        daemon.owner(settings.daemon)
        _ask_to_stop(running)
        terminate(running, timeout, asked=True)
    return start(path, foreground=False)


def _ask_to_stop(running: places.Running) -> None:
    """Not by a signal, which is for good: workers that are so configured would unregister and lose events."""
    try:
        ask(running.places.control, {'command': 'stop', 'restart': True})
    except NotAllowed as error:
        raise Refusal(f'pid {running.pid} belongs to another user: {error}', Exit.NOPERM) from error
    except ControlError as error:
        raise Refusal(
            f'{error}: stop and start it instead (workers with unregister: true then unregister)'
        ) from error


def terminate(running: places.Running, timeout: float, asked: bool = False) -> None:
    """TERM, and when `timeout` seconds are over once more (the workers are killed), and KILL at last.

    `asked`: it was asked to stop already, so the first step is only to wait.
    """
    if running.pid is None:
        raise Refusal(f'it is just being started ({running.mark.path}): try again')
    try:
        process = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return
    try:
        now = peek(running.mark.path)
        if now is None or not now.held or now.pid != running.pid:
            return  # it ended, and its number may be another's by now
        for number, patience, word in (
            (0 if asked else signal.SIGTERM, timeout, ''),
            (signal.SIGTERM, KILL_WAIT, f'still there after {timeout:g} s: its workers are killed'),
            (signal.SIGKILL, KILL_WAIT, 'still there: it is killed'),
        ):
            if word:
                print(f'mikkood: {word}', file=sys.stderr)
            if _signal(process, number, running.pid, patience):
                return
    finally:
        os.close(process)
    raise Refusal(f'pid {running.pid} does not even end by SIGKILL')


def _signal(process: int, number: int, pid: int, patience: float) -> bool:
    """Send a signal (0: none) and wait; True when the process has ended."""
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        return True
    except PermissionError:
        raise Refusal(f'pid {pid} belongs to another user: not permitted', Exit.NOPERM) from None
    return bool(select.select([process], [], [], patience)[0])


def _run(path: Path, settings: Settings) -> int:
    """In the foreground, as the user that we are: the Daemon section is not used."""
    place = places.make(path, os.geteuid(), os.getegid())
    lock = Pidfile(place.lock)
    try:
        lock.write(os.getpid(), foreground=True)
        return _supervise(path, settings, place, foreground=True, on_ready=lambda: None)
    finally:
        lock.release()


def _launch(path: Path, settings: Settings) -> int:
    """Start the daemon; its pid."""
    owner = daemon.owner(settings.daemon)
    place = places.make(path, owner.uid, owner.gid)

    def serve(readiness: daemon.Readiness) -> int:
        return _supervise(path, settings, place, foreground=False, on_ready=readiness.ready)

    def prepare() -> None:
        if not os.access(path, os.R_OK):
            print(
                f'mikkood: warning: user {owner.name} cannot read {path}: edits have no effect',
                file=sys.stderr,
            )

    pidfiles = _hold([place.lock, places.configured_pidfile(path, settings.daemon)], owner)
    return daemon.launch(serve, prepare, owner, settings.daemon.umask, pidfiles)


def _hold(paths: Iterable[Path | None], owner: daemon.Owner) -> list[Pidfile]:
    """Lock every pidfile, or none, and make them the daemon's."""
    held: list[Pidfile] = []
    try:
        for path in paths:
            if path is not None:
                places.prepare_pidfile(path, owner.uid, owner.gid)
                held.append(Pidfile(path))
                held[-1].give(owner.uid, owner.gid)
    except Refusal:
        for pidfile in held:
            pidfile.release()
        raise
    return held


def _supervise(
    path: Path, settings: Settings, place: places.Places, *, foreground: bool, on_ready: Callable[[], None]
) -> int:
    from mikkoo.supervisor.loop import Supervisor

    _close_to_others()
    supervisor = Supervisor(
        path, settings, foreground=foreground, control_path=place.control, on_ready=on_ready
    )
    return supervisor.run()


def _close_to_others() -> None:
    """Other users shall never write in our files, such as the log, however lax the umask is."""
    os.umask(os.umask(0o077) | stat.S_IWOTH)


def processes(settings: Settings) -> str:
    """How many there are of which kind: '2 workers, 1 auditor'."""
    counts = [('worker', len(settings.workers)), ('auditor', len(settings.auditors))]
    said = [f'{count} {plural(noun, count)}' for noun, count in counts if count or noun == 'worker']
    return ', '.join(said)


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else f'{noun}s'
