"""Where the marks of a running mikkood are, and that they are found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.settings import DaemonSettings
from mikkoo.supervisor import places
from mikkoo.supervisor.pidfile import Mark, Pidfile
from mikkoo.supervisor.refusal import Refusal

US = (os.geteuid(), os.getegid())


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short one: a socket's path has 107 bytes."""
    monkeypatch.setenv(places.RUNTIME_VARIABLE, str(tmp_path))
    return tmp_path


def test_every_configuration_has_a_folder_of_its_own(tmp_path: Path) -> None:
    one, other = places.name(tmp_path / 'a' / 'mikkoo.yml'), places.name(tmp_path / 'b' / 'mikkoo.yml')
    assert one != other
    assert one.startswith('mikkoo-')


def test_a_relative_path_names_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert places.name(Path('mikkoo.yml')) == places.name(tmp_path / 'mikkoo.yml')


def test_made_and_found_again(tmp_path: Path) -> None:
    configuration = tmp_path / 'mikkoo.yml'
    place = places.make(configuration, *US)
    assert places.find(configuration, None) is None
    lock = Pidfile(place.lock)
    lock.write(42)
    running = places.find(configuration, None)
    assert isinstance(running, places.Running)
    assert (running.pid, running.places) == (42, place)
    lock.release()
    assert places.find(configuration, None) is None


def test_found_by_the_configured_pidfile_alone(tmp_path: Path) -> None:
    """Started by a user whose runtime folder we do not know."""
    pidfile = Pidfile(tmp_path / 'some.pid')
    pidfile.write(42)
    running = places.find(tmp_path / 'mikkoo.yml', pidfile.path)
    assert isinstance(running, places.Running) and running.pid == 42
    pidfile.release()


def test_a_dead_one(tmp_path: Path) -> None:
    (tmp_path / 'some.pid').write_text('42\n')
    dead = places.find(tmp_path / 'mikkoo.yml', tmp_path / 'some.pid')
    assert isinstance(dead, Mark) and dead.pid == 42


def test_an_emptied_pidfile_is_a_clean_stop(tmp_path: Path) -> None:
    (tmp_path / 'some.pid').write_text('')
    assert places.find(tmp_path / 'mikkoo.yml', tmp_path / 'some.pid') is None


def test_the_configured_pidfile(tmp_path: Path) -> None:
    configuration = tmp_path / 'mikkoo.yml'
    (tmp_path / 'run').mkdir()

    def chosen(pidfile: str | None) -> Path | None:
        return places.configured_pidfile(configuration, DaemonSettings(pidfile=pidfile))

    assert chosen(None) is None
    assert chosen('/var/run/no-such-mikkoo') == Path('/var/run/no-such-mikkoo')
    assert chosen('mikkoo.pid') == tmp_path / 'mikkoo.pid'
    assert chosen(str(tmp_path / 'run')) == tmp_path / 'run' / 'mikkoo.pid'


def test_only_one_missing_folder_is_made(tmp_path: Path) -> None:
    places.prepare_pidfile(tmp_path / 'new' / 'mikkoo.pid', *US)
    assert (tmp_path / 'new').is_dir()
    with pytest.raises(Refusal) as refused:
        places.prepare_pidfile(tmp_path / 'typing' / 'mistake' / 'mikkoo.pid', *US)
    assert refused.value.exit == Exit.NOPERM
    assert not (tmp_path / 'typing').exists()


def test_a_base_too_long_for_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.RUNTIME_VARIABLE, str(tmp_path / ('x' * 100)))
    with pytest.raises(Refusal, match='too long'):
        places.make(tmp_path / 'mikkoo.yml', *US)


@pytest.mark.parametrize('umask', [0, 0o777])
def test_the_folder_is_its_users_and_groups_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setenv(places.RUNTIME_VARIABLE, str(tmp_path / 'base'))
    before = os.umask(umask)
    try:
        place = places.make(tmp_path / 'mikkoo.yml', *US)
    finally:
        os.umask(before)
    assert place.folder.stat().st_mode & 0o777 == 0o750
    assert place.lock.parent.stat().st_mode & 0o022 == 0, 'nobody else can put another lock in its place'


def test_a_user_looks_in_his_folder_and_then_in_the_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(places.RUNTIME_VARIABLE)
    monkeypatch.setenv('XDG_RUNTIME_DIR', '/run/elsewhere')
    assert places.bases(0)[0] == places.ROOT_BASE
    stranger = os.geteuid() + 4321
    assert places.bases(stranger)[0] == Path(f'/run/user/{stranger}/mikkood')
    monkeypatch.setattr(os, 'geteuid', lambda: 4321)
    assert places.bases(4321)[0] == Path('/run/elsewhere/mikkood')
