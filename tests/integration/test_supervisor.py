"""The supervisor with real processes: what it does when children, signals and itself go wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mikkoo.common import config
from mikkoo.supervisor.control import NobodyListens
from mikkoo.supervisor.loop import STOP_TIME, Supervisor
from mikkoo.supervisor.states import Policy
from tests.integration.supervised import PATIENCE, ROOT, STOP, Supervised, is_gone
from tests.servers.sentry import SentryServer
from tests.servers.waiting import until

YOUNG = 3600.0  # no child gets old
QUICK = {'first_delay': 0.05, 'most_delay': 0.1, 'young': YOUNG}  # seconds of back-off

# A reload that blocks the loop for longer than the silence that is death, then a stop.
BUSY = """
import os, signal, sys, time
from mikkoo.common import config
from mikkoo.supervisor.loop import Supervisor
from mikkoo.supervisor.states import Policy

def load(path):
    time.sleep(7)
    os.kill(os.getpid(), signal.SIGTERM)
    return config.load(path)

supervisor = Supervisor(
    'mikkoo.yml', config.load('mikkoo.yml'), foreground=True, control_path='control', load=load,
    on_ready=lambda: os.kill(os.getpid(), signal.SIGHUP), policy=Policy(silence=6.0),
    entries={'worker': 'tests.integration.entries:run'},
)
sys.exit(supervisor.run())
"""

Supervise = Callable[..., Supervised]


def test_it_starts_shows_and_stops(supervise: Supervise) -> None:
    sup = supervise({'a': {'queue': 'q'}, 'b': {}})
    status = sup.status()
    assert status['pid'] == sup.process.pid
    assert status['config'] == str(sup.config)
    assert (status['last_reload'], status['needs_restart'], status['stopping']) == (None, False, False)
    a = sup.until('a', waits='the end')
    assert (a['kind'], a['queue'], a['consumer'], a['restarts'], a['last_exit']) == (
        'worker', 'q', 'steady', 0, None,
    )  # fmt: skip
    assert a['numbers'] == {'prefix': 'mikkoo', 'retired': False}
    assert 0 <= a['beat_age'] < 30
    begun = time.monotonic()
    sup.signal(signal.SIGTERM)
    assert sup.wait(STOP) == 0
    assert time.monotonic() - begun < STOP
    sup.until_gone()
    assert not sup.control.exists()
    with pytest.raises(NobodyListens):
        sup.status()


def test_children_have_not_imported_what_they_must_not(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'modules'}})
    modules = set((sup.folder / 'modules').read_text().split())
    roots = {name.partition('.')[0] for name in modules}
    assert not roots & {'rich', 'pydantic', 'pydantic_core', 'ruamel', 'watchdog', 'argparse', 'daemon'}
    assert {name for name in modules if name.startswith('mikkoo.supervisor.')} == {'mikkoo.supervisor.spawn'}
    assert sup.log().count('ready') == 1, 'a child ran the console script again'


def test_a_crash_is_backed_off_then_fatal_and_mended_by_restart(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'fragile'}, 'b': {}}, **QUICK)
    b = sup.child('b')['pid']
    (sup.folder / 'broken').touch()
    os.kill(sup.child('a')['pid'], signal.SIGSEGV)
    a = sup.until('a', state='FATAL')
    assert len(sup.starts('a')) == 10, 'ten failures running: the segfault and nine starts'
    assert 'ZeroDivisionError: it is broken; 10 failures running' in a['reason']
    assert (a['last_exit'], a['pid']) == ('exit 70 (SOFTWARE)', None)
    for words in ('a ended: SIGSEGV', 'a backs off: SIGSEGV', 'a is FATAL', 'Traceback'):
        sup.until_logged(words)
    assert sup.child('b')['pid'] == b
    (sup.folder / 'broken').unlink()
    assert sup.ask('restart', name='a') == {'exit': 0, 'restarted': ['a']}
    assert sup.until('a', state='RUNNING')['failures'] == 0


def test_a_reload_gives_a_fatal_child_another_chance(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'refuses'}}, running=False, most_failures=2, **QUICK)
    a = sup.until('a', state='FATAL')
    assert 'exit 1 (FAILURE): it does not want to; 2 failures running' in a['reason']
    assert sup.ask('reload')['exit'] == 0
    until(lambda: len(sup.starts('a')) == 4, PATIENCE, sup.log)


def test_fatal_is_tried_again_by_itself(supervise: Supervise) -> None:
    sup = supervise(
        {'a': {'consumer_name': 'refuses'}}, running=False, most_failures=2, fatal_retry=0.3, **QUICK
    )
    until(lambda: len(sup.starts('a')) > 4, PATIENCE, sup.log)


def test_a_configuration_error_is_not_retried(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'unfit'}, 'b': {}}, running=False, fatal_retry=0.1, **QUICK)
    assert sup.until('a', state='FATAL')['last_exit'] == 'exit 78 (CONFIG)'
    before = sup.child('b')['restarts']
    until(
        lambda: sup.ask('restart', name='b')['exit'] == 0 and sup.child('b')['restarts'] > before + 2,
        PATIENCE,
    )
    assert len(sup.starts('a')) == 1
    sup.edit(a={'consumer_name': 'steady'})
    sup.until('a', state='RUNNING')


def test_who_dies_old_is_restarted_at_once(supervise: Supervise) -> None:
    sup = supervise({'a': {}}, young=0.0, first_delay=1000.0)
    for restarts in range(1, 4):
        os.kill(sup.child('a')['pid'], signal.SIGKILL)
        sup.until('a', state='RUNNING', restarts=restarts, failures=0, last_exit='SIGKILL')


def test_a_hung_child_is_killed_and_replaced(supervise: Supervise) -> None:
    """It takes three beats (5 s apart) missed, here: the beats of the others go on."""
    sup = supervise({'a': {}, 'b': {}}, silence=7.0, young=0.0)
    pids = sup.pids()
    os.kill(pids['a'], signal.SIGSTOP)
    a = sup.until('a', timeout=3 * 7.0, restarts=1, state='RUNNING')
    assert (a['last_exit'], is_gone(pids['a'])) == ('SIGKILL', True)
    assert sup.child('b')['pid'] == pids['b']
    sup.until_logged(r'a is killed: no beat for 7 s')


def test_a_suspended_machine_is_no_hung_child(supervise: Supervise) -> None:
    """docker pause, a frozen cgroup: the supervisor wakes up first and has heard nobody for long."""
    sup = supervise({'a': {}}, silence=6.0)
    pid = sup.child('a')['pid']
    for number in (sup.process.pid, pid):
        os.kill(number, signal.SIGSTOP)
    time.sleep(9)  # the suspension
    sup.signal(signal.SIGCONT)
    assert sup.child('a')['beat_age'] < 6, 'it has been pardoned'
    continued = time.monotonic()
    os.kill(pid, signal.SIGCONT)

    def has_beaten() -> bool:
        asked = time.monotonic()
        return bool(asked - sup.child('a')['beat_age'] > continued)

    until(has_beaten, PATIENCE, sup.log)
    assert (sup.child('a')['pid'], sup.child('a')['restarts']) == (pid, 0)


def test_a_supervisor_that_was_busy_for_long_blames_no_child(tmp_path: Path) -> None:
    """Beats that it had no time to hear are heard before it judges: here its configuration takes long."""
    script = tmp_path / 'script'
    script.write_text(BUSY)
    (tmp_path / 'mikkoo.yml').write_text(
        'Application: {workers: {a: {postgres_url: postgresql://h/d, consumer_name: steady}}}'
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'MIKKOO_TEST_FOLDER': str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert 'SIGHUP: reload' in done.stdout
    assert 'a ended: exit 0 (OK)' in done.stdout
    assert 'killed' not in done.stdout


def test_a_bug_in_the_supervisor_leaves_no_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MIKKOO_TEST_FOLDER', str(tmp_path))
    path = tmp_path / 'mikkoo.yml'
    path.write_text('Application: {workers: {a: {postgres_url: postgresql://h/d, consumer_name: steady}}}')
    descriptors = len(os.listdir('/proc/self/fd'))

    def fail() -> None:
        until((tmp_path / 'a.starts').exists, PATIENCE, 'the child has started')
        raise ZeroDivisionError

    supervisor = Supervisor(
        path,
        config.load(path),
        foreground=True,
        control_path=tmp_path / 'control',
        on_ready=fail,
        entries={'worker': 'tests.integration.entries:run'},
    )
    with pytest.raises(ZeroDivisionError):
        supervisor.run()
    assert is_gone(int((tmp_path / 'a.starts').read_text()))
    assert len(os.listdir('/proc/self/fd')) <= descriptors + 1, 'all closed but the resource tracker'


@pytest.mark.parametrize('behaviour', ['steady', 'stubborn'])
def test_no_orphans_when_the_supervisor_is_killed(supervise: Supervise, behaviour: str) -> None:
    sup = supervise({'a': {'consumer_name': behaviour}, 'b': {'consumer_name': behaviour}})
    assert len(sup.processes()) >= 3
    sup.signal(signal.SIGKILL)
    sup.wait()
    sup.until_gone()


def test_it_starts_again_after_it_was_killed(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    sup.signal(signal.SIGKILL)
    sup.wait()
    assert sup.control.exists(), 'the stale socket is what this is about'
    again = supervise({'a': {}})
    assert again.status()['pid'] == again.process.pid


def test_a_second_supervisor_on_the_socket_is_refused(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    second = Supervised(sup.folder, {'a': {}})
    try:
        assert second.wait() != 0
        assert 'another mikkood listens' in second.log()
        second.until_gone()
    finally:
        second.close()
    assert sup.status()['pid'] == sup.process.pid


def test_stopping_for_a_restart_unregisters_nobody(supervise: Supervise) -> None:
    sup = supervise({'a': {'unregister': True}})
    assert sup.ask('stop', restart=True)['exit'] == 0
    assert sup.wait(STOP) == 0
    assert not (sup.folder / 'a.unregistered').exists()


def test_a_second_term_kills(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'stubborn'}}, stop_deadline=600.0)
    sup.signal(signal.SIGTERM)
    sup.until('a', state='STOPPING')
    assert sup.status()['stopping'] is True
    assert sup.ask('reload')['exit'] == 1
    assert sup.ask('restart')['exit'] == 1
    sup.signal(signal.SIGTERM)
    assert sup.wait(STOP) == 0
    assert 'a is killed: a second SIGTERM' in sup.log()
    sup.until_gone()


def test_who_does_not_stop_is_killed_at_the_deadline(supervise: Supervise) -> None:
    sup = supervise({'a': {'consumer_name': 'stubborn'}, 'b': {}})
    begun = time.monotonic()
    assert sup.ask('stop') == {'exit': 0, 'pid': sup.process.pid}
    assert sup.wait(STOP) == 0
    assert time.monotonic() - begun < STOP
    assert 'a is killed: not stopped within 4.5 s' in sup.log()
    assert 'b ended: exit 0 (OK)' in sup.log()


def test_ctrl_c_reaches_the_whole_group_and_only_the_supervisor_acts(supervise: Supervise) -> None:
    sup = supervise({'a': {}, 'b': {}})
    os.killpg(sup.process.pid, signal.SIGINT)
    assert sup.wait(STOP) == 0
    assert sup.log().count('ended: exit 0 (OK)') == 2
    assert 'KeyboardInterrupt' not in sup.log()


def test_a_stop_while_children_are_being_started_lets_none_die_of_the_signal(supervise: Supervise) -> None:
    sup = supervise({name: {} for name in 'abc'})
    sup.ask('restart')
    until(lambda: any(child['restarts'] for child in sup.children().values()), PATIENCE, sup.log)
    sup.signal(signal.SIGTERM)
    assert sup.wait(STOP) == 0
    assert 'ended: SIG' not in sup.log(), sup.log()


def test_restart_of_one_of_all_and_of_none(supervise: Supervise) -> None:
    sup = supervise({'a': {}, 'b': {}})
    before = sup.pids()
    assert sup.ask('restart', name='b') == {'exit': 0, 'restarted': ['b']}
    sup.until('b', restarts=1, state='RUNNING')
    assert sup.child('a')['pid'] == before['a']
    assert sup.ask('restart')['restarted'] == ['a', 'b']
    sup.until('a', restarts=1, state='RUNNING')
    sup.until('b', restarts=2, state='RUNNING')
    answer = sup.ask('restart', name='c')
    assert (answer['exit'], answer['error']) == (1, "no process is called 'c'; there are: a, b")
    assert sup.ask('dance')['exit'] == 2


def test_rubbish_on_the_control_socket_harms_nobody(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    pid = sup.child('a')['pid']
    stack = ExitStack()
    for _ in range(40):
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(sup.control))
    for data in (b'\0' * 100_000, b'{"command": "restart", "name": {}}\n', b'{"command": "stop"'):
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(sup.control))
            try:
                link.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert sup.until('a', state='RUNNING')['pid'] == pid
    stack.close()


def test_an_idle_supervisor_uses_no_processor(supervise: Supervise) -> None:
    sup = supervise({'a': {}})

    def used() -> float:
        fields = Path(f'/proc/{sup.process.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    before = used()
    time.sleep(4)  # the span that is measured
    assert used() - before <= 0.12, 'seconds of processor time in 4 s: it polls or spins'


def test_two_hundred_lives_leak_nothing(supervise: Supervise) -> None:
    names = [f'w{number}' for number in range(10)]
    sup = supervise({name: {} for name in names}, young=0.0)

    def descriptors() -> list[str]:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(sup.control))
            link.sendall(b'{"command": "status"}\n')
            while link.recv(65_536):
                pass  # until it hangs up on us: it has then hung up on all who asked before
        folder = Path(f'/proc/{sup.process.pid}/fd')
        return sorted(os.readlink(entry).split(':')[0] for entry in folder.iterdir())

    def cycle(number: int) -> None:
        assert len(sup.ask('restart')['restarted']) == len(names)
        for name in names:
            sup.until(name, timeout=60, restarts=number, state='RUNNING')

    cycle(1)
    before = descriptors()
    for number in range(2, 22):
        cycle(number)
    assert descriptors() == before
    assert len(sup.processes()) == len(names) + 2, 'the children, the supervisor and its resource tracker'


def test_fatal_is_reported_to_sentry(supervise: Supervise) -> None:
    with SentryServer() as sentry:
        sup = supervise({'a': {}})
        sup.extra = {'sentry_dsn': sentry.dsn}
        sup.workers['a']['consumer_name'] = 'unfit'
        sup.save()
        sup.until('a', state='FATAL')
        until(lambda: sentry.events, PATIENCE, sup.log)
        assert 'a is FATAL' in str(sentry.events[0])
        assert sentry.events[0]['tags']['process'] == 'supervisor'
        sup.signal(signal.SIGTERM)
        assert sup.wait(STOP) == 0


def test_a_sentry_that_hangs_does_not_lengthen_a_stop_that_took_its_time(supervise: Supervise) -> None:
    with SentryServer() as sentry:
        sentry.hang()
        sup = supervise({'a': {'consumer_name': 'stubborn'}})
        sup.extra = {'sentry_dsn': sentry.dsn}
        sup.workers['b'] = {'consumer_name': 'unfit'}
        sup.save()
        sup.until('b', state='FATAL')
        until(lambda: sentry.requests, PATIENCE, sup.log)
        sup.signal(signal.SIGTERM)
        sup.until_logged('mikkood has stopped')
        begun = time.monotonic()
        assert sup.wait(STOP) == 0
        assert time.monotonic() - begun < 3 * (STOP_TIME - Policy().stop_deadline)
