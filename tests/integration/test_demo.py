"""The demo as a newcomer runs it, and however it is ended: nothing is lost and nothing is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.waiting import until

TOP = Path(__file__).parents[2]
START_TIMEOUT = 120.0  # seconds until the first message has arrived


@contextmanager
def demo(output: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The demo in a process group of its own, as a shell makes one for it."""
    command = [sys.executable, '-m', 'scripts.demo', *arguments]
    with output.open('wb') as file:
        running = subprocess.Popen(command, cwd=TOP, stdout=file, stderr=file, process_group=0)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()
        running.wait()


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, directly or not."""
    parents: dict[int, int] = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(')')[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    found, more = set(), {pid}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found - {pid}


def runtime_folders() -> set[Path]:
    """Those of mikkood outside the folder of a demo, which are called after its mikkoo.yml."""
    return {
        path
        for base in (Path('/run/mikkood'), *Path(tempfile.gettempdir()).glob('mikkood-*'))
        for path in base.glob('mikkoo-*')
    }


def test_it_ends_by_itself_and_counts(tmp_path: Path) -> None:
    output = tmp_path / 'output'
    before = runtime_folders()
    with demo(output, '--seconds', '3') as running:
        assert running.wait(START_TIMEOUT) == 0, output.read_text()
    assert runtime_folders() <= before
    text = output.read_text()
    assert re.search(r'^inserted 3, delivered 3, lost 0, repeated 0$', text, re.M), text
    assert len(re.findall(r'message_id=[0-9a-f-]{36}', text)) == 3
    assert len(re.findall(r'headers: .*customer=.* txid=', text)) == 3


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_nothing_is_left_after_a_signal(tmp_path: Path, number: signal.Signals, code: int) -> None:
    output = tmp_path / 'output'
    with demo(output) as running:
        until(
            lambda: running.poll() is not None or '#1 ' in output.read_text(), START_TIMEOUT, output.read_text
        )
        started = descendants(running.pid)
        assert len(started) > 5, output.read_text()
        os.killpg(running.pid, number)
        assert running.wait(60) == code, output.read_text()
    until(lambda: not any(Path(f'/proc/{pid}').exists() for pid in started), 10, 'no process is left')
    if number == signal.SIGINT:
        assert 'lost 0' in output.read_text()
