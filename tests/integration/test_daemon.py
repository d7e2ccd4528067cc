"""mikkood as a daemon and in the foreground: real processes, real signals, real users."""

from __future__ import annotations

import grp
import json
import os
import pty
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from tests.integration import readable
from tests.integration.mikkood import ME, OTHER, Done, Mikkood, alive, as_root, proc
from tests.integration.readable import Program
from tests.servers.waiting import until

STOP_TIMEOUT = 15.0  # three times the five seconds of a graceful stop

Factory = Callable[..., Mikkood]


@pytest.fixture(scope='session')
def open_program() -> Iterator[Program]:
    """A mikkood that OTHER may run too."""
    with tempfile.TemporaryDirectory(prefix='mikkood-') as folder:
        Path(folder).chmod(0o755)
        yield readable.program(OTHER, Path(folder))


@pytest.fixture
def factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """`factory(user=None, name='mikkoo.yml')`: a Mikkood in a folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix='mikkood-'))
    folder.chmod(0o755)
    made: list[Mikkood] = []

    def make(user: str | None = None, name: str = 'mikkoo.yml') -> Mikkood:
        ours = user in (None, ME)
        program = Program(readable.SCRIPT) if ours else request.getfixturevalue('open_program')
        made.append(Mikkood(program, folder, user, name))
        made[-1].write()
        if not ours:
            as_root('chown', user, folder)
        return made[-1]

    yield make
    for mikkood in made:
        mikkood.close()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # it holds what belongs to others
        as_root('rm', '-r', folder)


@pytest.fixture
def mikkood(factory: Factory) -> Mikkood:
    return factory()


def complaints(done: Done) -> list[str]:
    """Standard error without what every one of these configurations earns."""
    return [line for line in done.stderr.splitlines() if 'no workers: nothing is relayed' not in line]


@pytest.mark.parametrize('user', [ME, OTHER])
def test_the_life_of_a_daemon(factory: Factory, user: str) -> None:
    mikkood = factory(user)
    assert mikkood('status').returncode == Exit.NOT_RUNNING
    begun = time.monotonic()
    started = mikkood('start')
    assert (started.returncode, complaints(started)) == (Exit.OK, [])
    assert time.monotonic() - begun < 30
    pid = mikkood.pid
    assert f'pid {pid}' in started.stdout
    shown = mikkood('status')
    assert shown.returncode == Exit.OK and f'running (pid {pid})' in shown.stdout
    reloaded = mikkood('reload')
    assert (reloaded.returncode, reloaded.stdout) == (Exit.OK, 'reloaded: nothing has changed\n')
    begun = time.monotonic()
    stopped = mikkood('stop')
    assert (stopped.returncode, stopped.stderr) == (Exit.OK, '')
    assert time.monotonic() - begun < STOP_TIMEOUT
    assert not alive(pid)
    assert mikkood('status').returncode == Exit.NOT_RUNNING
    assert mikkood('stop').returncode == Exit.OK
    assert mikkood('reload').returncode == Exit.NO_DAEMON


def test_it_is_detached_in_every_way(mikkood: Mikkood) -> None:
    mikkood.write(daemon='{umask: "027"}')
    pid = mikkood.started()
    assert os.getsid(pid) not in (os.getsid(0), pid)  # no session leader: it can never get a terminal
    assert int(proc(pid)['PPid']) != os.getpid()
    assert os.readlink(f'/proc/{pid}/cwd') == '/'
    assert [os.readlink(f'/proc/{pid}/fd/{number}') for number in range(3)] == [os.devnull] * 3
    assert proc(pid)['Umask'] == '0027'


@pytest.mark.parametrize('command', ['start', 'start -f'])
def test_nobody_else_may_write_its_files_whatever_the_umask(mikkood: Mikkood, command: str) -> None:
    mikkood.write(daemon=f'{{umask: "000", pidfile: {mikkood.folder}/some.pid}}')
    before = os.umask(0)
    try:
        process = mikkood.popen(*command.split())
    finally:
        os.umask(before)
    until(lambda: mikkood('status').returncode == Exit.OK, STOP_TIMEOUT, 'it runs')
    [control] = mikkood.folder.glob('run/*/control')
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in mikkood.folder.rglob('*')}
    assert (modes[control], modes[control.parent]) == (0o600, 0o750)
    made = {mikkood.log, *mikkood.folder.glob('**/*.pid')}
    assert len(made) == (2 if '-f' in command else 3)
    assert not [path for path in {*made, control.parent.parent} if modes[path] & stat.S_IWOTH], modes
    assert mikkood('stop').returncode == Exit.OK
    process.communicate(timeout=STOP_TIMEOUT)


def test_nothing_of_the_starter_stays_open(mikkood: Mikkood) -> None:
    """`start` in a pipe must not keep the pipe open, nor any other file that the shell had."""
    with tempfile.NamedTemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        assert mikkood('start', pass_fds=[file.fileno()]).returncode == Exit.OK
        pid = mikkood.pid
        names = {os.readlink(entry) for entry in Path(f'/proc/{pid}/fd').iterdir()}
        assert file.name not in names
        assert str(mikkood.log) in names


def test_it_starts_with_closed_streams(mikkood: Mikkood) -> None:
    done = subprocess.run(
        ['sh', '-c', 'exec "$0" "$@" <&- >&- 2>&-', *mikkood.command('start')[0]],
        timeout=60, **mikkood.command()[1],
    )  # fmt: skip
    assert done.returncode == Exit.OK
    assert mikkood('status').returncode == Exit.OK


def test_a_second_start_is_refused_with_the_pid(mikkood: Mikkood) -> None:
    pid = mikkood.started()
    for command in (['start'], ['start', '-f']):
        refused = mikkood(*command)
        assert refused.returncode == Exit.FAILURE
        assert f'already running (pid {pid}' in refused.stderr
    assert mikkood.pid == pid


def test_of_many_starts_at_once_one_wins(mikkood: Mikkood) -> None:
    starts = [mikkood.popen('start') for _ in range(4)]
    for start in starts:
        start.communicate(timeout=60)
    assert sorted(start.returncode for start in starts) == [0, 1, 1, 1]
    assert mikkood('status').returncode == Exit.OK


def test_a_daemon_that_was_killed_leaves_no_obstacle(mikkood: Mikkood) -> None:
    mikkood.write(daemon=f'{{pidfile: {mikkood.folder}/some.pid}}')
    pid = mikkood.started()
    assert (mikkood.folder / 'some.pid').read_text() == f'{pid}\n'
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), what='it is gone')
    dead = mikkood('status')
    assert dead.returncode == Exit.DEAD and str(pid) in dead.stdout
    again = mikkood.started()
    assert again != pid
    assert (mikkood.folder / 'some.pid').read_text() == f'{again}\n'
    assert mikkood('stop').returncode == Exit.OK
    assert not (mikkood.folder / 'some.pid').exists()


def test_two_configurations_run_beside_each_other(factory: Factory) -> None:
    one, other = factory(name='one.yml'), factory(name='other.yml')
    first, second = one.started(), other.started()
    assert first != second
    assert one('stop').returncode == Exit.OK
    assert (alive(first), alive(second)) == (False, True)


def test_two_configurations_with_one_pidfile_do_not(factory: Factory) -> None:
    one, other = factory(name='one.yml'), factory(name='other.yml')
    for mikkood in (one, other):
        mikkood.write(daemon=f'{{pidfile: {one.folder}/some.pid}}')
    pid = one.started()
    refused = other('start')
    assert refused.returncode == Exit.FAILURE and f'pid {pid}' in refused.stderr


# Why it does not start


def test_a_wrong_configuration_is_told_with_its_line(mikkood: Mikkood) -> None:
    mikkood.path.write_text('Application:\n  workers: {}\n  pol_interval: 3\n')
    refused = mikkood('start')
    assert refused.returncode == Exit.CONFIG
    assert f'{mikkood.path}:3:' in refused.stderr and 'poll_interval' in refused.stderr
    assert mikkood('status').returncode == Exit.NOT_RUNNING


def test_a_log_that_cannot_be_written_is_told(mikkood: Mikkood) -> None:
    mikkood.write(log=Path('/proc/no-such/mikkoo.log'))
    refused = mikkood('start')
    assert refused.returncode == Exit.CONFIG
    assert '/proc/no-such/mikkoo.log' in refused.stderr and 'Traceback' not in refused.stderr
    assert mikkood('status').returncode == Exit.NOT_RUNNING


@pytest.mark.parametrize('pidfile', ['/proc/mikkoo.pid', '/proc/no/such.pid'])
def test_a_pidfile_that_cannot_be_made_is_told(mikkood: Mikkood, pidfile: str) -> None:
    mikkood.write(daemon=f'{{pidfile: {pidfile}}}')
    refused = mikkood('start')
    assert refused.returncode == Exit.NOPERM
    assert str(Path(pidfile).parent) in refused.stderr and 'Traceback' not in refused.stderr


@pytest.mark.parametrize('who', ['{user: no-such-user}', '{group: no-such-group}'])
def test_an_unknown_user_or_group_is_told(mikkood: Mikkood, who: str) -> None:
    mikkood.write(daemon=who)
    refused = mikkood('start')
    assert refused.returncode == Exit.CONFIG and 'no-such-' in refused.stderr
    checked = mikkood('check')
    assert checked.returncode == Exit.CONFIG and 'Daemon.' in checked.stderr and 'no-such-' in checked.stderr
    checked = mikkood('check', '--json')
    assert checked.returncode == Exit.CONFIG
    [mistake] = json.loads(checked.stdout)['mistakes']
    assert mistake['key'] in ('Daemon.user', 'Daemon.group') and 'no-such-' in mistake['found']


def test_only_root_may_change_the_user(factory: Factory) -> None:
    mikkood = factory(OTHER)
    mikkood.write(daemon='{user: root}')
    refused = mikkood('start')
    assert refused.returncode == Exit.NOPERM and 'only root' in refused.stderr


# The user


@pytest.fixture
def dropped(mikkood: Mikkood, open_program: Program) -> Mikkood:
    """As in the first versions' example: root starts it for another user, the pidfile in a folder of root."""
    (mikkood.folder / 'var').mkdir()
    (mikkood.folder / 'log').mkdir()
    as_root('chown', 'root', mikkood.folder / 'var')
    as_root('chown', OTHER, mikkood.folder / 'log')
    mikkood.program = open_program
    mikkood.user = 'root'
    mikkood.log = mikkood.folder / 'log' / 'mikkoo.log'
    mikkood.write(daemon=f'{{user: {OTHER}, pidfile: {mikkood.folder}/var/mikkoo}}')
    return mikkood


