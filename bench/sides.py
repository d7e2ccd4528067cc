"""The relays that are compared, each as its own daemon in the foreground with its own environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PEER = 'mikkoo==3.0.0'
PEER_NEEDS = ('psycopg-binary', 'sentry-sdk', 'setuptools')
CONSUMER = 'bench'  # PgQ's
LOGIN = {'host': '127.0.0.1', 'username': 'guest', 'password': 'guest'}

LOGGING = {
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {'plain': {'format': '%(asctime)s %(levelname)s %(name)s %(message)s'}},
    'handlers': {'console': {'class': 'logging.StreamHandler', 'formatter': 'plain'}},
    'root': {'handlers': ['console'], 'level': 'ERROR'},
}


def configuration(
    queues: Sequence[str], postgres_url: str, rabbitmq: Mapping[str, object], confirm: bool
) -> str:
    """A worker for each queue, in words that both daemons understand; JSON is YAML."""
    worker = {
        'confirm': confirm,
        'consumer_name': CONSUMER,
        'postgres_url': postgres_url,
        'rabbitmq': {**LOGIN, **rabbitmq},
        'unregister': False,
        'wait_duration': 1,
    }
    return _whole({'workers': dict.fromkeys(queues, worker)})


def auditing(name: str, postgres_url: str, rabbitmq: Mapping[str, object], **options: object) -> str:
    """The configuration of one auditor and no worker."""
    auditor = {'postgres_url': postgres_url, 'rabbitmq': {**LOGIN, **rabbitmq}, **options}
    return _whole({'workers': {}, 'auditors': {name: auditor}})


def _whole(processes: Mapping[str, object]) -> str:
    application = {'poll_interval': 10, **processes}
    return json.dumps({'Application': application, 'Daemon': {}, 'Logging': LOGGING}, indent=1)


@dataclass(frozen=True)
class Usage:
    """CPU seconds (user and system) and peak resident memory (KiB) of one process."""

    cpu: float
    peak: int


class Side:
    """One relay. `command`: how it is started, given the configuration's path."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, configuration: str) -> None:
        self.name = name
        self._folder = folder
        path = folder / 'mikkoo.yml'
        path.write_text(configuration)
        self._command = [word.format(config=path) for word in command]
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
        return {pid: usage for pid in family(self._process.pid) if (usage := usage_of(pid)) is not None}


def family(pid: int) -> list[int]:
    """A process and its children, and theirs."""
    try:
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def usage_of(pid: int) -> Usage | None:
    """None if there is no such process."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
        used = cpu(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith('VmHWM')), 0)
    return Usage(used, peak)


def cpu(pid: int) -> float:
    """Seconds, user and system, of the threads that a process has."""
    tasks = Path(f'/proc/{pid}/task').iterdir()
    return sum(int((task / 'schedstat').read_text().split()[0]) for task in tasks) / 1e9


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
