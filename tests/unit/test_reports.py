"""Reports that reach a Sentry project by HTTP, and endpoints that do not answer."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from mikkoo.common import reports
from tests.servers.sentry import SentryServer
from tests.servers.waiting import until

SLACK = 3


@pytest.fixture
def server() -> Iterator[SentryServer]:
    with SentryServer() as server:
        yield server
        reports.configure(None)
        assert server.mistakes == []


def start(dsn: str | None) -> None:
    reports.init(dsn, process='worker', worker='orders eu', queue='orders')


def fail(text: str) -> Exception:
    secret_variable = 'a local variable'
    try:
        raise RuntimeError(text + secret_variable[:0])
    except RuntimeError as error:
        return error


def test_an_exception_arrives_with_its_tags(server: SentryServer) -> None:
    start(server.dsn)
    reports.exception(fail('no luck'), batch=7)
    reports.flush()
    [event] = server.events
    [value] = event['exception']['values']
    assert (value['type'], value['value']) == ('RuntimeError', 'no luck')
    assert event['tags'] == {'process': 'worker', 'worker': 'orders eu', 'queue': 'orders'}
    assert event['contexts']['mikkoo'] == {'batch': 7}
    assert event['release'].startswith('mikkoo@')
    assert event['level'] == 'error'
    assert value['stacktrace']['frames'][-1]['function'] == 'fail'


def test_a_message_arrives_with_its_level_and_fingerprint(server: SentryServer) -> None:
    start(server.dsn)
    reports.message('event given up', 'warning', fingerprint=('orders', 'returned'), event_id=12)
    reports.flush()
    [event] = server.events
    assert event['message'] == 'event given up'
    assert event['level'] == 'warning'
    assert event['fingerprint'] == ['orders', 'returned']
    assert event['contexts']['mikkoo'] == {'event_id': 12}


def test_no_secret_leaves(server: SentryServer) -> None:
    start(server.dsn)
    secrets = ('s3cret', 't0psecret', 'hush', 'a local variable')
    reports.exception(
        fail('cannot reach postgresql://joe:s3cret@db/orders'), password='hush', nested=[{'Password': 'hush'}]
    )
    reports.message(
        'bad dsn: host=db password=t0psecret', url='amqp://u:s3cret@mq/', pair=('amqps://u:hush@x', 1)
    )
    reports.flush()
    assert len(server.events) == 2
    text = json.dumps(server.events)
    assert 'joe:***@db/orders' in text
    for secret in secrets[:3]:
        # The source line that holds the text is part of a report; in this test it is the only place.
        assert secret not in json.dumps([e.get('message') for e in server.events])
        assert secret not in json.dumps([e['contexts'] for e in server.events])
        assert secret not in json.dumps(
            [v['value'] for e in server.events for v in e.get('exception', {}).get('values', [])]
        )
    assert '"vars"' not in text


def test_log_records_are_not_reported(server: SentryServer) -> None:
    start(server.dsn)
    logging.getLogger('mikkoo.test').error('an error in the log')
    reports.flush()
    assert server.events == []


def test_the_same_report_is_sent_once_and_counted(server: SentryServer) -> None:
    start(server.dsn)
    for number in range(1000):
        reports.message('the same', number=number)
        reports.exception(fail(f'not quite the same text {number}'))
    reports.message('another')
    reports.flush()
    assert len(server.events) == 5
    held = [event for event in server.events if event.get('message') == 'reported before']
    assert [event['contexts']['mikkoo'] for event in held] == [{'held_back': 999}] * 2
    reports.flush()
    assert len(server.events) == 5


def test_the_limiter_opens_again_after_its_time() -> None:
    now = [0.0]
    limiter = reports.Limiter(lambda: now[0])
    assert limiter.admit('a') == 0
    assert limiter.admit('a') is None
    assert limiter.admit('b') == 0
    now[0] = reports.QUIET_TIME
    assert limiter.admit('a') == 1
    assert limiter.admit('a') is None
    for number in range(10 * reports.MOST_KEYS):
        limiter.admit(number)
    assert limiter.take_held() == {}


def test_without_a_dsn_nothing_happens() -> None:
    start(None)
    reports.exception(fail('x'))
    reports.message('x')
    reports.flush()


def test_a_wrong_dsn_is_logged_and_the_process_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    for wrong in ('[YOUR SENTRY DSN]', 'http://127.0.0.1/1', 'ftp://key@host/1', 'http://k@h:port/1'):
        start(wrong)
        reports.message('x')
        reports.flush()
    assert caplog.text.count('reports to Sentry are off') == 4
    reports.configure(None)


def test_the_dsn_is_changed_live(server: SentryServer) -> None:
    start(None)
    reports.message('too early')
    reports.configure(server.dsn)
    reports.message('first')
    reports.flush()
    with SentryServer() as other:
        reports.configure(other.dsn)
        reports.message('second')
        reports.flush()
        reports.configure(None)
        reports.message('too late')
        reports.flush()
        assert [event['message'] for event in other.events] == ['second']
    assert [event['message'] for event in server.events] == ['first']


def test_an_endpoint_that_hangs_blocks_nothing(server: SentryServer) -> None:
    start(server.dsn)
    server.hang()
    started = time.monotonic()
    for number in range(500):
        reports.message(f'message {number}')
    assert time.monotonic() - started < 1.0 * SLACK
    until(lambda: server.requests, what='the first request')
    started = time.monotonic()
    reports.flush(timeout=0.5)
    assert time.monotonic() - started < 0.5 * SLACK
    started = time.monotonic()
    reports.configure(None)
    assert time.monotonic() - started < 0.1 * SLACK


@pytest.mark.parametrize('status', [403, 429, 500])
def test_an_endpoint_that_refuses_is_no_harm(server: SentryServer, status: int) -> None:
    server.status = status
    start(server.dsn)
    reports.message('refused')
    reports.flush()
    assert server.requests == 1


def test_nobody_listens() -> None:
    with socket.socket() as holder:
        holder.bind(('127.0.0.1', 0))
        port = holder.getsockname()[1]
    start(f'http://key@127.0.0.1:{port}/1')
    reports.message('lost')
    reports.flush()
    reports.configure(None)


PROCESS = """
import sys
from mikkoo.common import reports
assert not [name for name in sys.modules if name.startswith('sentry_sdk')]
reports.init(sys.argv[1] or None, process='supervisor')
if not sys.argv[1]:
    assert not [name for name in sys.modules if name.startswith('sentry_sdk')]
reports.message('goodbye')
reports.flush()
"""


def run(dsn: str) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, '-W', 'error', '-c', PROCESS, dsn], check=True, timeout=60)
    return time.monotonic() - started


def test_a_process_reports_before_it_ends_and_loads_the_sdk_only_for_a_dsn(server: SentryServer) -> None:
    run('')
    run(server.dsn)
    [event] = server.events
    assert event['message'] == 'goodbye'
    assert event['tags'] == {'process': 'supervisor'}


def test_a_process_ends_in_time_though_the_endpoint_hangs(server: SentryServer) -> None:
    server.hang()
    assert run(server.dsn) < (reports.EXIT_TIMEOUT + 1.0) * SLACK


def test_the_sdk_leaves_no_thread_that_keeps_a_process(server: SentryServer) -> None:
    start(server.dsn)
    reports.message('x')
    reports.flush()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith('sentry')]
    assert ours
    assert all(thread.daemon for thread in ours)
