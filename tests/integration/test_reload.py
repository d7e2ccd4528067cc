"""Edits of the configuration while the supervisor runs: each kind is seen, only what changed is touched."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.integration.supervised import PATIENCE, SAVE, STOP, Supervised, is_gone
from tests.servers.waiting import until

Supervise = Callable[..., Supervised]


def test_a_reload_touches_only_what_changed(supervise: Supervise) -> None:
    sup = supervise({'keep': {}, 'change': {}, 'remove': {}})
    before = sup.pids()
    sup.edit(change={'max_failures': 3}, remove=None, add={})
    sup.until('add', SAVE, state='RUNNING')
    until(lambda: 'remove' not in sup.children(), SAVE, sup.log)
    sup.until('change', restarts=1, state='RUNNING')
    assert sup.child('keep')['pid'] == before['keep']
    assert sup.child('change')['pid'] != before['change']
    assert is_gone(before['remove'])
    assert sup.status()['last_reload']['ok'] is True


def test_reload_answers_what_it_did(supervise: Supervise) -> None:
    sup = supervise({'keep': {}, 'change': {}, 'remove': {}})
    sup.edit(change={'max_failures': 3}, remove=None, add={})
    answer = sup.ask('reload')  # at once: before the edit has settled for the watcher
    assert answer['exit'] == 0
    assert (answer['started'], answer['restarted'], answer['retired'], answer['kept']) == (
        ['add'], ['change'], ['remove'], ['keep'],
    )  # fmt: skip
    assert (answer['told'], answer['needs_restart']) == (False, False)


def test_the_daemon_section_needs_a_restart_until_it_is_as_before(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    pid = sup.child('a')['pid']
    original = sup.config.read_bytes()
    changed = original.rstrip()[:-1] + b', "Daemon": {"umask": "077"}}'
    sup.save(changed)
    assert sup.ask('reload')['needs_restart'] is True
    assert sup.ask('reload')['needs_restart'] is True, 'a second reload does not forget it'
    assert sup.status()['needs_restart'] is True
    sup.save(original)
    assert sup.ask('reload')['needs_restart'] is False
    assert sup.child('a')['pid'] == pid


def test_an_invalid_edit_changes_nothing_and_is_reported_with_its_line(supervise: Supervise) -> None:
    sup = supervise({'a': {}, 'b': {}})
    before = sup.pids()
    good = sup.config.read_bytes()
    bad = good.replace(b'"consumer_name"', b'"consumer_nam"', 1)
    line = 1 + bad[: bad.index(b'"consumer_nam"')].count(b'\n')
    sup.save(bad)
    until(lambda: (sup.status()['last_reload'] or {}).get('ok') is False, SAVE, sup.log)
    assert f'{sup.config}:{line}:' in sup.status()['last_reload']['mistakes'][0]
    sup.until_logged(rf'{sup.config}:{line}:')
    answer = sup.ask('reload')
    assert answer['exit'] == 78
    assert f'{sup.config}:{line}:' in answer['error']
    sup.config.unlink()
    assert sup.ask('reload')['exit'] == 78
    assert sup.pids() == before
    sup.save(good)
    until(lambda: sup.status()['last_reload']['ok'], SAVE, sup.log)
    assert sup.pids() == before


def write_in_place(sup: Supervised, text: str) -> None:
    sup.config.write_text(text)


def write_in_two_steps(sup: Supervised, text: str) -> None:
    """Half of it would be a valid file without the second worker."""
    with sup.config.open('w') as file:
        file.truncate()
        file.flush()
        time.sleep(0.3)
        file.write(text)


def rename_over(sup: Supervised, text: str) -> None:
    new = sup.folder / '.mikkoo.yml.swp'
    new.write_text(text)
    new.rename(sup.config)


def remove_and_create(sup: Supervised, text: str) -> None:
    sup.config.unlink()
    sup.config.write_text(text)


def sed(sup: Supervised, text: str) -> None:
    number = text.partition('"max_failures": ')[2].partition(',')[0].partition('\n')[0]
    subprocess.run(
        ['sed', '-i', f's/"max_failures": .*/"max_failures": {number}/', str(sup.config)], check=True
    )


EDITS = [write_in_place, write_in_two_steps, rename_over, remove_and_create, sed]


@pytest.mark.parametrize('edit', EDITS)
def test_every_kind_of_edit_is_acted_on_within_a_second(
    supervise: Supervise, edit: Callable[[Supervised, str], None]
) -> None:
    sup = supervise({'a': {'max_failures': 3}, 'b': {}})
    b = sup.child('b')['pid']
    for number in (4, 5):
        before = sup.child('a')['pid']
        sup.workers['a']['max_failures'] = number
        edit(sup, sup.yaml().decode())
        saved = time.monotonic()
        until(lambda before=before: sup.child('a')['pid'] != before, SAVE, sup.log)
        assert time.monotonic() - saved < SAVE
        sup.until('a', state='RUNNING')
    assert sup.child('b')['pid'] == b


def test_a_secret_in_a_file_and_a_config_map_are_followed(supervise: Supervise) -> None:
    sup = supervise({'a': {}, 'b': {}})
    before = sup.pids()
    secret = sup.folder / 'secrets' / 'password'
    secret.parent.mkdir()
    secret.write_text('one\n')
    sup.edit(b={'postgres_url': 'postgresql://app:${file:secrets/password}@127.0.0.1:1/shop'})
    sup.until('b', restarts=1, state='RUNNING')
    secret.write_text('two\n')
    sup.until('b', SAVE + PATIENCE, restarts=2, state='RUNNING')
    for number in (3, 4):
        version = sup.folder / f'..{number}'
        version.mkdir()
        sup.workers['b']['max_failures'] = number
        # ${file:} starts at the folder that the link is in, not at its target's
        (version / 'mikkoo.yml').write_bytes(sup.yaml())
        (sup.folder / '..tmp').symlink_to(version.name)
        (sup.folder / '..tmp').rename(sup.folder / '..data')
        if not sup.config.is_symlink():
            (sup.folder / 'link').symlink_to('..data/mikkoo.yml')
            (sup.folder / 'link').rename(sup.config)
        sup.until('b', SAVE + PATIENCE, restarts=number, state='RUNNING')
    assert sup.child('a')['pid'] == before['a']


def test_a_touch_does_nothing(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    pid = sup.child('a')['pid']
    sup.config.touch()
    sup.config.write_bytes(b'# a comment\n' + sup.config.read_bytes())
    sup.edit(b={})
    sup.until('b', SAVE, state='RUNNING')
    assert sup.log().count('the configuration is used') == 1
    assert sup.child('a')['pid'] == pid


def test_sighup_reloads_and_opens_the_log_again(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    pid = sup.child('a')['pid']
    logged, moved = sup.folder / 'app.log', sup.folder / 'app.log.1'
    sup.logging = {
        'version': 1,
        'handlers': {'file': {'class': 'logging.FileHandler', 'filename': str(logged)}},
        'root': {'level': 'INFO', 'handlers': ['file']},
    }
    sup.save()
    until(logged.exists, SAVE, sup.log)
    until(lambda: 'the configuration is used' in logged.read_text(), SAVE, sup.log)
    logged.rename(moved)
    sup.signal(signal.SIGHUP)
    until(lambda: logged.exists() and 'the configuration is used' in logged.read_text(), SAVE, sup.log)
    sup.logging['handlers']['file']['filename'] = str(sup.folder / 'missing' / 'app.log')
    sup.save()
    until(lambda: not sup.status()['last_reload']['ok'], SAVE, sup.log)
    assert 'Logging' in sup.status()['last_reload']['mistakes'][0]
    assert 'the old one stays' in logged.read_text()
    assert sup.child('a')['pid'] == pid


def test_telemetry_is_told_to_running_children(supervise: Supervise) -> None:
    sup = supervise({'a': {}})
    pid = sup.child('a')['pid']
    sup.extra = {'statsd': {'enabled': True, 'host': '127.0.0.1', 'port': 9, 'prefix': 'other'}}
    sup.save()
    until(lambda: sup.child('a')['numbers'].get('prefix') == 'other', SAVE + PATIENCE, sup.log)
    assert sup.child('a')['pid'] == pid


def test_who_is_retired_unregisters_if_so_configured(supervise: Supervise) -> None:
    sup = supervise(
        {'yes': {'unregister': True}, 'no': {}, 'moves': {'unregister': True}, 'stays': {'unregister': True}}
    )
    sup.edit(yes=None, no=None, moves={'queue': 'other'}, stays={'max_failures': 1})
    until(lambda: set(sup.children()) == {'moves', 'stays'}, PATIENCE, sup.log)
    sup.until('moves', restarts=1, state='RUNNING')
    sup.until('stays', restarts=1, state='RUNNING')
    assert (sup.folder / 'yes.unregistered').exists()
    assert (sup.folder / 'moves.unregistered').exists(), 'its old queue is left'
    assert not (sup.folder / 'stays.unregistered').exists(), 'it still relays its queue'
    assert not (sup.folder / 'no.unregistered').exists()
    command = (
        'mikkood unregister --queue no --consumer steady --postgres-url postgresql://app@127.0.0.1:1/shop'
    )
    sup.until_logged(command)
    assert 'secret' not in sup.log()
    sup.signal(signal.SIGTERM)
    assert sup.wait(STOP) == 0
    assert (sup.folder / 'stays.unregistered').exists(), 'the daemon stops'
