"""A supervisor in a process of its own, with children of `entries`, and what a test does to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from mikkoo.supervisor.control import ask
from mikkoo.supervisor.states import Policy
from tests.servers.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SAVE = 3 * 1.0  # seconds from a save to its effect: three times what is promised
STOP = 3 * 5.0  # seconds for a graceful stop: three times
PATIENCE = 20.0  # seconds for what has no deadline of its own

# As the console script that pip makes, but without its guard: a child must not run it again.
SCRIPT = """
import json, sys
from mikkoo.common import config
from mikkoo.supervisor.loop import Supervisor
from mikkoo.supervisor.states import Policy

configuration, control, policy = sys.argv[1:]
supervisor = Supervisor(
    configuration, config.load(configuration), foreground=True, control_path=control,
    on_ready=lambda: print('ready', flush=True), policy=Policy(**json.loads(policy)),
    entries={'worker': 'tests.integration.entries:run'},
)
sys.exit(supervisor.run())
"""


class Supervised:
    """`workers`: name to the settings that differ; `policy`: what differs from the Policy of operation."""

    def __init__(self, folder: Path, workers: Mapping[str, Mapping[str, Any]], **policy: float) -> None:
        self.folder = folder
        self.config = folder / 'mikkoo.yml'
        self.control = folder / 'control'
        self.log_file = folder / 'log'
        self.mark = f'MIKKOO_TEST_RUN={uuid.uuid4()}'
        self.workers = {name: dict(settings) for name, settings in workers.items()}
        self.extra: dict[str, Any] = {}  # in Application, beside `workers`
        self.logging: dict[str, Any] = {}
        self.config.write_bytes(self.yaml())
        (folder / 'script').write_text(SCRIPT)
        self.policy = asdict(Policy()) | policy
        self._logged = len(self.log()) if self.log_file.exists() else 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        name, _, value = self.mark.partition('=')
        environ = {
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'PYTHONWARNINGS': 'error',
            'MIKKOO_TEST_FOLDER': str(self.folder),
            name: value,
        }
        command = [
            sys.executable,
            self.folder / 'script',
            self.config,
            self.control,
            orjson.dumps(self.policy),
        ]
        with self.log_file.open('ab') as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def yaml(self) -> bytes:
        """The configuration; JSON is YAML, and one line a worker lets `sed` and people find it."""
        workers = {
            name: {
                'postgres_url': 'postgresql://app:secret@127.0.0.1:1/shop',
                'consumer_name': 'steady',
                **settings,
            }
            for name, settings in self.workers.items()
        }
        whole: dict[str, Any] = {'Application': {'workers': workers, **self.extra}}
        if self.logging:
            whole['Logging'] = self.logging
        return orjson.dumps(whole, option=orjson.OPT_INDENT_2)

    def edit(self, **workers: Mapping[str, Any] | None) -> None:
        """Merge into workers' settings, or with None remove one; then save by renaming over."""
        for name, settings in workers.items():
            if settings is None:
                del self.workers[name]
            else:
                self.workers.setdefault(name, {}).update(settings)
        self.save()

    def save(self, data: bytes | None = None) -> None:
        new = self.config.with_suffix('.new')
        new.write_bytes(self.yaml() if data is None else data)
        new.replace(self.config)

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        return ask(self.control, {'command': command, **fields})

    def status(self) -> dict[str, Any]:
        return self.ask('status')

    def children(self) -> dict[str, dict[str, Any]]:
        return {child['name']: child for child in self.status()['children']}

    def child(self, name: str) -> dict[str, Any]:
        return self.children().get(name, {})

    def pids(self) -> dict[str, int]:
        return {name: child['pid'] for name, child in self.children().items()}

    def starts(self, name: str) -> list[int]:
        """The pids of every process that this child has been."""
        path = self.folder / f'{name}.starts'
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def until(self, name: str, timeout: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """Wait until a child's status has these fields."""
        return until(
            lambda: found if (found := self.child(name)).items() >= fields.items() else None,
            timeout, lambda: f'{name} {fields}, but {self.child(name)}\n{self.log()}',
        )  # fmt: skip

    def until_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until this process (not one before it in the same folder) says so."""
        until(lambda: 'ready\n' in self.log()[self._logged :], timeout, self.log)

    def until_running(self, timeout: float = PATIENCE) -> None:
        self.until_ready(timeout)
        for name in self.workers:
            self.until(name, timeout, state='RUNNING')

    def until_logged(self, pattern: str, timeout: float = PATIENCE) -> None:
        until(lambda: re.search(pattern, self.log()), timeout, lambda: f'{pattern!r} in\n{self.log()}')

    def log(self) -> str:
        return self.log_file.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def processes(self) -> dict[int, str]:
        """Every living process of this run, however it came about: pid to command line."""
        found = {}
        for entry in Path('/proc').iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() in (entry / 'environ').read_bytes().split(b'\0'):
                    found[int(entry.name)] = (entry / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
            except OSError:
                continue  # it ended meanwhile
        return found

    def until_gone(self) -> None:
        """Wait until no process is left; the resource tracker ends only after the supervisor."""
        until(lambda: not self.processes(), STOP, lambda: str(self.processes()))

    def close(self) -> None:
        """End whatever is left, by pid."""
        for pid in [self.process.pid, *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, its parent informed or not."""
    try:
        return 'State:\tZ' in Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return True
