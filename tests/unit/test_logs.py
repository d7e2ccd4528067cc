"""The parent's handlers: the Logging section of the reference text, reloads, failures, secrets."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common import logs, syslog
from mikkoo.common.errors import ConfigurationError
from tests.unit.logging_state import restored

VERBOSE = '%(levelname) -10s %(asctime)s %(process)-6d %(processName) -20s %(name) -18s: %(message)s'
# The Logging section of the reference text's full example.
EXAMPLE: dict[str, Any] = {
    'version': 1,
    'formatters': {'verbose': {'format': VERBOSE, 'datefmt': '%Y-%m-%d %H:%M:%S'}},
    'handlers': {'console': {'class': 'logging.StreamHandler', 'formatter': 'verbose', 'debug_only': True}},
    'loggers': {
        name: {'handlers': ['console'], 'level': level, 'propagate': True}
        for name, level in {
            'helper': 'INFO', 'mikkoo': 'INFO', 'pika': 'ERROR', 'queries': 'ERROR', 'tornado': 'ERROR'
        }.items()
    },
    'root': {'handlers': ['console'], 'level': 'CRITICAL', 'propagate': True},
    'disable_existing_loggers': True,
    'incremental': False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    with restored():
        yield


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A syslog at a real Unix socket."""
    monkeypatch.setattr(syslog, 'ADDRESS', str(tmp_path / 'dev-log'))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(syslog.ADDRESS)
        receiver.setblocking(False)
        yield receiver


def to_file(path: Path, **more: Any) -> dict[str, Any]:
    return {
        'formatters': {'plain': {'format': '%(levelname)s %(processName)s %(name)s %(message)s'}},
        'handlers': {
            'file': {'class': 'logging.FileHandler', 'filename': str(path), 'formatter': 'plain', **more}
        },
        'root': {'handlers': ['file'], 'level': 'INFO'},
    }


def configure(settings: dict[str, Any], foreground: bool = False) -> None:
    logs.configure(settings, foreground=foreground, source='/etc/mikkoo.yml')


LOG = logging.getLogger('mikkoo.supervisor')


def test_the_reference_example_in_the_foreground(capsys: pytest.CaptureFixture[str]) -> None:
    existing = logging.getLogger('mikkoo.existing')
    original = copy.deepcopy(EXAMPLE)
    configure(EXAMPLE, foreground=True)
    assert original == EXAMPLE
    existing.info('from before %s', 'the configuration')
    LOG.debug('too low')
    logging.getLogger('somebody.else').error('too low for the root')
    logging.getLogger('pika').error('as loud as it may')
    first, second = capsys.readouterr().err.splitlines()  # though it hangs on the root too, once each
    assert re.fullmatch(
        r'INFO       \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ * supervisor           mikkoo\.existing   '
        r': from before the configuration',
        first,
    )
    assert second.endswith('pika              : as loud as it may')


def test_the_reference_example_in_a_daemon_warns_in_syslog(journal: socket.socket) -> None:
    configure(EXAMPLE)
    LOG.info('not this')
    LOG.warning('but this: %d', 1)
    assert (
        journal.recv(1000)
        == f'<28>mikkood[{os.getpid()}]: WARNING supervisor mikkoo.supervisor: but this: 1\0'.encode()
    )
    with pytest.raises(BlockingIOError):
        journal.recv(1000)


def test_a_daemon_whose_handlers_write_to_the_terminal_warns_in_syslog(journal: socket.socket) -> None:
    config = copy.deepcopy(EXAMPLE)
    config['handlers']['console'] |= {'debug_only': False, 'stream': 'ext://sys.stdout'}
    config['loggers']['mikkoo']['propagate'] = False
    configure(config)
    LOG.error('heard')
    assert b'heard' in journal.recv(1000)


def test_a_daemon_that_would_log_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, 'ADDRESS', str(tmp_path / 'none'))
    with pytest.raises(ConfigurationError) as refusal:
        configure(EXAMPLE)
    assert str(refusal.value).startswith('/etc/mikkoo.yml: Logging: a daemon would log nowhere')
    assert 'No such file' in str(refusal.value)


def test_syslog_comes_back_after_a_restart(journal: socket.socket) -> None:
    configure(EXAMPLE)
    journal.close()
    os.unlink(syslog.ADDRESS)
    LOG.error('lost')
    assert logs.take_lost()[0] == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(syslog.ADDRESS)
        LOG.error('heard again')
        assert b'heard again' in again.recv(1000)


