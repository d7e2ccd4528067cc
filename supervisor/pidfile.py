"""A pidfile whose lock, not its number, says that the process lives.

The lock (flock) belongs to the open file: it survives the forks of daemonizing and dies with the last process
that holds it, so a file left by a crash is no obstacle and a reused pid is never mistaken for ours.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mikkoo.common.errors import Exit
from mikkoo.supervisor.refusal import Refusal

# Seconds for which a held lock is asked again: `peek` of another command holds it for an instant.
LOCK_PATIENCE = 0.3
FOREGROUND = b'foreground\n'  # the second line of a process that stays in its terminal


class AlreadyRunning(Refusal):
    """Another process holds the pidfile. `pid` None: it has not written its number yet."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f'pid {pid}' if pid else 'it is just being started'
        super().__init__(f'already running ({who}, {path})')
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Mark:
    """What a pidfile says: its number (None: empty or no number) and whether somebody holds it."""

    path: Path
    pid: int | None
    held: bool
    owner: int  # user id
    foreground: bool = False


class Pidfile:
    """A pidfile that we hold. Inherited over fork; not over exec."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = self._lock()

    def fileno(self) -> int:
        return self._number

    def give(self, uid: int, gid: int) -> None:
        """Make the daemon's user its owner, so that the daemon may empty and remove it."""
        os.fchown(self._number, uid, gid)

    def write(self, pid: int, foreground: bool = False) -> None:
        os.truncate(self._number, 0)
        os.pwrite(self._number, b'%d\n%b' % (pid, FOREGROUND if foreground else b''), 0)

    def abandon(self) -> None:
        """Close our descriptor and touch nothing: another process has inherited the lock."""
        os.close(self._number)

    def release(self) -> None:
        """Remove the file, or empty it where the folder is not ours to write in; then let go of the lock."""
        os.truncate(self._number, 0)
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:
            pass  # an empty, unlocked file says the same
        os.close(self._number)

    def _lock(self) -> int:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            number = _open(self.path)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _pid(number)
                os.close(number)
                if time.monotonic() >= deadline:
                    raise AlreadyRunning(self.path, pid) from None
                time.sleep(0.02)
                continue
            if _is_at(number, self.path):
                os.truncate(number, 0)
                return number
            os.close(number)  # its last holder removed it between our open and our lock


def peek(path: Path) -> Mark | None:
    """What the pidfile says, without taking it; None where there is none. Raises Refusal if unreadable."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refusal(f'{path}: {error.strerror}', Exit.NOPERM) from error
    try:
        foreground = os.pread(number, 64, 0).endswith(b'\n' + FOREGROUND)
        return Mark(path, _pid(number), _is_held(number), os.fstat(number).st_uid, foreground)
    finally:
        os.close(number)


def _open(path: Path) -> int:
    """Open or create. Not both in one call: in /tmp the kernel then denies root the file of another user
    (fs.protected_regular), which is what a daemon that dropped its user leaves."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            try:
                return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue
            except OSError as error:
                raise _unwritable(path, error) from error
        except OSError as error:
            raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> Refusal:
    return Refusal(f'cannot write the pidfile {path}: {error.strerror}', Exit.NOPERM)


def _is_held(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _pid(number: int) -> int | None:
    text = os.pread(number, 32, 0).split(b'\n')[0].strip()
    return int(text) if text.isdigit() and int(text) > 0 else None