def test_the_user_is_dropped_for_good(dropped: Mikkood) -> None:
    pid = dropped.started()
    other = pwd.getpwnam(OTHER)
    status = proc(pid)
    assert status['Uid'].split() == [str(other.pw_uid)] * 4
    assert status['Gid'].split() == [str(other.pw_gid)] * 4
    assert {int(group) for group in status['Groups'].split()} == set(os.getgrouplist(OTHER, other.pw_gid))
    assert dropped.log.stat().st_uid == other.pw_uid


def test_the_group_is_changed_without_a_user(mikkood: Mikkood) -> None:
    mikkood.user = 'root'
    mikkood.write(daemon='{group: nogroup}')
    status = proc(mikkood.started())
    nogroup = str(grp.getgrnam('nogroup').gr_gid)
    assert status['Gid'].split() == [nogroup] * 4
    assert status['Groups'].split() == [nogroup]


def test_a_dropped_user_leaves_a_clean_place_and_starts_again(dropped: Mikkood) -> None:
    pidfile = dropped.folder / 'var' / 'mikkoo'
    for _ in range(2):
        pid = dropped.started()
        assert pidfile.read_text() == f'{pid}\n'
        assert dropped('reload').returncode == Exit.OK
        assert dropped('stop').returncode == Exit.OK
        assert pidfile.read_text() == ''  # the folder is root's: it cannot be removed
        assert dropped('status').returncode == Exit.NOT_RUNNING