def kept_files() -> list[int]:
    """Descriptors of the files that handlers have open."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    handlers = dict.fromkeys(handler for logger in loggers for handler in logger.handlers)
    files = [handler for handler in handlers if isinstance(handler, logging.FileHandler)]
    return [handler.stream.fileno() for handler in files if handler.stream is not None]


def test_a_new_configuration_replaces_the_old_and_closes_it(tmp_path: Path) -> None:
    config = to_file(tmp_path / 'old')
    config['loggers'] = {'mikkoo.supervisor': {'handlers': ['file'], 'level': 'DEBUG', 'propagate': False}}
    configure(config)
    LOG.debug('one')
    before = kept_files()
    configure(to_file(tmp_path / 'new'))
    LOG.debug('nobody asked for this any more')
    LOG.info('two')
    assert (tmp_path / 'old').read_text() == 'DEBUG supervisor mikkoo.supervisor one\n'
    assert (tmp_path / 'new').read_text() == 'INFO supervisor mikkoo.supervisor two\n'
    names = [os.readlink(f'/proc/self/fd/{number}') for number in kept_files()]
    assert names == [str(tmp_path / 'new')]
    assert len(before) == 1


@pytest.mark.parametrize('old_mode', ['a', 'w'])
def test_a_refused_configuration_leaves_the_old_one_working(tmp_path: Path, old_mode: str) -> None:
    config = to_file(tmp_path / 'old', mode=old_mode)
    config['loggers'] = {'mikkoo': {'level': 'WARNING'}}
    configure(config)
    LOG.warning('one')
    descriptors = kept_files()
    wrong = to_file(tmp_path / 'missing' / 'new')
    wrong['handlers']['fine'] = {'class': 'logging.FileHandler', 'filename': str(tmp_path / 'fine')}
    wrong['loggers'] = {'mikkoo': {'level': 'DEBUG', 'handlers': ['fine']}, 'other': {'level': 'DEBUG'}}
    with pytest.raises(ConfigurationError) as refusal:
        configure(wrong)
    assert "Unable to configure handler 'file'" in str(refusal.value)
    assert 'No such file or directory' in str(refusal.value)
    LOG.info('still too low')
    LOG.warning('two')
    lines = (tmp_path / 'old').read_text().splitlines()
    assert [line.rpartition(' ')[2] for line in lines] == ['one', 'two']
    assert kept_files() == descriptors
    assert logging.getLogger('other').level == logging.NOTSET
    configure(to_file(tmp_path / 'third'))
    LOG.info('three')
    assert 'three' in (tmp_path / 'third').read_text()


def test_the_same_configuration_again_opens_nothing(tmp_path: Path) -> None:
    # A daemon configures as root, before it detaches, and again as its user, who may not open the file.
    configure(to_file(tmp_path / 'log'))
    descriptors = kept_files()
    (tmp_path / 'log').rename(tmp_path / 'moved')
    configure(to_file(tmp_path / 'log'))
    LOG.info('into the old file')
    assert kept_files() == descriptors
    assert not (tmp_path / 'log').exists()
    configure(to_file(tmp_path / 'other'))
    configure(to_file(tmp_path / 'log'))
    LOG.info('into the new file')
    assert (tmp_path / 'log').exists()


@pytest.mark.parametrize(
    'wrong',
    [
        {'handlers': {'x': {'class': 'logging.NoSuchHandler'}}},
        {'handlers': {'x': {'class': 'no.such.Handler'}}},
        {'handlers': {'x': {'class': 'logging.FileHandler'}}},
        {'root': {'handlers': ['nobody']}},
        {'root': {'level': 'LOUD'}},
        {'version': 2},
        {'loggers': {'mikkoo': {'filters': ['nothing']}}},
    ],
)
def test_what_dictconfig_refuses_is_a_configuration_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match='Logging: '):
        configure(wrong, foreground=True)


def test_loggers_that_exist_do_not_fall_silent(tmp_path: Path) -> None:
    logging.getLogger('rabbitpy.io')
    configure({**to_file(tmp_path / 'log'), 'disable_existing_loggers': True})
    LOG.info('ours')
    logging.getLogger('rabbitpy.io').error('theirs')
    configure({**to_file(tmp_path / 'log'), 'disable_existing_loggers': True, 'incremental': True})
    LOG.info('ours')
    logging.getLogger('rabbitpy.io').error('theirs')
    assert len((tmp_path / 'log').read_text().splitlines()) == 4


def test_libraries_are_quieter_than_the_root_and_never_louder(tmp_path: Path) -> None:
    def levels(root: str, **loggers: str) -> tuple[int, int]:
        section = to_file(tmp_path / 'log')
        section['root']['level'] = root
        configure({**section, 'loggers': {name: {'level': level} for name, level in loggers.items()}})
        found = (logging.getLogger('watchdog.observers.inotify'), logging.getLogger('rabbitpy.io'))
        return found[0].getEffectiveLevel(), found[1].getEffectiveLevel()

    assert levels('DEBUG') == (logging.WARNING, logging.WARNING)
    assert levels('ERROR') == (logging.ERROR, logging.ERROR)
    assert levels('DEBUG', watchdog='INFO') == (logging.INFO, logging.WARNING)
    assert levels('DEBUG') == (logging.WARNING, logging.WARNING), 'what was named before is forgotten'


def test_logrotate(tmp_path: Path) -> None:
    path = tmp_path / 'log'
    configure(to_file(path, mode='w'))
    LOG.info('one')
    logs.reopen()  # nothing was moved: mode 'w' does not empty the file
    path.rename(tmp_path / 'log.1')
    LOG.info('two')
    logs.reopen()
    LOG.info('three')
    assert len((tmp_path / 'log.1').read_text().splitlines()) == 2
    assert path.read_text() == 'INFO supervisor mikkoo.supervisor three\n'
    path.unlink()
    path.mkdir()
    logs.reopen()  # cannot be opened: the old file goes on
    LOG.info('four')
    assert logs.take_lost() == (0, '')
    number = kept_files()[0]
    assert b'goes on in the old file' in os.pread(os.open(f'/proc/self/fd/{number}', os.O_RDONLY), 1000, 0)


def test_a_watched_file_reopens_itself(tmp_path: Path) -> None:
    path = tmp_path / 'log'
    config = to_file(path)
    config['handlers']['file']['class'] = 'logging.handlers.WatchedFileHandler'
    configure(config)
    LOG.info('one')
    path.rename(tmp_path / 'log.1')
    logs.reopen()
    LOG.info('two')
    assert path.read_text() == 'INFO supervisor mikkoo.supervisor two\n'


def test_a_full_disk_is_counted_and_nothing_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'log').symlink_to('/dev/full')
    config = to_file(tmp_path / 'log')
    config['handlers']['second'] = {'class': 'logging.FileHandler', 'filename': str(tmp_path / 'second')}
    config['root']['handlers'].append('second')
    configure(config)
    for _ in range(10):
        LOG.error('no room for this')
    lost, reason = logs.take_lost()
    assert lost == 10
    assert 'No space left' in reason
    assert logs.take_lost() == (0, '')
    assert (tmp_path / 'second').read_text().count('no room') == 10
    assert capsys.readouterr().err == ''
    configure(to_file(tmp_path / 'third'))  # the old file cannot even be closed without an error
    assert logs.take_lost()[0] == 1
    LOG.info('goes on')
    assert 'goes on' in (tmp_path / 'third').read_text()


def test_logrotate_leaves_a_full_disk(tmp_path: Path) -> None:
    """Though what is buffered for the old file cannot be written any more."""
    (tmp_path / 'log').symlink_to('/dev/full')
    configure(to_file(tmp_path / 'log'))
    LOG.error('no room for this')
    (tmp_path / 'log').unlink()
    logs.reopen()
    LOG.error('but here')
    assert (tmp_path / 'log').read_text() == 'ERROR supervisor mikkoo.supervisor but here\n'
    assert logs.take_lost()[0] == 2  # the record, and the attempt to write it at last


def test_a_record_with_wrong_arguments_raises_nothing(tmp_path: Path) -> None:
    configure(to_file(tmp_path / 'log'))
    LOG.error('%d', 'no number')
    LOG.error('after')
    assert 'after' in (tmp_path / 'log').read_text()


@pytest.mark.parametrize('json_lines', [False, True])
def test_passwords_are_struck_out_of_messages_and_tracebacks(tmp_path: Path, json_lines: bool) -> None:
    config = to_file(tmp_path / 'log')
    if json_lines:
        config['formatters']['plain'] = {'()': 'mikkoo.common.logs.JsonFormatter'}
    configure(config)
    try:
        raise ValueError('postgresql://joe:s3cret@db/x')
    except ValueError:
        LOG.exception('cannot reach %s', 'amqp://joe:hush@mq/')
    text = (tmp_path / 'log').read_text()
    assert 'amqp://joe:***@mq/' in text
    assert 'ValueError: postgresql://joe:***@db/x' in text
    assert 's3cret' not in text.replace("raise ValueError('postgresql://joe:s3cret@db/x')", '')
    assert 'hush' not in text


@pytest.mark.parametrize('key', ['()', 'class'])
def test_json_lines(tmp_path: Path, key: str) -> None:
    config = to_file(tmp_path / 'log')
    config['formatters']['plain'] = {key: 'mikkoo.common.logs.JsonFormatter'}
    configure(config)
    LOG.warning('two\nlines "quoted" ö \udcff')
    try:
        raise KeyError('x')
    except KeyError:
        LOG.exception('failed')
    first, second = map(json.loads, (tmp_path / 'log').read_text().splitlines())
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00', first.pop('time'))
    assert first == {
        'level': 'WARNING',
        'logger': 'mikkoo.supervisor',
        'process': 'supervisor',
        'pid': os.getpid(),
        'message': 'two\nlines "quoted" ö \\udcff',
    }
    assert second['exception'].endswith("KeyError: 'x'")


def test_no_handler_in_the_foreground_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    configure({}, foreground=True)
    LOG.warning('said by the last resort')
    assert 'said by the last resort' in capsys.readouterr().err
