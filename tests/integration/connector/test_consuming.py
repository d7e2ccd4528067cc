"""Rules R1 to R6, R10, R11 and K1: registering, starting, what a callback is given, acknowledgement."""

from __future__ import annotations

import threading
import time
from typing import Any

import pika
import pytest

from mikkoo.connector import AccessRefused, BasicProperties, ConnectorError, ConsumerThread, MQConnector
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.servers.waiting import until


def nothing(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    pass


class Collector:
    """A callback that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, bytes]] = []

    def __call__(self, *given: Any) -> None:
        self.calls.append(given)

    @property
    def bodies(self) -> list[bytes]:
        return [call[3] for call in self.calls]

    def wait(self, count: int) -> None:
        until(lambda: len(self.calls) >= count, PATIENCE, lambda: f'{count} messages, not {len(self.calls)}')


def test_r1_registering_does_no_io_and_replaces(stage: Stage) -> None:
    service = MQConnector({'server': 'no.such.host.invalid', 'users': stage.config()['users']}, 'test')
    first = service.register_consumer('a', '/nowhere', 'q', nothing)
    second = service.register_consumer('a', '/nowhere', 'q', nothing)
    assert service.consumers == {'a': second}
    assert first.is_stopping
    running = stage.service()
    old = running.register_consumer('a', None, 'q', nothing)
    assert running.run_consumers(timeout=PATIENCE)
    new = running.register_consumer('a', None, 'q', nothing)
    until(lambda: not old.is_alive(), PATIENCE, 'the old one has ended')
    assert running.run_consumers(timeout=PATIENCE)
    assert new.is_consuming


@pytest.mark.parametrize('kind', ['connection', 'ours', 'pika'])
def test_r2_what_a_thread_may_be_given(stage: Stage, kind: str) -> None:
    service = stage.service()
    parameters = service.get_connection_params()
    given: Any = parameters
    if kind == 'connection':
        given = stage.connection()
    if kind == 'pika':
        login = pika.PlainCredentials('guest', 'guest')
        given = pika.ConnectionParameters(parameters.host, parameters.port, stage.vhost, login)
    got = Collector()
    thread = ConsumerThread(given, 'q', got)
    thread.start()
    try:
        assert thread.wait_ready(PATIENCE)
        stage.fill('q', b'x')
        got.wait(1)
    finally:
        thread.join(PATIENCE)
    if kind == 'connection':
        assert given.is_open


@pytest.mark.parametrize(
    'arguments', [{'durable': True}, {'arguments': {'x-max-length': 5}}, {'auto_delete': True}]
)
def test_r3_a_queue_that_exists_is_consumed_as_it_is(stage: Stage, arguments: dict[str, Any]) -> None:
    with stage.rabbitmq.connect(stage.vhost) as connection:
        connection.channel().queue_declare('q', **arguments)
        got = Collector()
        stage.thread('q', got)
        stage.fill('q', b'x', durable=None)
        got.wait(1)


def test_r3_a_new_queue_is_declared_plainly(stage: Stage) -> None:
    stage.thread('plain', nothing)
    stage.fill('plain', b'x', durable=False)  # anything else would be 406


def test_r3_names_that_pamqp_would_refuse(stage: Stage) -> None:
    got = Collector()
    stage.thread('né "queue" {}', got)
    stage.fill('né "queue" {}', b'x')
    got.wait(1)


def test_r3_r4_a_user_who_may_only_read(stage: Stage) -> None:
    stage.fill('there', b'x')
    stage.rabbitmq.ctl('add_user', stage.vhost, 'p')
    try:
        stage.rabbitmq.ctl('set_permissions', '-p', stage.vhost, stage.vhost, '^$', '^$', '^there$')
        users = {'test': {'username': stage.vhost, 'password': 'p'}}
        got, errors = Collector(), Collector()
        service = stage.service(users=users)
        service.register_consumer('there', None, 'there', got)
        service.register_consumer('new', None, 'new', nothing, errors)
        with pytest.raises(AccessRefused, match='ACCESS_REFUSED') as caught:
            service.run_consumers(timeout=PATIENCE)
        assert caught.value.code == 403
        got.wait(1)
        assert service.consumers['new'].exception is caught.value
        assert errors.calls == [(service.consumers['new'], caught.value)]
        assert not service.check_health()
    finally:
        stage.rabbitmq.ctl('delete_user', stage.vhost)


def test_r4_run_waits_for_the_subscription_and_is_repeatable(stage: Stage) -> None:
    service = stage.service()
    got = Collector()
    for name in ('a', 'b', 'c'):
        service.register_consumer(name, None, f'q{name}', got)
    assert not service.check_health()
    assert service.run_consumers(['a'], timeout=PATIENCE)
    assert not service.check_health()
    assert service.consumers['b'].ident is None
    first = service.consumers['a']
    assert service.run_consumers(timeout=PATIENCE)
    assert service.consumers['a'] is first
    assert service.check_health()
    for name in ('a', 'b', 'c'):
        stage.fill(f'q{name}', b'x')
    got.wait(3)
    for _ in range(3):
        service.stop_consumers()
        assert not service.check_health()
        assert not [thread for thread in service.consumers.values() if thread.is_alive()]
        assert service.run_consumers(timeout=PATIENCE)
    stage.fill('qb', b'again')
    got.wait(4)
    with pytest.raises(ConnectorError, match="'d'; registered: a, b, c"):
        service.run_consumers(['d'])


def test_r4_run_without_a_broker_is_false_and_goes_on_trying(stage: Stage) -> None:
    service = stage.service(1)
    service.register_consumer('a', None, 'q', nothing)
    started = time.monotonic()
    assert not service.run_consumers(timeout=0.5)
    assert time.monotonic() - started < 3 * 0.5 + 1
    assert service.consumers['a'].is_alive()
    assert not service.check_health()
    started = time.monotonic()
    service.stop()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    'wrong', [{'users': {'test': {'username': 'guest', 'password': 'wrong secret'}}}, {}]
)
def test_r4_r9_what_is_hopeless_is_raised(stage: Stage, wrong: dict[str, Any]) -> None:
    service = stage.service(**wrong)
    if not wrong:
        service.vhost = '/no such vhost'
    service.register_consumer('a', None, 'q', nothing)
    with pytest.raises(AccessRefused) as caught, service:
        raise AssertionError('the context was entered')
    assert 'secret' not in str(caught.value)
    assert caught.value.code in (403, 530)
    with pytest.raises(AccessRefused):
        service.create_mq_connection()
    assert not [thread for thread in service.consumers.values() if thread.is_alive()]


def test_r5_callbacks_run_one_at_a_time_in_the_thread(stage: Stage) -> None:
    busy = threading.Lock()
    threads = set()
    got = Collector()

    def handle(*given: Any) -> None:
        assert busy.acquire(blocking=False)
        threads.add(threading.current_thread())
        time.sleep(0.001)
        busy.release()
        got(*given)

    stage.fill('q', *(b'%d' % n for n in range(100)))
    thread = stage.thread('q', handle)
    got.wait(100)
    assert threads == {thread}
    assert got.bodies == [b'%d' % n for n in range(100)]


def test_r6_auto_ack_acks_after_the_callback(stage: Stage) -> None:
    inside, go = threading.Event(), threading.Event()

    def handle(*given: Any) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    stage.fill('q', b'x')
    stage.thread('q', handle)
    assert inside.wait(PATIENCE)
    listed = stage.rabbitmq.ctl('list_queues', '--vhost', stage.vhost, 'name', 'messages_unacknowledged')
    assert 'q\t1' in listed
    go.set()
    stage.settled('q')


def test_r6_an_ack_does_not_wait_for_the_end_of_the_next_callback(stage: Stage) -> None:
    """Acks leave together while messages wait; but soon, however long the next callback takes."""
    inside, go, got = threading.Event(), threading.Event(), Collector()

    def handle(*given: Any) -> None:
        got(*given)
        if given[3] == b'4':
            inside.set()
            assert go.wait(PATIENCE)

    stage.fill('q', *(b'%d' % n for n in range(9)))
    stage.thread('q', handle, prefetch=100)
    assert inside.wait(PATIENCE)

    def acked() -> bool:
        return 'q\t5' in stage.rabbitmq.ctl('list_queues', '--vhost', stage.vhost, 'name', 'messages')

    until(acked, PATIENCE, 'those before it are acked')
    go.set()
    stage.settled('q')
    assert len(got.calls) == 9


@pytest.mark.parametrize('way', ['stop', 'exit'])
def test_r6_what_was_acked_last_is_acked_whatever_ends_the_consumer(stage: Stage, way: str) -> None:
    got = Collector()

    def handle(*given: Any) -> None:
        got(*given)
        if given[3] == b'30' and way == 'stop':
            thread.stop()
        if given[3] == b'30' and way == 'exit':
            raise SystemExit

    stage.fill('q', *(b'%d' % n for n in range(40)))
    thread = ConsumerThread(stage.service().get_connection_params(), 'q', handle, prefetch=100)
    thread.start()
    try:
        until(lambda: not thread.is_alive(), PATIENCE, 'it has ended')
        left = [body for _, _, body in stage.take('q', 9 if way == 'stop' else 10)]
        assert left == [b'%d' % n for n in range(31 if way == 'stop' else 30, 40)]
        assert stage.queued('q') == 0
    finally:
        thread.join(PATIENCE)


@pytest.mark.parametrize('auto_ack', [True, False])
def test_r6_settling_twice_is_never_sent(stage: Stage, auto_ack: bool) -> None:
    got = Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_ack(method.delivery_tag)
        channel.basic_ack(method.delivery_tag)
        channel.basic_nack(method.delivery_tag)
        channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
        channel.basic_ack(method.delivery_tag + 1000)
        channel.basic_ack()
        got(channel, method, properties, body)

    stage.fill('q', *(b'%d' % n for n in range(50)))
    thread = stage.thread('q', handle, auto_ack=auto_ack)
    got.wait(50)
    stage.settled('q')
    assert len({call[0] for call in got.calls}) == 1, 'one channel all along'
    assert thread.is_consuming
    assert got.bodies == [b'%d' % n for n in range(50)]


def test_r6_settled_later_from_another_thread(stage: Stage) -> None:
    got = Collector()
    stage.fill('q', *(b'%d' % n for n in range(20)))
    stage.thread('q', got, auto_ack=False, prefetch=5)
    for done in range(0, 20, 5):
        got.wait(done + 5)
        assert len(got.calls) == done + 5, 'no more than prefetch in hand'
        channel, method = got.calls[-1][:2]
        worker = threading.Thread(target=channel.basic_ack, args=[method.delivery_tag, True])
        worker.start()
        worker.join()
    stage.settled('q')


def test_r6_multiple_never_reaches_what_was_not_seen(stage: Stage) -> None:
    """Tag 0 means all: all that the callback was given, not what waits in the buffer."""
    got = Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got(channel, method, properties, body)
        if body == b'0':
            time.sleep(0.5)  # so that the others are prefetched
            channel.basic_ack(0, multiple=True)
        if body == b'1':
            raise SystemExit

    stage.fill('q', *(b'%d' % n for n in range(5)))
    thread = stage.thread('q', handle, auto_ack=False, prefetch=5)
    thread.join(PATIENCE)
    assert sorted(body for _, _, body in stage.take('q', 4)) == [b'1', b'2', b'3', b'4']


def test_r6_nack_and_reject(stage: Stage) -> None:
    got = Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got(channel, method, properties, body)
        if body == b'again' and not method.redelivered:
            channel.basic_nack(method.delivery_tag)
        if body == b'drop':
            channel.basic_reject(method.delivery_tag, requeue=False)

    stage.fill('q', b'again', b'drop', b'keep')
    stage.thread('q', handle)
    got.wait(4)
    stage.settled('q')
    assert sorted(got.bodies) == [b'again', b'again', b'drop', b'keep']


def test_r10_prefetch_bounds_what_is_in_hand(stage: Stage) -> None:
    got = Collector()
    stage.fill('q', *(b'%d' % n for n in range(10)))
    stage.thread('q', got, auto_ack=False, prefetch=3)
    got.wait(3)
    assert stage.queued('q') == 7
    assert len(got.calls) == 3


def test_never_acking_starves_the_consumer_and_health_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W7: starved, alive and healthy. In hand they stay; at the end they come back."""
    from mikkoo.connector import consumer

    monkeypatch.setattr(consumer, 'STARVED_AFTER', 0.5)
    service = stage.service()
    got = Collector()
    service.register_consumer('a', None, 'q', got, auto_ack=False, prefetch=2)
    stage.fill('q', b'1', b'2', b'3')
    assert service.run_consumers(timeout=PATIENCE)
    got.wait(2)
    until(lambda: not service.check_health(), PATIENCE, 'unhealthy')
    assert service.consumers['a'].is_consuming
    got.calls[0][0].basic_ack(got.calls[0][1].delivery_tag)
    got.wait(3)
    service.stop()
    assert sorted(body for _, _, body in stage.take('q', 2)) == [b'2', b'3']


def test_r11_an_idle_consumer_uses_no_cpu(stage: Stage) -> None:
    for n in range(5):
        stage.thread(f'q{n}', nothing, heartbeat=2)
    before, started = time.process_time(), time.monotonic()
    threading.Event().wait(4)
    assert (time.process_time() - before) / (time.monotonic() - started) < 0.03


def test_k1_what_a_callback_is_given(stage: Stage) -> None:
    headers = {
        's': 'é',
        'i': -5,
        'big': 2**40,
        'b': True,
        'n': None,
        'l': [1, 'x'],
        'd': {'e': 1},
        'x': b'\xff',
    }
    given = {
        'content_type': 'text/plain', 'content_encoding': 'utf-8', 'headers': headers, 'delivery_mode': 2,
        'priority': 5, 'correlation_id': 'c', 'reply_to': 'r', 'expiration': '60000', 'message_id': 'm',
        'timestamp': 1_700_000_000, 'type': 't', 'user_id': 'guest', 'app_id': 'a', 'cluster_id': 'x',
    }  # fmt: skip
    got = Collector()
    stage.fill('q', b'body', **given)
    stage.fill('q', b'')
    stage.fill('q', b'x' * 300_000)
    thread = stage.thread('q', got)
    got.wait(3)
    (_, method, properties, body), (_, _, bare, empty), (_, _, _, large) = got.calls
    assert {name: getattr(properties, name) for name in given} == given
    assert properties == BasicProperties(**given)
    assert [getattr(bare, name) for name in given] == [None] * 14
    assert (type(body), body, type(empty), empty) == (bytes, b'body', bytes, b'')
    assert large == b'x' * 300_000
    assert (method.delivery_tag, method.redelivered) == (1, False)
    assert (method.exchange, method.routing_key) == ('', 'q')
    assert method.consumer_tag
    assert thread.is_consuming


def test_several_consumers_and_several_services(stage: Stage) -> None:
    got = Collector()
    services = [stage.service() for _ in range(3)]
    for number, service in enumerate(services):
        for queue in ('x', 'y', 'z'):
            service.register_consumer(queue, None, f'{queue}{number}', got)
        assert service.run_consumers(timeout=PATIENCE)
    for number in range(3):
        for queue in ('x', 'y', 'z'):
            stage.fill(f'{queue}{number}', b'%d' % number)
    got.wait(9)
    assert sorted(got.bodies) == [b'0'] * 3 + [b'1'] * 3 + [b'2'] * 3
    services[0].stop()
    assert not services[0].check_health()
    assert services[1].check_health()
    assert services[2].check_health()


@pytest.mark.parametrize(
    'wrong',
    [
        {'queue': ''}, {'queue': None}, {'queue': 'é' * 128}, {'queue': 'x' * 251},
        {'dead_letter_queue': 'x' * 256}, {'queue': '\ud800'}, {'prefetch': 0}, {'prefetch': 65_536},
        {'max_attempts': 0},
    ],
)  # fmt: skip
def test_arguments_out_of_range(stage: Stage, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        stage.service().register_consumer(
            **{'name': 'a', 'vhost': None, 'queue': 'q', 'callback': nothing, **wrong}
        )
