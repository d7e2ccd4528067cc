"""Rules R7 and R8: a callback that raises, attempts in place, the dead-letter queue."""

from __future__ import annotations

import datetime
import time
from decimal import Decimal
from typing import Any

import pytest

from mikkoo.connector import ConnectionLost, ConsumerThread
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector
from tests.servers.waiting import until


class Failing:
    """A callback that fails the given number of times for each body, and keeps who told it what."""

    def __init__(self, times: int = 1_000_000, wanted: bytes | None = None) -> None:
        self.times, self.wanted = times, wanted
        self.calls: list[tuple[float, bytes]] = []
        self.errors: list[tuple[ConsumerThread, BaseException]] = []

    def __call__(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.calls.append((time.monotonic(), body))
        if body != self.wanted and sum(1 for _, seen in self.calls if seen == body) <= self.times:
            raise RuntimeError(f'cannot handle {body!r}')

    def told(self, thread: ConsumerThread, exception: BaseException) -> None:
        self.errors.append((thread, exception))

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.calls]


@pytest.mark.parametrize('auto_ack', [True, False])
def test_r7_attempts_in_place_keep_the_order(stage: Stage, auto_ack: bool) -> None:
    callback = Failing(times=2)
    stage.fill('q', b'a', b'b', expiration='100')
    thread = stage.thread('q', callback, error_func=callback.told, auto_ack=auto_ack)
    until(lambda: len(callback.calls) == 6, PATIENCE, lambda: str(callback.bodies))
    assert callback.bodies == [b'a'] * 3 + [b'b'] * 3
    gaps = [later[0] - earlier[0] for earlier, later in zip(callback.calls, callback.calls[1:], strict=False)]
    assert gaps[0] >= 0.1
    assert gaps[1] >= 0.2
    assert [(who, str(error)) for who, error in callback.errors] == [
        (thread, f'cannot handle {body!r}') for body in (b'a', b'a', b'b', b'b')
    ]
    assert thread.is_consuming


@pytest.mark.parametrize('auto_ack', [True, False])
def test_r8_poison_goes_to_the_dead_letter_queue(stage: Stage, auto_ack: bool) -> None:
    """W7: in the original it stays in hand for ever, or comes again for ever."""
    callback = Failing(wanted=b'good')
    stage.fill('q', b'bad', b'good')
    stage.thread('q', callback, error_func=callback.told, auto_ack=auto_ack, max_attempts=2)
    until(lambda: callback.bodies == [b'bad', b'bad', b'good'], PATIENCE, lambda: str(callback.bodies))
    [(_, properties, body)] = stage.take('q.dead', 1)
    assert body == b'bad'
    assert properties.delivery_mode == 2
    assert properties.headers == {
        'x-error': "RuntimeError: cannot handle b'bad'", 'x-original-queue': 'q', 'x-attempts': 2,
    }  # fmt: skip
    stage.fill('q.dead', durable=True)
    if auto_ack:
        stage.settled('q')


def test_r8_properties_stay_but_those_that_would_harm(stage: Stage) -> None:
    headers = {
        'n': 1, 'deep': {'list': [15, True, None]}, 'raw': b'\xff',
        'when': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        'cost': Decimal('1.25'), 'CC': ['elsewhere'],
    }  # fmt: skip
    kept = {'content_type': 'x/y', 'correlation_id': 'c', 'reply_to': 'r', 'message_id': 'm', 'type': 't'}
    stage.fill('elsewhere')
    stage.fill('q', b'bad', headers=headers, expiration='60000', user_id='guest', delivery_mode=1, **kept)
    assert stage.take('elsewhere', 1)
    stage.thread('q', Failing(), max_attempts=1, dead_letter_queue='graveyard', error_func=Failing().told)
    [(_, properties, body)] = stage.take('graveyard', 1)
    assert body == b'bad'
    assert {name: getattr(properties, name) for name in kept} == kept
    assert (properties.expiration, properties.user_id, properties.delivery_mode) == (None, None, 2)
    told = dict(properties.headers)
    assert told.pop('x-original-cc') == ['elsewhere']
    assert {k: told[k] for k in told if not k.startswith('x-')} == {
        k: headers[k] for k in headers if k != 'CC'
    }
    assert stage.queued('elsewhere') == 0, 'no second copy'


@pytest.mark.parametrize(
    ('given', 'lost'),
    [({'headers': {'a': 'x' * 130_980}}, 'headers'), ({'correlation_id': b'\xff' * 200}, 'correlation_id')],
)
def test_r8_properties_that_cannot_be_sent_again_hold_up_nobody(
    stage: Stage, given: dict[str, Any], lost: str
) -> None:
    """They fill a frame with ours, or are no UTF-8: the message is dead-lettered all the same."""
    callback = Failing(wanted=b'good')
    stage.fill('q', b'bad', message_id='m', **given)
    stage.fill('q', b'good')
    stage.thread('q', callback, max_attempts=1, error_func=callback.told)
    [(_, properties, body)] = stage.take('q.dead', 1)
    assert body == b'bad'
    assert properties.headers == {
        'x-error': "RuntimeError: cannot handle b'bad'", 'x-original-queue': 'q', 'x-attempts': 1,
    }  # fmt: skip
    assert properties.message_id == ('m' if lost == 'headers' else None)
    stage.settled('q')
    assert callback.bodies == [b'bad', b'good']


