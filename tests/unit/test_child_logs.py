"""A child's records: through the pipe to the parent's handlers, bounded, and to standard error in the end."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mikkoo.common import log_pipe, logs
from mikkoo.common.log_pipe import cut, to_message, to_record
from mikkoo.common.pipe import LARGEST_MESSAGE, Pipe
from tests.servers.waiting import until
from tests.unit.logging_state import restored

LOG = logging.getLogger('mikkoo.worker')

CHILD = """
import logging, socket, sys
from mikkoo.common import logs, metrics, reports
from mikkoo.common.pipe import Pipe
heavy = {'sentry_sdk', 'logging.config', 'logging.handlers', 'mikkoo.common.syslog'}
pipe = Pipe(socket.socket(fileno=int(sys.argv[1])))
logs.child(pipe, {'': 20, 'mikkoo': 10, 'quiet': 40}, name='worker orders')
log = logging.getLogger('mikkoo.worker')
log.debug('started with %s', sorted(heavy & set(sys.modules)))
logging.getLogger('library').debug('does not cross')
logging.getLogger('quiet').warning('does not cross')
logging.getLogger('rabbitpy.io').info('does not cross')
try:
    raise OSError('amqp://joe:s3cret@mq')
except OSError:
    log.exception('no broker at %s', 'amqp://joe:s3cret@mq')
