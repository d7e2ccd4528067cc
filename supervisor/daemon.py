"""Becoming a daemon, and telling the command that started it how that went.

python-daemon 3.1.2 detaches, closes descriptors and redirects the standard streams. The rest is here:

- Its first parent leaves with 0 at once, so a launcher forks before it and waits on a readiness pipe.
- It enters its pidfile after it has dropped the user, so the pidfiles are held (flock) before the fork.
- With `initgroups` it never calls setgid, and without it keeps root's supplementary groups (read in
  change_process_owner), so the user is dropped here, all three calls, and it finds nothing left to drop.
- With parent 1 it does not detach unless told to, and its default umask is 0.

`serve` opens the logs itself, as the daemon's user and after all else was closed, so no descriptor of theirs
has to be carried over.
"""

from __future__ import annotations

import grp
import json
import logging
import os
import pwd
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mikkoo.common.errors import ConfigurationError, Exit, MikkooError
from mikkoo.common.settings import DaemonSettings
from mikkoo.supervisor.pidfile import Pidfile
from mikkoo.supervisor.refusal import Refusal

READY_TIMEOUT = 30.0  # seconds for the daemon to come up; no server is waited for in them
DEFAULT_UMASK = 0o022
_REPORT_BYTES = 60_000  # the pipe holds 64 KiB: a longer reason is cut rather than blocks


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the daemon runs as. `drop`: it is somebody else than we are."""

    name: str
    home: str
    uid: int
    gid: int
    drop: bool


class Readiness:
    """The daemon's end of the readiness pipe. The first word counts; later ones go nowhere."""

    def __init__(self, number: int) -> None:
        self._number: int | None = number

    def fileno(self) -> int | None:
        return self._number

    @property
    def told(self) -> bool:
        return self._number is None

    def ready(self) -> None:
        self._tell(Exit.OK, '')

    def failed(self, exit: int, reason: str) -> None:
        self._tell(exit, reason)

    def _tell(self, exit: int, reason: str) -> None:
        if self._number is None:
            return
        data = json.dumps({'exit': int(exit), 'reason': reason[: _REPORT_BYTES // 6], 'pid': os.getpid()})
        number, self._number = self._number, None
        try:
            os.write(number, data.encode())
        except BrokenPipeError:
            pass  # the launcher was interrupted: the daemon goes on without it
        finally:
            os.close(number)


def strangers(daemon: DaemonSettings) -> list[tuple[str, str]]:
    """Of 'user' and 'group' of the Daemon section those that this machine does not know, with their names."""
    found = []
    for kind, name, look in (('user', daemon.user, pwd.getpwnam), ('group', daemon.group, grp.getgrnam)):
        if not name:
            continue
        try:
            look(name)
        except KeyError:
            found.append((kind, name))
    return found


def owner(daemon: DaemonSettings) -> Owner:
    """The user and group of the Daemon section, else our own. Raises Refusal for one that cannot be."""
    for kind, name in strangers(daemon):
        raise Refusal(f'Daemon.{kind}: this machine has no {kind} {name!r}', Exit.CONFIG)
    person = pwd.getpwnam(daemon.user) if daemon.user else None
    group = grp.getgrnam(daemon.group) if daemon.group else None
    uid = person.pw_uid if person else os.geteuid()
    gid = group.gr_gid if group else person.pw_gid if person else os.getegid()
    drop = (uid, gid) != (os.geteuid(), os.getegid())
    if drop and os.geteuid() != 0:
        wanted = f'user {daemon.user}' if uid != os.geteuid() else f'group {daemon.group}'
        raise Refusal(f'only root may start the daemon as {wanted} (Daemon section)', Exit.NOPERM)
    return Owner(person.pw_name if person else '', person.pw_dir if person else '', uid, gid, drop)


def launch(
    serve: Callable[[Readiness], int],
    prepare: Callable[[], None],
    owner: Owner,
    umask: int | None,
    pidfiles: Sequence[Pidfile],
) -> int:
    """Run `serve` in a daemon; return its pid once it is ready. Raises Refusal with its reason if it fails.

    `prepare` runs before, already as the daemon's user and still with our standard error. Only the launcher
    returns from here: the daemon exits with what `serve` returns.
    """
    _fill_standard_streams()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        sys.exit(_daemon(serve, prepare, owner, umask, pidfiles, Readiness(writer)))
    os.close(writer)
    for pidfile in pidfiles:
        pidfile.abandon()
    return _await(reader, child)


def _fill_standard_streams() -> None:
    """Where we were started with closed streams: no other file may get their numbers."""
    for number, stream in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, stream) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: `number`
            setattr(sys, stream, os.fdopen(null, 'r' if number == 0 else 'w', closefd=False))


def _await(reader: int, child: int) -> int:
    """The launcher's wait for the daemon's one word."""
    readable, _, _ = select.select([reader], [], [], READY_TIMEOUT)
    if not readable:
        raise Refusal(f'the daemon is not ready after {READY_TIMEOUT:.0f} s; it goes on trying: see its log')
    with open(reader, 'rb') as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        raise Refusal('the daemon died while it was starting; see its log', Exit.SOFTWARE)
    word = json.loads(data)
    if word['exit'] != Exit.OK:
        raise Refusal(word['reason'], Exit(word['exit']))
    return int(word['pid'])


def _daemon(
    serve: Callable[[Readiness], int],
    prepare: Callable[[], None],
    owner: Owner,
    umask: int | None,
    pidfiles: Sequence[Pidfile],
    readiness: Readiness,
) -> int:
    """The daemon's side: whatever goes wrong before it is ready is told to the launcher, never printed."""
    try:
        os.umask(DEFAULT_UMASK if umask is None else umask)
        if owner.drop:
            become(owner)
        prepare()
        _detach([readiness, *pidfiles])
        for pidfile in pidfiles:
            pidfile.write(os.getpid())
        return serve(readiness)
    except Exception as error:
        code, reason = explain(error)
        if readiness.told:
            logging.getLogger(__name__).critical('the supervisor ended: %s', reason, exc_info=error)
        else:
            readiness.failed(code, reason)
        return code
    finally:
        for pidfile in pidfiles:
            pidfile.release()


def become(owner: Owner) -> None:
    """Give up root for good, supplementary groups and the environment's idea of home included.

    libpq looks for its files in $HOME, and fails when that is still root's.
    """
    if owner.name:
        os.initgroups(owner.name, owner.gid)
        os.environ.update(HOME=owner.home, USER=owner.name, LOGNAME=owner.name)
    else:
        os.setgroups([owner.gid])
    os.setgid(owner.gid)
    os.setuid(owner.uid)


def _detach(keep: Sequence[object]) -> None:
    from daemon import DaemonContext

    mask = os.umask(0)
    os.umask(mask)
    context = DaemonContext(
        detach_process=True,
        working_directory='/',
        umask=mask,
        files_preserve=list(keep),
        signal_map={signal.SIGTSTP: None, signal.SIGTTIN: None, signal.SIGTTOU: None},
    )
    context.open()


def explain(error: BaseException) -> tuple[int, str]:
    """An exception as (exit code, reason)."""
    if isinstance(error, Refusal):
        return error.exit, str(error)
    if isinstance(error, ConfigurationError):
        return Exit.CONFIG, str(error)
    if isinstance(error, PermissionError):
        return Exit.NOPERM, f'{error.filename}: {error.strerror}' if error.filename else str(error)
    if isinstance(error, (MikkooError, OSError)):
        return Exit.FAILURE, str(error)
    return Exit.SOFTWARE, f'a bug in mikkood: {type(error).__name__}: {error}'
