"""Runs the real `mikkood` as a user does: its console script, in a process of its own."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.integration.readable import Program
from tests.servers.waiting import until

DEADLINE = 60.0  # seconds for any command
ROOT = os.geteuid() == 0
ME = pwd.getpwuid(os.geteuid()).pw_name
OTHER = 'nobody' if ROOT else ME  # whom root can become, and who can read this source tree

Done = subprocess.CompletedProcess[str]


class Mikkood:
    """One configuration in a folder of its own, and the commands about it.

    `user`: run the commands as that user, by sudo where we are not root. None: as ourselves.
    """

    def __init__(
        self, program: Program, folder: Path, user: str | None = None, name: str = 'mikkoo.yml'
    ) -> None:
        self.program = program
        self.folder = folder
        self.path = folder / name
        self.log = folder / 'mikkoo.log'
        self.user = user
        self._foreground: subprocess.Popen[str] | None = None

    def write(self, daemon: str = '{}', workers: str = '{}', log: Path | None = None) -> None:
        """A configuration that logs everything into a file."""
        self.path.write_text(f"""\
Application:
  workers: {workers}
Daemon: {daemon}
Logging:
  version: 1
  formatters: {{plain: {{format: '%(levelname)s %(name)s %(message)s'}}}}
  handlers:
    file: {{class: logging.FileHandler, filename: '{log or self.log}', formatter: plain}}
  root: {{level: DEBUG, handlers: [file]}}
""")

    def command(self, *arguments: str) -> tuple[list[str], dict[str, Any]]:
        """What to give to subprocess."""
        variable = {**self.program.environment, 'MIKKOO_RUNTIME_DIR': str(self.folder / 'run')}
        command = [str(self.program.script), '-c', str(self.path), *arguments]
        if self.user in (None, ME):
            return command, {'env': {**os.environ, **variable}}
        if ROOT:
            return command, {'env': {**os.environ, **variable}, 'user': self.user, 'extra_groups': []}
        words = [f'{name}={value}' for name, value in variable.items()]
        return ['sudo', '-n', '-u', str(self.user), 'env', *words, *command], {}

    def __call__(self, *arguments: str, **options: Any) -> Done:
        command, how = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, **how, **options)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command, how = self.command(*arguments)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)

    def foreground(self) -> subprocess.Popen[str]:
        """`start -f`, once it answers."""
        self._foreground = process = self.popen('start', '-f')

        def answers() -> bool:
            assert process.poll() is None, process.communicate()
            return self('status').returncode == 0

        until(answers, DEADLINE, 'mikkood runs in the foreground')
        return process

    def started(self) -> int:
        """Start the daemon, which has to succeed; its pid."""
        done = self('start')
        assert done.returncode == 0, done
        return self.pid

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self('status', '--json').stdout)
        return answer

    @property
    def pid(self) -> int:
        return int(self.status()['pid'])

    def close(self) -> None:
        """Leave nothing running, whatever a test did."""
        if self._foreground is not None:
            self._foreground.kill()
            self._foreground.communicate()
        for mark in (self.folder / 'run').glob('*.pid'):
            pid = mark.read_text().split('\n')[0]
            if pid and alive(int(pid)) and 'mikkood' in command_line(int(pid)):
                kill(int(pid))


def kill(pid: int) -> None:
    """SIGKILL, whoever it runs as."""
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        as_root('kill', '-KILL', str(pid))


def as_root(*command: str | Path) -> None:
    """Run a command as root; the test fails where we may not."""
    subprocess.run([*([] if ROOT else ['sudo', '-n']), *command], check=True)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return proc(pid).get('State', 'Z')[0] not in 'ZX'


def command_line(pid: int) -> str:
    return Path(f'/proc/{pid}/cmdline').read_text().replace('\0', ' ')


def proc(pid: int) -> dict[str, str]:
    """/proc/PID/status; {} where there is no such process."""
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(':') for line in lines)}