def test_a_log_that_only_root_may_write_is_told(dropped: Mikkood) -> None:
    as_root('install', '-o', 'root', '-m', '600', os.devnull, dropped.log)
    refused = dropped('start')
    assert refused.returncode == Exit.CONFIG and str(dropped.log) in refused.stderr


def test_a_configuration_that_the_user_cannot_read_is_told(dropped: Mikkood) -> None:
    as_root('chown', 'root', dropped.path)
    as_root('chmod', '600', dropped.path)
    started = dropped('start')
    assert started.returncode == Exit.OK
    assert OTHER in started.stderr and 'cannot read' in started.stderr


def test_another_user_may_not_stop_it(factory: Factory, open_program: Program) -> None:
    ours, theirs = factory(), factory()
    theirs.program = open_program
    ours.user, theirs.user = 'root', OTHER
    pid = ours.started()
    for command in ('stop', 'reload', 'restart'):
        refused = theirs(command)
        assert refused.returncode == Exit.NOPERM, refused
        assert 'another user' in refused.stderr
    shown = theirs('status')
    assert shown.returncode == Exit.OK and f'pid {pid}' in shown.stdout
    assert ours.pid == pid


# Logs


def test_the_log_survives_detaching_and_reloading(mikkood: Mikkood) -> None:
    mikkood.started()
    assert 'is up' in mikkood.log.read_text()
    size = mikkood.log.stat().st_size
    assert mikkood('reload').returncode == Exit.OK
    until(lambda: mikkood.log.stat().st_size > size, what='the reload is logged')
    assert mikkood('stop').returncode == Exit.OK
    assert 'has stopped' in mikkood.log.read_text()


