"""What the launcher of a daemon hears, whatever becomes of the daemon: real forks, in another interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mikkoo.common.errors import BrokerLost, ConfigurationError, Exit, Mistake
from mikkoo.supervisor.daemon import Readiness, explain
from mikkoo.supervisor.refusal import Refusal
from tests.servers.waiting import until

HEAD = """
import os, sys, time
from pathlib import Path
from mikkoo.common.settings import DaemonSettings
from mikkoo.supervisor import daemon
from mikkoo.supervisor.pidfile import Pidfile
path = Path(sys.argv[1])
pidfile = Pidfile(path / 'pid')
def launch(serve, prepare=lambda: None):
    return daemon.launch(serve, prepare, daemon.owner(DaemonSettings()), None, [pidfile])
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-c', HEAD + code, str(folder)], capture_output=True, text=True, timeout=60
    )


def test_the_pid_of_one_that_is_ready(tmp_path: Path) -> None:
    done = run(
        'def serve(readiness):\n readiness.ready()\n'
        " (path / 'served').write_text(str(os.getpid()))\n return 0\n"
        'print(launch(serve))',
        tmp_path,
    )
    served = tmp_path / 'served'
    until(lambda: served.exists() and served.read_text(), what='it went on')
    assert done.stdout == served.read_text() + '\n'
    until(lambda: not (tmp_path / 'pid').exists(), what='its pidfile is removed at its end')


def test_a_reason_from_before_it_was_ready(tmp_path: Path) -> None:
    done = run(
        'from mikkoo.common.errors import Exit\n'
        'from mikkoo.supervisor.refusal import Refusal\n'
        "def serve(readiness):\n raise Refusal('no room', Exit.NOPERM)\n"
        'try:\n launch(serve)\nexcept Refusal as error:\n print(error, int(error.exit))',
        tmp_path,
    )
    assert done.stdout == 'no room 77\n'


def test_a_bug_from_before_it_was_ready(tmp_path: Path) -> None:
    done = run('launch(lambda readiness: {}["x"])', tmp_path)
    assert "a bug in mikkood: KeyError: 'x'" in done.stderr


def test_the_preparation_still_has_our_standard_error(tmp_path: Path) -> None:
    done = run(
        'def serve(readiness):\n print("lost", file=sys.stderr, flush=True)\n readiness.ready()\n return 0\n'
        'launch(serve, lambda: print("heard", file=sys.stderr))',
        tmp_path,
    )
    assert done.stderr == 'heard\n'


def test_one_that_dies_without_a_word(tmp_path: Path) -> None:
    done = run('launch(lambda readiness: os._exit(3))', tmp_path)
    assert 'the daemon died while it was starting' in done.stderr


def test_one_that_is_killed_while_it_starts(tmp_path: Path) -> None:
    code = HEAD + (
        "def serve(readiness):\n (path / 'up').write_text(str(os.getpid()))\n time.sleep(600)\nlaunch(serve)"
    )
    with subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as launcher:
        up = tmp_path / 'up'
        until(lambda: up.exists() and up.read_text(), what='it is starting')
        os.kill(int(up.read_text()), signal.SIGKILL)
        assert 'died while it was starting' in launcher.communicate(timeout=30)[1]


def test_a_daemon_whose_launcher_has_gone_goes_on() -> None:
    """Ctrl-C while `start` waits."""
    reader, writer = os.pipe()
    os.close(reader)
    readiness = Readiness(writer)
    readiness.ready()
    assert readiness.told


def test_a_very_long_reason_does_not_block() -> None:
    reader, writer = os.pipe()
    Readiness(writer).failed(Exit.CONFIG, 'ü' * 1_000_000)
    assert os.read(reader, 100).startswith(b'{"exit": 78')
    os.close(reader)


@pytest.mark.parametrize(
    ('error', 'exit', 'reason'),
    [
        (Refusal('no', Exit.NOPERM), Exit.NOPERM, 'no'),
        (ConfigurationError(Mistake('f', 1, 2, 'a', 'b', 'c')), Exit.CONFIG, 'f:1:2: a: found b; c'),
        (PermissionError(13, 'Permission denied', '/x'), Exit.NOPERM, '/x: Permission denied'),
        (BrokerLost('gone'), Exit.FAILURE, 'gone'),
        (OSError('odd'), Exit.FAILURE, 'odd'),
        (ValueError('x'), Exit.SOFTWARE, 'a bug in mikkood: ValueError: x'),
    ],
)
def test_exceptions_as_exit_codes(error: Exception, exit: Exit, reason: str) -> None:
    assert explain(error) == (exit, reason)
