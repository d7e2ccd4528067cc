"""Where a running mikkood leaves its marks, and how every command finds them again.

Each configuration has a runtime folder of its own, named by a hash of the configuration's path, with the
control socket, and beside it a lock file with the pid, for the daemon and for a process in the foreground;
so two configurations run beside each other, one configuration never runs twice, and a daemon is found again
while its configuration is unreadable or names another pidfile by now. `Daemon.pidfile` is held in addition.
Everybody may see the lock, and so that the daemon runs; the folder is its user's and group's.

The folder is made before the daemon gives up root and belongs to the daemon's user: the place of the
reference text's own pidfile, /var/run, is one in which that user could make no socket and remove no file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mikkoo.common.errors import Exit
from mikkoo.common.settings import DaemonSettings
from mikkoo.supervisor.pidfile import Mark, peek
from mikkoo.supervisor.refusal import Refusal

RUNTIME_VARIABLE = 'MIKKOO_RUNTIME_DIR'  # overrides where runtime folders are made and looked for
CONFIGURATION_VARIABLE = 'MIKKOO_CONFIG'
CONFIGURATION_PATHS = ('etc/mikkoo.yml', '/etc/mikkoo/mikkoo.yml')
ROOT_BASE = Path('/run/mikkood')
PIDFILE_NAME = 'mikkoo.pid'
FOLDER_MODE = 0o750
LONGEST_SOCKET_PATH = 107  # bytes: sockaddr_un of unix(7), less the closing NUL


@dataclass(frozen=True, slots=True)
class Places:
    """One configuration's runtime folder, and the lock beside it."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f'{self.folder.name}.pid')

    @property
    def control(self) -> Path:
        return self.folder / 'control'


@dataclass(frozen=True, slots=True)
class Running:
    """What was found of a mikkood. `pid` None: it holds its lock, but has not written its number yet."""

    places: Places
    mark: Mark

    @property
    def pid(self) -> int | None:
        return self.mark.pid


def configuration_path(given: str | None) -> Path:
    """The configuration file: -c, else $MIKKOO_CONFIG, else the first that exists. Always absolute."""
    path = given or os.environ.get(CONFIGURATION_VARIABLE)
    if path:
        return Path(os.path.abspath(path))
    for place in CONFIGURATION_PATHS:
        if os.path.exists(place):
            return Path(os.path.abspath(place))
    raise Refusal(
        f'no configuration file: give one with -c or ${CONFIGURATION_VARIABLE}, '
        f'or write ./{CONFIGURATION_PATHS[0]} or {CONFIGURATION_PATHS[1]}',
        Exit.CONFIG,
    )


def bases(uid: int) -> tuple[Path, ...]:
    """The folders in which a user's runtime folders may be, best first."""
    if RUNTIME_VARIABLE in os.environ:
        return (Path(os.environ[RUNTIME_VARIABLE]),)
    temporary = Path(tempfile.gettempdir()) / f'mikkood-{uid}'
    if uid == 0:
        return (ROOT_BASE, temporary)
    given = os.environ.get('XDG_RUNTIME_DIR') if uid == os.geteuid() else None
    return (Path(given or f'/run/user/{uid}') / 'mikkood', temporary)


def name(configuration: Path) -> str:
    """The runtime folder's name: telling, and different for every path."""
    path = os.path.abspath(configuration)
    return f'{Path(path).stem[:20]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}'


def make(configuration: Path, uid: int, gid: int) -> Places:
    """Make the runtime folder of a configuration for a daemon that will be (uid, gid)."""
    reasons = []
    for base in bases(os.geteuid()):
        places = Places(base / name(configuration))
        if len(os.fsencode(places.control)) > LONGEST_SOCKET_PATH:
            reasons.append(f'{places.control}: too long for a socket')
            continue
        try:
            _make_base(base)
            _make_folder(places.folder, uid, gid)
        except OSError as error:
            reasons.append(f'{error.filename}: {error.strerror}')
        else:
            return places
    raise Refusal('no place for the control socket: ' + '; '.join(reasons), Exit.NOPERM)


def configured_pidfile(configuration: Path, daemon: DaemonSettings) -> Path | None:
    """`Daemon.pidfile`: a relative one is beside the configuration; a folder holds mikkoo.pid."""
    if daemon.pidfile is None:
        return None
    path = Path(os.path.abspath(configuration)).parent / daemon.pidfile
    return path / PIDFILE_NAME if path.is_dir() else path


def prepare_pidfile(path: Path, uid: int, gid: int) -> None:
    """Make the pidfile's folder for the daemon's user where only that one folder is missing."""
    if path.parent.is_dir():
        return
    try:
        path.parent.mkdir(mode=0o755)
        os.chown(path.parent, uid, gid)
    except OSError as error:
        raise Refusal(
            f'cannot make the folder of the pidfile, {path.parent}: {error.strerror}', Exit.NOPERM
        ) from error


def find(configuration: Path, pidfile: Path | None) -> Running | Mark | None:
    """The running mikkood of a configuration; else the mark of a dead one; else None.

    `pidfile`: the configured one, where the configuration could be read. Raises Refusal for one that may not
    be read.
    """
    outer = peek(pidfile) if pidfile is not None else None
    candidates = _candidates(configuration, outer)
    marks = [(places, mark) for places in candidates if (mark := peek(places.lock)) is not None]
    if outer is not None:
        marks.append((candidates[0], outer))
    for places, mark in marks:
        if mark.held:
            return Running(places, mark)
    return next((mark for _, mark in marks if mark.pid is not None), None)


def _candidates(configuration: Path, outer: Mark | None) -> list[Places]:
    """Our own runtime folder, root's, and that of the pidfile's owner."""
    users = [os.geteuid(), 0, *([outer.owner] if outer is not None else [])]
    folders = {base: uid for uid in reversed(users) for base in bases(uid) if _trusted(base, uid)}
    return [Places(base / name(configuration)) for base in reversed(folders)]


def _trusted(base: Path, uid: int) -> bool:
    """Only its user or root may have made it: /tmp is open to everybody. A missing one is harmless."""
    if RUNTIME_VARIABLE in os.environ:
        return True
    try:
        return base.lstat().st_uid in (uid, 0)
    except OSError:
        return True


def _make_base(base: Path) -> None:
    try:
        base.mkdir(mode=0o700)
    except FileExistsError:
        if not base.is_dir() or not _trusted(base, os.geteuid()):
            raise PermissionError(errno.EPERM, 'not a folder of ours', str(base)) from None
    else:
        base.chmod(0o755 if os.geteuid() == 0 else 0o700)  # whatever the umask


def _make_folder(folder: Path, uid: int, gid: int) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    os.chown(folder, uid, gid)
    folder.chmod(FOLDER_MODE)  # whatever the umask