# A live edit, as the commands see it


def test_a_broken_file_does_not_hide_the_daemon(mikkood: Mikkood) -> None:
    pid = mikkood.started()
    mikkood.path.write_text('Application: [')
    reload = mikkood('reload')
    assert reload.returncode == Exit.CONFIG and f'{mikkood.path}:1:' in reload.stderr
    shown = mikkood('status')
    assert shown.returncode == Exit.OK
    assert f'pid {pid}' in shown.stdout and 'failed' in shown.stdout and f'{mikkood.path}:1:' in shown.stdout
    failed = mikkood.status()['last_reload']
    assert failed['ok'] is False and failed['mistakes']
    assert mikkood('restart').returncode == Exit.CONFIG
    assert mikkood.pid == pid
    assert mikkood('stop').returncode == Exit.OK
    assert not alive(pid)


def test_a_changed_pidfile_does_not_hide_the_daemon(mikkood: Mikkood) -> None:
    mikkood.write(daemon=f'{{pidfile: {mikkood.folder}/old.pid}}')
    pid = mikkood.started()
    mikkood.write(daemon=f'{{pidfile: {mikkood.folder}/new.pid}}')
    assert 'needs' in mikkood('reload').stdout
    assert mikkood.status()['needs_restart'] is True
    assert 'needs restart' in mikkood('status').stdout
    assert mikkood('start').returncode == Exit.FAILURE
    assert mikkood('restart').returncode == Exit.OK
    assert not alive(pid)
    assert (mikkood.folder / 'new.pid').read_text() == f'{mikkood.pid}\n'
    assert mikkood.status()['needs_restart'] is False


def test_restart_is_another_process(mikkood: Mikkood) -> None:
    pid = mikkood.started()
    assert mikkood('restart').returncode == Exit.OK
    assert mikkood.pid != pid
    assert not alive(pid)


def test_restart_leaves_what_runs_where_the_new_settings_cannot_start(mikkood: Mikkood) -> None:
    pid = mikkood.started()
    mikkood.write(daemon='{user: no-such-user}')
    refused = mikkood('restart')
    assert refused.returncode == Exit.CONFIG and 'no-such-user' in refused.stderr
    assert mikkood.pid == pid and alive(pid)


