"""The relays that are compared, each as its own daemon in the foreground with its own environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PEER = 'mikkoo==3.0.0'
PEER_NEEDS = ('psycopg-binary', 'sentry-sdk', 'setuptools')
TICKS = os.sysconf('SC_CLK_TCK')

CONFIGURATION = """\
Application:
  poll_interval: 10
  workers:
    {queue}:
      confirm: {confirm}
      consumer_name: bench
      postgres_url: {postgres_url}
      rabbitmq: {{host: 127.0.0.1, port: {port}, username: guest, password: guest}}
      unregister: false
      wait_duration: 1
Daemon: {{}}
Logging:
  version: 1
  disable_existing_loggers: false
  formatters: {{plain: {{format: '%(asctime)s %(levelname)s %(name)s %(message)s'}}}}
  handlers: {{console: {{class: logging.StreamHandler, formatter: plain}}}}
  root: {{handlers: [console], level: ERROR}}
"""


@dataclass(frozen=True)
class Usage:
    """CPU seconds (user and system) and peak resident memory (KiB) of one process."""

    cpu: float
    peak: int


class Side:
    """One relay on one queue. `command`: how it is started, given the configuration's path."""

    def __init__(self, name: str, command: list[str], folder: Path, queue: str, **values: object) -> None:
        self.name = name
        self._folder = folder
        self._path = folder / f'{queue}.yml'
        self._path.write_text(CONFIGURATION.format(queue=queue, **values))
        self._command = [word.format(config=self._path) for word in command]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log = (self._folder / 'log').open('ab')
        self._process = subprocess.Popen(
            self._command,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        group = self._process.pid
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._log.close()

    def check(self) -> None:
        """RuntimeError, with its last words, if it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            words = (self._folder / 'log').read_text()[-2000:]
            raise RuntimeError(f'{self.name} ended with {self._process.returncode}: {words}')

    def usages(self) -> dict[int, Usage]:
        """Of every process of this side, by process id."""
        assert self._process is not None
        return {pid: usage for pid in _family(self._process.pid) if (usage := _usage(pid)) is not None}


def _family(pid: int) -> list[int]:
    try:
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _usage(pid: int) -> Usage | None:
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        status = Path(f'/proc/{pid}/status').read_text()
    except FileNotFoundError:
        return None
    peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM')), 0)
    return Usage((int(fields[11]) + int(fields[12])) / TICKS, peak)


def ours() -> list[str]:
    """This repository's daemon."""
    return [str(Path(sys.executable).with_name('mikkood')), '-c', '{config}', 'start', '-f']


def peer(folder: Path) -> list[str]:
    """Mikkoo 3.0.0 in an environment of its own below `folder`, installed unless it is there."""
    program = folder / 'bin' / 'mikkoo'
    if not program.exists():
        venv.create(folder, with_pip=True)
        pip = [str(folder / 'bin' / 'python'), '-m', 'pip', 'install', '-q', PEER, *PEER_NEEDS]
        subprocess.run(pip, check=True)
    return [str(program), '-c', '{config}', '-f']
