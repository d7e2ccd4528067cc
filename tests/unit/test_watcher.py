"""Every way to change a file, seen by inotify and by polling; and what is no change."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from select import select

import pytest
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.polling import PollingObserver

from mikkoo.supervisor import watcher as watching
from mikkoo.supervisor.watcher import MOST_NOISE, QUIET, WRITE_PATIENCE, Settling, Watcher, entries

DEADLINE = 3.0  # seconds: three times what is promised


def polling() -> BaseObserver:
    return PollingObserver(timeout=0.1)


@pytest.fixture(params=[InotifyObserver, polling], ids=['inotify', 'polling'])
def watcher(request: pytest.FixtureRequest) -> Iterator[Watcher]:
    with closing(Watcher(request.param)) as made:
        yield made


def settles(watcher: Watcher, within: float = DEADLINE) -> bool:
    """What the loop does: wait until it is readable, until it is due; whether a change has settled."""
    end = time.monotonic() + within
    while (now := time.monotonic()) < end:
        if watcher.settled(now):
            return True
        if select([watcher], [], [], max(0.0, min(end, watcher.due()) - now))[0]:
            watcher.take(time.monotonic())
    return False


def changes(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    new = path.with_name('.new.swp')
    yield 'write in place', lambda: path.write_text('written')
    yield 'append', lambda: subprocess.run(['sh', '-c', f'echo more >> {path}'], check=True)
    yield 'rename over', lambda: (new.write_text('renamed'), new.replace(path))
    yield 'sed -i', lambda: subprocess.run(['sed', '-i', 's/e/E/', str(path)], check=True)
    yield 'remove', path.unlink
    yield 'create', lambda: path.write_text('created')
    yield 'move away', lambda: path.rename(path.with_name('moved'))
    yield 'move back', lambda: path.with_name('moved').rename(path)
    yield 'copy over', lambda: shutil.copy('/etc/passwd', path)


def test_writes_during_a_stop_are_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of the supervisor's own log, where that is beside the configuration."""
    log = tmp_path / 'log'
    for _ in range(20):
        with closing(Watcher()) as watcher, log.open('a', buffering=1) as file:
            watcher.watch([str(tmp_path / 'mikkoo.yml')])
            for _ in range(50):
                file.write('a line\n')
            watcher.watch([str(tmp_path / 'mikkoo.yml')])
            for _ in range(50):
                file.write('a line\n')
    # A Sentry client that another test left behind may still be trying.
    assert [record for record in caplog.record_tuples if not record[0].startswith('urllib3')] == []