def test_restart_starts_what_does_not_run(mikkood: Mikkood) -> None:
    assert mikkood('restart').returncode == Exit.OK
    assert mikkood('status').returncode == Exit.OK


def test_restart_of_a_worker_that_is_not_there(mikkood: Mikkood) -> None:
    assert mikkood('restart', 'invoices').returncode == Exit.NO_DAEMON
    mikkood.started()
    refused = mikkood('restart', 'invoices')
    assert refused.returncode == Exit.FAILURE and 'invoices' in refused.stderr


# A hung one


def test_a_hung_supervisor_is_unknown_and_is_killed_at_last(mikkood: Mikkood) -> None:
    pid = mikkood.started()
    os.kill(pid, signal.SIGSTOP)
    shown = mikkood('status')
    assert shown.returncode == Exit.UNKNOWN and str(pid) in shown.stdout
    assert mikkood('restart').returncode == Exit.FAILURE
    stopped = mikkood('stop', '--timeout', '0.2')
    assert stopped.returncode == Exit.OK and 'it is killed' in stopped.stderr
    assert not alive(pid)


def test_a_file_that_is_not_there_is_told_where_nothing_runs(mikkood: Mikkood) -> None:
    text = f'there is no file {mikkood.path}'
    mikkood.write()
    assert 'no file' not in mikkood('status').stdout + mikkood('stop').stdout + mikkood('reload').stderr
    mikkood.started()
    mikkood.path.unlink()
    assert 'no file' not in mikkood('status').stdout
    stopped = mikkood('stop')
    assert stopped.returncode == Exit.OK and 'has stopped' in stopped.stdout
    assert f'mikkood is not running ({text})' in mikkood('stop').stdout
    refused = mikkood('reload')
    assert refused.returncode == Exit.NO_DAEMON and f'not running ({text})' in refused.stderr
    shown = mikkood('status')
    assert shown.returncode == Exit.NOT_RUNNING and text in shown.stdout


# In the foreground


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_until_a_signal(mikkood: Mikkood, number: signal.Signals) -> None:
    process = mikkood.foreground()
    answer = mikkood.status()
    assert (answer['pid'], answer['foreground']) == (process.pid, True)
    assert 'in the foreground' in mikkood('status').stdout
    assert mikkood('reload').returncode == Exit.OK
    process.send_signal(number)
    _, errors = process.communicate(timeout=STOP_TIMEOUT)
    assert process.returncode == Exit.OK
    assert 'Traceback' not in errors
    assert mikkood('status').returncode == Exit.NOT_RUNNING


def test_in_the_foreground_until_the_terminal_is_closed(mikkood: Mikkood) -> None:
    """SIGHUP is a reload as long as there is the terminal."""
    command, how = mikkood.command('start', '-f')
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command[0], command, how['env'])
    try:
        until(lambda: mikkood('status').returncode == Exit.OK, STOP_TIMEOUT, 'mikkood runs')
        os.kill(pid, signal.SIGHUP)
        until(lambda: mikkood.status()['last_reload'] is not None, STOP_TIMEOUT, 'SIGHUP reloads')
    finally:
        os.close(terminal)
        try:
            until(lambda: not alive(pid), STOP_TIMEOUT, 'mikkood has ended')
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == Exit.OK
    assert 'the terminal is gone' in mikkood.log.read_text()
    assert mikkood('status').returncode == Exit.NOT_RUNNING


def test_in_the_foreground_the_user_stays_and_no_pidfile_is_needed(mikkood: Mikkood) -> None:
    mikkood.write(daemon='{user: no-such-user, pidfile: /proc/no/such.pid}')
    process = mikkood.foreground()
    assert proc(process.pid)['Uid'].split()[0] == str(os.getuid())
    refused = mikkood('start')
    assert refused.returncode == Exit.FAILURE and f'pid {process.pid}' in refused.stderr
    assert mikkood('restart').returncode == Exit.FAILURE
    assert process.poll() is None
    assert mikkood('stop').returncode == Exit.OK
    assert process.wait(STOP_TIMEOUT) == Exit.OK