def test_r8_an_error_text_that_nobody_can_write(stage: Stage) -> None:
    def handle(*given: Any) -> None:
        raise ValueError('\ud800' + 'x' * 1_000_000)

    stage.fill('q', b'bad')
    stage.thread('q', handle, max_attempts=1, error_func=Failing().told)
    [(_, properties, _)] = stage.take('q.dead', 1)
    assert properties.headers['x-error'].startswith('ValueError: \\ud800xxx')


def test_r8_if_that_fails_the_message_comes_back(stage: Stage) -> None:
    """A dead-letter queue that refuses: nothing is lost, and once it takes messages it gets this one."""
    with stage.rabbitmq.connect(stage.vhost) as connection:
        arguments = {'x-max-length': 1, 'x-overflow': 'reject-publish'}
        connection.channel().queue_declare('q.dead', durable=True, arguments=arguments)
    stage.fill('q.dead', b'full', durable=None)
    callback = Failing()
    stage.fill('q', b'bad')
    thread = stage.thread('q', callback, max_attempts=1, error_func=callback.told)
    until(lambda: len(callback.calls) >= 3, PATIENCE, 'it comes back')
    assert [body for _, _, body in stage.take('q.dead', 1)] == [b'full']
    [(_, _, body)] = stage.take('q.dead', 1)
    assert body == b'bad'
    until(lambda: thread.is_consuming, PATIENCE, 'it goes on')
    stage.settled('q')


def test_r7_settled_by_the_callback_is_not_tried_again(stage: Stage) -> None:
    seen = []

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        seen.append(body)
        channel.basic_ack(method.delivery_tag)
        raise RuntimeError('too late')

    errors = Failing()
    stage.fill('q', b'a', b'b')
    stage.thread('q', handle, error_func=errors.told)
    until(lambda: len(errors.errors) == 2, PATIENCE, 'both are told')
    stage.settled('q')
    assert seen == [b'a', b'b']


def test_r7_an_error_handler_that_fails_itself(stage: Stage) -> None:
    def handler(thread: ConsumerThread, exception: BaseException) -> None:
        raise KeyError('handler')

    callback = Failing(times=1)
    stage.fill('q', b'a')
    thread = stage.thread('q', callback, error_func=handler)
    stage.settled('q')
    assert callback.bodies == [b'a', b'a']
    assert thread.is_consuming


def test_r7_stopped_between_attempts_it_goes_back(stage: Stage) -> None:
    callback = Failing()
    stage.fill('q', b'a')
    thread = stage.thread('q', callback, error_func=callback.told, max_attempts=50)
    until(lambda: len(callback.calls) >= 5, PATIENCE, 'some attempts')
    started = time.monotonic()
    thread.join(PATIENCE)
    assert time.monotonic() - started < 3 * 1.0
    [(method, _, body)] = stage.take('q', 1)
    assert (method.redelivered, body) == (True, b'a')


def test_r8_an_exception_of_the_link_is_no_failure(stage: Stage) -> None:
    """The callback's channel is gone: not counted, not reported, the message comes again."""
    got, errors = Collector(), Failing()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got(channel, method, properties, body)
        if not method.redelivered:
            stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'test')
            until(lambda: channel.is_closed, PATIENCE, 'closed')
            channel.basic_publish('', 'answer', b'')

    stage.fill('q', b'a')
    stage.thread('q', handle, error_func=errors.told, max_attempts=1)
    got.wait(2)
    stage.settled('q')
    assert errors.errors == []


def test_a_failure_while_the_link_is_lost_is_told_but_not_buried(stage: Stage) -> None:
    got, errors = Collector(), Failing()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got(channel, method, properties, body)
        if not method.redelivered:
            stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'test')
            until(lambda: channel.is_closed, PATIENCE, 'closed')
            raise ValueError('my own')

    stage.fill('q', b'a')
    stage.thread('q', handle, error_func=errors.told, max_attempts=1)
    got.wait(2)
    stage.settled('q')
    assert [str(error) for _, error in errors.errors] == ['my own']


def test_connection_lost_elsewhere_is_the_callbacks_failure(stage: Stage) -> None:
    def handle(*given: Any) -> None:
        raise ConnectionLost('another broker')

    stage.fill('q', b'a')
    stage.thread('q', handle, error_func=Failing().told, max_attempts=1)
    [(_, properties, _)] = stage.take('q.dead', 1)
    assert properties.headers['x-error'] == 'ConnectionLost: another broker'


def test_system_exit_ends_the_consumer_and_the_message_comes_back(stage: Stage) -> None:
    def handle(*given: Any) -> None:
        raise SystemExit(3)

    errors = Failing()
    stage.fill('q', b'a')
    thread = stage.thread('q', handle, error_func=errors.told)
    until(lambda: not thread.is_alive(), PATIENCE, 'it has ended')
    assert isinstance(thread.exception, SystemExit)
    assert [who for who, _ in errors.errors] == [thread]
    assert [body for _, _, body in stage.take('q', 1)] == [b'a']