def test_every_kind_of_edit_is_seen_one_after_the_other(watcher: Watcher, tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text('first')
    watcher.watch([str(path)])
    for kind, change in changes(path):
        change()
        assert settles(watcher), kind
        watcher.watch([str(path)])


def test_a_swapped_folder_of_a_config_map_is_seen(watcher: Watcher, tmp_path: Path) -> None:
    """Kubernetes: mikkoo.yml -> ..data/mikkoo.yml, ..data -> ..2024_1, then a link renamed over ..data."""
    path = tmp_path / 'mikkoo.yml'
    for version in ('..1', '..2', '..3'):
        (tmp_path / version).mkdir()
        (tmp_path / version / 'mikkoo.yml').write_text(version)
    (tmp_path / '..data').symlink_to('..1')
    path.symlink_to('..data/mikkoo.yml')
    watcher.watch([str(path)])
    for old, new in (('..1', '..2'), ('..2', '..3')):
        (tmp_path / '..data_tmp').symlink_to(new)
        (tmp_path / '..data_tmp').rename(tmp_path / '..data')
        shutil.rmtree(tmp_path / old)
        assert settles(watcher), new
        assert path.read_text() == new
        watcher.watch([str(path)])


def test_a_change_of_a_links_target_is_seen(watcher: Watcher, tmp_path: Path) -> None:
    real, between = tmp_path / 'real', tmp_path / 'between'
    for folder in (real, between):
        folder.mkdir()
    (real / 'content.yml').write_text('1')
    (between / 'hop').symlink_to('../real/content.yml')
    (tmp_path / 'mikkoo.yml').symlink_to(between / 'hop')
    watcher.watch([str(tmp_path / 'mikkoo.yml')])
    (real / 'content.yml').write_text('2')
    assert settles(watcher), 'the target'
    (real / 'other.yml').write_text('3')
    assert not settles(watcher, 0.5), 'a file beside the target'
    (between / 'hop').unlink()
    (between / 'hop').symlink_to('../real/other.yml')
    assert settles(watcher), 'the link in the middle'


@pytest.mark.parametrize('pause', [0.0, 0.4], ids=['at once', 'later'])
def test_a_folder_that_is_removed_and_made_again_is_survived(
    watcher: Watcher, tmp_path: Path, pause: float
) -> None:
    folder = tmp_path / 'etc' / 'mikkoo'
    path = folder / 'mikkoo.yml'
    folder.mkdir(parents=True)
    path.write_text('1')
    watcher.watch([str(path)])
    for content in ('2', '3'):
        shutil.rmtree(folder.parent)
        if pause:
            assert settles(watcher), 'removed'
            watcher.watch([str(path)])
        folder.mkdir(parents=True)
        path.write_text(content)
        assert settles(watcher), 'made again'
        watcher.watch([str(path)])
        path.write_text(content * 2)
        assert settles(watcher), 'changed after that'
        watcher.watch([str(path)])


def test_a_renamed_folder_is_seen(watcher: Watcher, tmp_path: Path) -> None:
    for name in ('conf', 'conf.new'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'mikkoo.yml').write_text(name)
    watcher.watch([str(tmp_path / 'conf' / 'mikkoo.yml')])
    (tmp_path / 'conf').rename(tmp_path / 'conf.old')
    (tmp_path / 'conf.new').rename(tmp_path / 'conf')
    assert settles(watcher)


def test_reading_and_neighbours_wake_nobody(watcher: Watcher, tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text('1')
    watcher.watch([str(path)])
    path.read_text()
    list(tmp_path.iterdir())
    (tmp_path / 'neighbour').write_text('2')
    (tmp_path / '.mikkoo.yml.swp').write_text('3')
    assert not settles(watcher, 0.8)
    assert watcher.due() == float('inf')


def test_several_paths_and_no_longer_one(watcher: Watcher, tmp_path: Path) -> None:
    one, two = tmp_path / 'one', tmp_path / 'secrets' / 'two'
    one.write_text('1')
    two.parent.mkdir()
    two.write_text('2')
    watcher.watch([str(one), str(two)])
    two.write_text('3')
    assert settles(watcher)
    watcher.watch([str(one)])
    two.write_text('4')
    assert not settles(watcher, 0.8)


def test_chmod_is_seen(watcher: Watcher, tmp_path: Path) -> None:
    """A file that could not be read becomes readable."""
    path = tmp_path / 'mikkoo.yml'
    path.write_text('1')
    path.chmod(0)
    watcher.watch([str(path)])
    path.chmod(0o644)
    assert settles(watcher)


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text('old')
    with closing(Watcher()) as watcher:
        watcher.watch([str(path)])
        with path.open('w') as file:
            file.write('ha')
            file.flush()
            assert not settles(watcher, WRITE_PATIENCE / 2), 'half of it was taken'
            file.write('lf')
        assert settles(watcher)
        with path.open('w') as file:
            file.write('open for ever')
            file.flush()
            assert settles(watcher, WRITE_PATIENCE * 3)


class NoWatches(InotifyObserver):
    """As where fs.inotify.max_user_watches is used up."""

    def schedule(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        raise OSError(errno.ENOSPC, 'inotify watch limit reached')


def no_instances() -> BaseObserver:
    raise OSError(errno.EMFILE, 'inotify instance limit reached')


@pytest.mark.parametrize('broken', [NoWatches, no_instances])
def test_without_inotify_it_polls_and_says_so_once(
    broken: Callable[[], BaseObserver], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text('1')
    with caplog.at_level(logging.WARNING), closing(Watcher(broken)) as watcher:
        for content in ('22', '333'):
            watcher.watch([str(path)])
            path.write_text(content)
            assert settles(watcher)
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'no inotify' in caplog.text


def test_a_folder_that_may_not_be_read_is_said_once(
    watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, 'access', lambda path, mode: path != str(tmp_path))  # root may read everything
    for _ in range(2):
        watcher.watch([str(tmp_path / 'mikkoo.yml')])
    assert [record.getMessage() for record in caplog.records] == [
        f'{tmp_path} may not be read: changes of {tmp_path}/mikkoo.yml are seen on a reload only'
    ]


def test_it_leaves_neither_threads_nor_descriptors(tmp_path: Path) -> None:
    before = threading.enumerate(), descriptors()

    def added() -> tuple[int, set[tuple[str, str]]]:
        """What others leave to the garbage collector may vanish meanwhile: only what is new counts."""
        return len(set(threading.enumerate()) - set(before[0])), descriptors() - before[1]

    with closing(Watcher()) as watcher:
        watcher.watch([str(tmp_path / 'a')])
        threads, opened = added()
        assert threads
        assert opened
        for _ in range(20):
            watcher.watch([str(tmp_path / 'a')])
        assert added() == (threads, opened)
    assert added() == (0, set())


def descriptors() -> set[tuple[str, str]]:
    """Those of this process: number, and what it is."""
    found = set()
    for number in os.listdir('/proc/self/fd'):
        try:
            found.add((number, os.readlink(f'/proc/self/fd/{number}')))
        except FileNotFoundError:
            pass  # the listing's own
    return found


class FailsOnce(InotifyObserver):
    """The first watch fails, as where the kernel has no memory."""

    failed = False

    def schedule(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        if not self.failed:
            self.failed = True
            raise OSError(errno.ENOMEM, 'Cannot allocate memory')
        return super().schedule(*arguments, **options)  # type: ignore[arg-type]


def test_what_cannot_be_watched_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, 'RETRY', 0.3)
    path = tmp_path / 'mikkoo.yml'
    with caplog.at_level(logging.WARNING), closing(Watcher(FailsOnce)) as watcher:
        watcher.watch([str(path)])
        path.write_text('the watches that were made work')
        assert settles(watcher)
        assert settles(watcher), 'the files are looked at after the wait, for what was missed'
        watcher.watch([str(path)])
        assert watcher.due() == float('inf')
        path.write_text('again')
        assert settles(watcher)
    assert caplog.messages == ['/ cannot be watched: Cannot allocate memory; it is tried again every 0.3 s']


def test_the_entries_of_a_path(tmp_path: Path) -> None:
    base = list(entries(str(tmp_path)))
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('./real/../real')
    (tmp_path / 'loop').symlink_to('loop')
    at = str(tmp_path)
    assert list(entries(f'{at}/link/./file')) == [
        *base, f'{at}/link', f'{at}/real', f'{at}/real', f'{at}/real/file',
    ]  # fmt: skip
    assert list(entries(f'{at}/missing/file')) == [*base, f'{at}/missing', f'{at}/missing/file']
    assert set(entries(f'{at}/loop')) == {*base, f'{at}/loop'}


def test_a_relative_path_starts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(entries('x.yml')) == list(entries(f'{tmp_path}/x.yml'))


def test_a_burst_settles_once_and_noise_is_not_waited_for_for_ever() -> None:
    settling = Settling()
    assert settling.due() == float('inf')
    now = 100.0
    while now < 100.0 + MOST_NOISE:
        assert not settling.over(now)
        settling.noted(b'.', now)
        now += QUIET / 2
    assert settling.due() == 100.0 + MOST_NOISE
    assert settling.over(now)
    assert not settling.over(now + 1000)


def test_an_open_file_settles_when_it_is_closed() -> None:
    settling = Settling()
    settling.noted(b'.w', 1.0)
    assert settling.due() == 1.0 + WRITE_PATIENCE
    settling.noted(b'wc', 1.5)
    assert settling.due() == 1.0 + MOST_NOISE
