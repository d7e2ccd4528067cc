"""The lock says who lives; the number only says whom to signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from mikkoo.supervisor.pidfile import AlreadyRunning, Pidfile, peek
from mikkoo.supervisor.refusal import Refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'mikkoo.pid'


def test_a_held_pidfile(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.write(4242)
    assert path.read_text() == '4242\n'
    mark = peek(path)
    assert mark is not None and (mark.pid, mark.held, mark.foreground) == (4242, True, False)
    pidfile.release()
    assert peek(path) is None


def test_the_second_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.write(4242)
    with pytest.raises(AlreadyRunning, match='pid 4242') as refused:
        Pidfile(path)
    assert refused.value.pid == 4242
    pidfile.release()


def test_a_number_that_is_not_written_yet(path: Path) -> None:
    pidfile = Pidfile(path)
    with pytest.raises(AlreadyRunning, match='just being started'):
        Pidfile(path)
    pidfile.release()


def test_a_stale_file_is_no_obstacle_even_if_its_pid_lives(path: Path) -> None:
    path.write_text(f'{os.getpid()}\n')
    mark = peek(path)
    assert mark is not None and (mark.pid, mark.held) == (os.getpid(), False)
    Pidfile(path).release()


@pytest.mark.parametrize('content', ['', 'rubbish', '-1', '0', '12 34', '\x00'])
def test_a_file_without_a_number(path: Path, content: str) -> None:
    path.write_text(content)
    mark = peek(path)
    assert mark is not None and mark.pid is None


def test_the_lock_dies_with_its_holder(path: Path) -> None:
    """kill -9 leaves the file, not the lock."""
    code = (
        'import sys, os, signal; from pathlib import Path; from mikkoo.supervisor.pidfile import Pidfile\n'
        'p = Pidfile(Path(sys.argv[1])); p.write(os.getpid()); print("held", flush=True); signal.pause()'
    )
    with subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b'held\n'
        with pytest.raises(AlreadyRunning, match=f'pid {holder.pid}'):
            Pidfile(path)
        holder.kill()
    mark = peek(path)
    assert mark is not None and (mark.pid, mark.held) == (holder.pid, False)
    Pidfile(path).release()


def test_an_abandoned_lock_lives_on_in_the_fork(path: Path) -> None:
    """The launcher lets go of its copy; the daemon's copy is the lock."""
    pidfile = Pidfile(path)
    copy = os.dup(pidfile.fileno())
    pidfile.abandon()
    mark = peek(path)
    assert mark is not None and mark.held
    os.close(copy)
    mark = peek(path)
    assert mark is not None and not mark.held


def test_the_mark_of_the_foreground(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.write(7, foreground=True)
    mark = peek(path)
    assert mark is not None and (mark.pid, mark.foreground) == (7, True)
    assert path.read_text().splitlines()[0] == '7'
    pidfile.release()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    assert peek(tmp_path / 'no' / 'such') is None
    with pytest.raises(Refusal, match='No such file') as refused:
        Pidfile(tmp_path / 'no' / 'such')
    assert refused.value.exit == Exit.NOPERM


def test_a_symlink_is_not_followed(tmp_path: Path, path: Path) -> None:
    """A pidfile in /tmp must not become a way to empty another file."""
    target = tmp_path / 'target'
    target.write_text('precious')
    path.symlink_to(target)
    with pytest.raises(Refusal):
        Pidfile(path)
    assert target.read_text() == 'precious'