sys.stdin.readline()
log.error('nobody reads this: amqp://joe:s3cret@mq')
log.error('nor this')
"""


@pytest.fixture(autouse=True)
def state() -> Iterator[None]:
    with restored():
        yield


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, Pipe]]:
    parent, child = map(Pipe, Pipe.pair())
    yield parent, child
    parent.close()
    child.close()


def received(pipe: Pipe) -> list[dict[str, Any]]:
    messages = []
    while batch := pipe.receive():
        messages += batch
    return messages


def test_a_child_process_logs_through_its_parent(tmp_path: Path) -> None:
    logs.configure(
        {
            'formatters': {
                'f': {'format': '%(levelname)s %(process)d %(processName)s %(name)s: %(message)s'}
            },
            'handlers': {
                'file': {'class': 'logging.FileHandler', 'filename': tmp_path / 'log', 'formatter': 'f'}
            },
            'root': {'handlers': ['file'], 'level': 'CRITICAL'},  # the child's levels are the child's
        },
        foreground=False,
    )
    mine, theirs = Pipe.pair()
    child = subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', CHILD, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    pipe = Pipe(mine)
    messages: list[dict[str, Any]] = []

    def two_arrived() -> bool:
        messages.extend(pipe.receive())
        return len(messages) >= 2

    until(two_arrived, what='two records')
    pipe.close()
    _, errors = child.communicate('go on\n', timeout=30)
    for message in messages:
        logs.handle(message)
    text = (tmp_path / 'log').read_text()
    first, second, *traceback = text.splitlines()
    assert first == f'DEBUG {child.pid} worker orders mikkoo.worker: started with []'
    assert second == f'ERROR {child.pid} worker orders mikkoo.worker: no broker at amqp://joe:***@mq'
    assert traceback[0].startswith('Traceback')
    assert traceback[-1] == 'OSError: amqp://joe:***@mq'
    assert len(messages) == 2
    assert 'ERROR    worker orders mikkoo.worker: nobody reads this: amqp://joe:***@mq' in errors
    assert 'nor this' in errors
    assert child.returncode == 0


def test_a_record_crosses_with_its_fields(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    logs.child(child, {'': logging.INFO}, name='worker x')
    LOG.info('answer %d', 42)
    [message] = received(parent)
    assert message['kind'] == 'log'
    record = to_record(message)
    assert (record.name, record.levelname, record.getMessage()) == ('mikkoo.worker', 'INFO', 'answer 42')
    assert (record.processName, record.threadName, record.module) == (
        'worker x',
        'MainThread',
        'test_child_logs',
    )
    assert record.funcName == 'test_a_record_crosses_with_its_fields'
    assert record.lineno > 0
    assert abs(record.created % 1 * 1000 - record.msecs) < 1
    assert logging.Formatter('%(relativeCreated)d %(thread)s %(filename)s').format(record)


def test_levels_change_live(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    logs.child(child, {'': logging.WARNING, 'mikkoo': logging.DEBUG, 'rabbitpy': logging.DEBUG}, name='w')
    LOG.debug('one')
    logging.getLogger('rabbitpy.io').debug('two')
    logs.set_levels({'': logging.ERROR})
    LOG.warning('three')
    logging.getLogger('rabbitpy.io').warning('four')  # quieter than others, never louder
    LOG.error('five')
    logs.set_levels({'': logging.DEBUG})
    LOG.debug('six')
    logging.getLogger('rabbitpy.io').info('seven')
    assert [message['message'] for message in received(parent)] == ['one', 'two', 'five', 'six']


def test_a_flood_leaves_room_for_beats_and_the_loss_is_told(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    logs.child(child, {'': logging.INFO}, name='w')
    for number in range(5000):
        LOG.info('record %d', number)
    for _ in range(20):
        assert child.send('beat', waits='still')
    first = received(parent)
    arrived = [message for message in first if message['kind'] == 'log']
    assert sum(message['kind'] == 'beat' for message in first) == 20
    dropped = 5000 - len(arrived)
    assert dropped > 0
    assert logs.take_lost() == (dropped, 'no room in the pipe to the supervisor')
    LOG.info('room again')
    notice, last = received(parent)
    assert (notice['level'], notice['message']) == (logging.WARNING, f'{dropped} log records were dropped')
    assert last['message'] == 'room again'
    LOG.info('and on')
    assert [message['message'] for message in received(parent)] == ['and on']


def test_an_event_of_50_kb_is_logged_whole_and_more_is_cut(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    logs.child(child, {'': logging.INFO}, name='w')
    whole = 'ö' * 25_000
    LOG.error('%s', whole)
    assert received(parent)[0]['message'] == whole
    try:
        raise ValueError('the end of the traceback' + '\x00' * 200_000 + 'the very end')
    except ValueError:
        LOG.exception('\U0001f407' * 100_000)
    [message] = received(parent)
    assert message['message'].startswith('\U0001f407' * 1000)
    assert message['message'].endswith('… [cut: 100000 characters]')
    assert message['exc_text'].endswith('the very end')
    assert message['exc_text'].startswith('[cut: ')


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.characters(), max_size=200),
    st.integers(1, 3000),
    st.text(st.characters(), max_size=200),
    st.integers(1, 3000),
)
def test_any_record_fits_into_the_pipe(text: str, times: int, trace: str, more: int) -> None:
    record = logging.LogRecord('mikkoo.worker', 40, __file__, 1, text * times, (), None)
    record.exc_text = trace * more
    message = to_message(record)
    assert len(orjson.dumps({'kind': 'log', **message})) <= LARGEST_MESSAGE
    for field, most in ('message', log_pipe.LARGEST_TEXT), ('exc_text', log_pipe.LARGEST_TRACEBACK):
        assert len(json.dumps(message[field], ensure_ascii=False).encode()) <= most


def test_a_cut_text_is_not_cut_more_than_it_must_be() -> None:
    for text in ('x' * 100_000, '\n' * 100_000, 'ö\x01' * 50_000):
        assert 55_000 < len(json.dumps(cut(text, 60_000), ensure_ascii=False).encode()) <= 60_000


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError('cannot')

    __repr__ = object.__repr__


def test_a_record_that_cannot_be_formatted_crosses_all_the_same(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    logs.child(child, {'': logging.INFO}, name='w')
    LOG.error('%d apples', 'many')
    LOG.error('%s', Unprintable())
    LOG.error('name \udcff')
    first, second, third = (message['message'] for message in received(parent))
    assert first.startswith("'%d apples' cannot be formatted: TypeError(")
    assert second == "'%s' cannot be formatted: RuntimeError('cannot')"
    assert third == 'name \\udcff'


def test_the_fill_of_a_pipe() -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near, far = Pipe(mine), Pipe(theirs)
    assert near.fill() == 0
    while near.send('beat', waits='x' * 1000):
        pass
    assert near.fill() >= 1.0
    received(far)
    assert near.fill() == 0
    near.close()
    far.close()
