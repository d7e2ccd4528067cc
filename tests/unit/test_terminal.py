"""The terminal that a process was started on: a real one, hung up."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.waiting import until

CODE = """
import os, signal, sys, time
from mikkoo.supervisor.terminal import Terminal
if sys.argv[2] == 'nohup':
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
terminal = Terminal()
before = terminal.gone()
signal.signal(signal.SIGHUP, lambda number, frame: None)
path = sys.argv[1]
open(path, 'w').close()
deadline = time.monotonic() + 30
while os.isatty(0) and time.monotonic() < deadline:
    time.sleep(0.01)
with open(path + '.new', 'w') as file:
    file.write(f'{before} {terminal.gone()}')
os.rename(path + '.new', path)
"""


@pytest.mark.parametrize(('how', 'said'), [('', 'False True'), ('nohup', 'False False')])
def test_one_that_hangs_up(tmp_path: Path, how: str, said: str) -> None:
    path = tmp_path / 'said'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, '-c', CODE, str(path), how])
    until(path.exists, 30, 'it has looked at its terminal')
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.read_text() == said


def test_where_there_was_none_none_is_gone(tmp_path: Path) -> None:
    path = tmp_path / 'said'
    subprocess.run(
        [sys.executable, '-c', CODE, str(path), ''], stdin=subprocess.DEVNULL, start_new_session=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert path.read_text() == 'False False'
