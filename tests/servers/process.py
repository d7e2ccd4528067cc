"""What the server modules share: finding programs and ports, starting children, ending them by process id."""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

PORTS = range(20_000, 32_000)  # below the ephemeral range, so no outgoing connection takes one meanwhile
LOG_TAIL = 4_000  # characters of a server's log in an error


class ServerError(RuntimeError):
    """A server is not installed, does not start or does not stop."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port
    raise ServerError(f'no free port in {PORTS}')


def program(name: str, package: str, *folders: str) -> str:
    """The path of a program, from `folders` or else PATH; ServerError names the package to install."""
    path = [*folders, *os.environ.get('PATH', os.defpath).split(os.pathsep), '/usr/sbin', '/usr/local/sbin']
    found = shutil.which(name, path=os.pathsep.join(path))
    if found is None:
        raise ServerError(f'{name} is not installed: install the package {package} (scripts/test does it)')
    return found


def raise_on_signals(error: Callable[[int], BaseException] = lambda number: SystemExit(128 + number)) -> None:
    """Make SIGTERM and SIGHUP end the program as SIGINT does, through its `finally`. Main thread only.

    SIGINT itself is ignored in what a shell script starts in the background, and in all its children.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise error(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP while servers are being stopped, where handlers can be set at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Server:
    """A child process with a folder of its own. Subclasses give `_launch` and `_await_ready`.

    `user`: the account to run as (only root can choose). Use it as a context manager, or `start` and `close`.
    Start it from the main thread: it is told to stop when the thread that started it ends, even by SIGKILL.
    """

    name = 'server'
    stop_signal = signal.SIGTERM
    stop_deadline = 20.0  # seconds from the stop signal until SIGKILL

    def __init__(self, user: str | None = None) -> None:
        self._user = user
        self.folder = Path(tempfile.mkdtemp(prefix=f'mikkoo-{self.name}-'))
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.log_file = self.folder / f'{self.name}.log'
        self._process: subprocess.Popen[bytes] | None = None
        _OPEN.add(self)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id; ServerError if it is not running."""
        if self._process is None:
            raise ServerError(f'{self.name} is not running')
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until it answers. ServerError with the end of its log if it does not."""
        if not self.running:
            self._process = self._launch()
            self._await_ready()

    def stop(self) -> None:
        """End the process; its folder stays, so `start` brings it back with the same data and ports."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the process by SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop and remove the folder."""
        with undisturbed():
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            _OPEN.discard(self)

    def log(self) -> str:
        """The end of what the server wrote."""
        return self.log_file.read_text(errors='replace')[-LOG_TAIL:] if self.log_file.exists() else ''

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _await_ready(self) -> None:
        raise NotImplementedError

    def _spawn(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a child that does not outlive us, in a session of its own: a Ctrl-C is not for it."""
        leash = [program('setpriv', 'util-linux'), '--pdeathsig', self.stop_signal.name.removeprefix('SIG')]
        if self._user is not None:
            group = pwd.getpwnam(self._user).pw_gid
            leash += ['--reuid', self._user, '--regid', str(group), '--init-groups']
        with self.log_file.open('ab') as log:
            return subprocess.Popen(
                [*leash, '--', *command],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with undisturbed():
                end(process, number, self.stop_deadline)

    def check_alive(self) -> None:
        """ServerError, with the server's log, once its process has ended."""
        if not self.running:
            code = self._process.returncode if self._process else None
            raise ServerError(f'{self.name} ended with code {code}:\n{self.log()}')


_OPEN: weakref.WeakSet[Server] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """The last resort, for a program that was interrupted in the middle of its `finally` clauses."""
    for server in list(_OPEN):
        server.close()


def end(process: subprocess.Popen[bytes], number: signal.Signals, deadline: float) -> None:
    """Signal a child, wait for it (SIGKILL after `deadline` seconds), and sweep up its process group."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(deadline)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
