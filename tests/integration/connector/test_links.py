"""Rule R9 and the faults of a real broker: nothing is lost, what was in hand comes back, health is true."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mikkoo.connector import AccessRefused, ConnectionLost, ConnectorError, ConsumerThread
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector, nothing
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until


@pytest.fixture(scope='module')
def own_node() -> Iterator[RabbitServer]:
    """A broker that tests may kill."""
    with RabbitServer() as server:
        yield server


@pytest.mark.parametrize('fault', ['reset', 'fin', 'half', 'stall', 'operator'])
def test_r9_a_fault_in_a_callback_and_at_rest(stage: Stage, proxy: Proxy, fault: str) -> None:
    service = stage.service(proxy.port)
    got, inside, go = Collector(), threading.Event(), threading.Event()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        got(channel, method, properties, body)
        if body == b'in hand' and not method.redelivered:
            inside.set()
            assert go.wait(PATIENCE)

    thread = ConsumerThread(service.get_connection_params(heartbeat=1), 'q', handle)
    service.consumers['a'] = thread
    stage.fill('q', b'in hand', b'next', durable=True)
    assert service.run_consumers(timeout=PATIENCE)
    assert inside.wait(PATIENCE)
    strike(stage, proxy, fault)
    until(lambda: not service.check_health(), PATIENCE, 'health says that it is gone')
    proxy.resume()
    go.set()
    until(service.check_health, PATIENCE, 'it is back')
    got.wait(3)
    assert sorted(got.bodies) == [b'in hand', b'in hand', b'next']
    strike(stage, proxy, fault)  # idle, this time
    until(lambda: not service.check_health(), PATIENCE, 'gone again')
    proxy.resume()
    stage.fill('q', b'last', durable=True)
    got.wait(4)
    stage.settled('q')
    assert thread.exception is None


def strike(stage: Stage, proxy: Proxy, fault: str) -> None:
    if fault == 'operator':
        stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'for the test')
    elif fault == 'stall':
        proxy.stall()
    elif fault == 'half':
        proxy.half_close('client')
    else:
        proxy.cut(reset=fault == 'reset')


def test_r9_absent_at_the_start(stage: Stage, proxy: Proxy) -> None:
    proxy.refuse()
    service, got = stage.service(proxy.port), Collector()
    service.register_consumer('a', None, 'q', got)
    assert not service.run_consumers(timeout=0.2)
    with pytest.raises(ConnectionLost):
        service.create_mq_connection()
    stage.fill('q', b'x')
    proxy.accept()
    got.wait(1)
    assert service.check_health()


def test_r9_the_back_off_doubles(stage: Stage, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.refuse()
    service = stage.service(proxy.port)
    service.register_consumer('a', None, 'q', nothing)
    assert not service.run_consumers(timeout=0.1)

    def delays() -> list[float]:
        return [float(found) for found in re.findall(r'again in ([\d.]+) s', caplog.text)]

    until(lambda: len(delays()) >= 4, PATIENCE, 'four attempts')
    for full, delay in zip((0.5, 1.0, 2.0, 4.0), delays(), strict=False):
        assert full / 2 - 0.05 <= delay <= full + 0.05


def test_r9_success_resets_the_back_off(stage: Stage, proxy: Proxy) -> None:
    thread = stage.thread('q', nothing, proxy.port)
    for _ in range(4):
        started = time.monotonic()
        proxy.cut()
        until(lambda: not thread.is_consuming, PATIENCE, 'lost')
        until(lambda: thread.is_consuming, PATIENCE, 'back')
        assert time.monotonic() - started < 3 * 1.0, 'half a second, each time'


def test_r9_node_killed_and_started(own_node: RabbitServer) -> None:
    stage = Stage(own_node, '/')
    try:
        got = Collector()
        stage.fill('durable', *(b'%d' % n for n in range(5)), durable=True, delivery_mode=2)
        service = stage.service()
        service.register_consumer('a', '/', 'durable', got, auto_ack=False, prefetch=2)
        assert service.run_consumers(timeout=PATIENCE)
        got.wait(2)
        own_node.kill()
        until(lambda: not service.check_health(), PATIENCE, 'gone')
        with pytest.raises(ConnectionLost):
            got.calls[0][0].basic_ack(got.calls[0][1].delivery_tag)
        own_node.start()
        until(service.check_health, PATIENCE, 'back')
        for count in range(4, 9):
            got.wait(min(count, 7))
            got.calls[-1][0].basic_ack(0, multiple=True)
        assert sorted(set(got.bodies)) == [b'%d' % n for n in range(5)]
        stage.settled('durable')
    finally:
        stage.close()


def test_r9_a_deleted_queue_is_declared_again(stage: Stage) -> None:
    service, got = stage.service(), Collector()
    service.register_consumer('a', None, 'q', got)
    assert service.run_consumers(timeout=PATIENCE)
    for count in range(1, 4):
        stage.fill('q', b'x')
        got.wait(count)
        with stage.rabbitmq.connect(stage.vhost) as connection:
            connection.channel().queue_delete('q')

        def there() -> bool:
            return 'q\t1' in stage.rabbitmq.ctl('list_queues', '--vhost', stage.vhost, 'name', 'consumers')

        until(there, PATIENCE, 'declared and consumed again')
    assert service.check_health()


def test_r9_permissions_withdrawn_and_given_back(stage: Stage) -> None:
    stage.rabbitmq.ctl('add_user', stage.vhost, 'p')
    permit = ('set_permissions', '-p', stage.vhost, stage.vhost)
    try:
        stage.rabbitmq.ctl(*permit, '.*', '.*', '.*')
        got = Collector()
        service = stage.service(users={'test': {'username': stage.vhost, 'password': 'p'}})
        service.register_consumer('a', None, 'q', got)
        assert service.run_consumers(timeout=PATIENCE)
        stage.rabbitmq.ctl(*permit, '^$', '^$', '^$')
        stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'test')
        until(lambda: not service.check_health(), PATIENCE, 'gone')
        stage.fill('q', b'x')
        stage.rabbitmq.ctl(*permit, '.*', '.*', '.*')
        got.wait(1)
        assert service.check_health()
    finally:
        stage.rabbitmq.ctl('delete_user', stage.vhost)


def test_r9_a_password_changed_later_is_retried(stage: Stage) -> None:
    """Hopeless is only what was refused at the first connection."""
    stage.rabbitmq.ctl('add_user', stage.vhost, 'p')
    try:
        stage.rabbitmq.ctl('set_permissions', '-p', stage.vhost, stage.vhost, '.*', '.*', '.*')
        service = stage.service(users={'test': {'username': stage.vhost, 'password': 'p'}})
        service.register_consumer('a', None, 'q', nothing)
        assert service.run_consumers(timeout=PATIENCE)
        stage.rabbitmq.ctl('change_password', stage.vhost, 'other')
        stage.rabbitmq.ctl('close_all_connections', '--vhost', stage.vhost, 'test')
        with pytest.raises(AccessRefused):
            until(lambda: not service.check_health(), PATIENCE, 'gone')
            service.create_mq_connection()
        assert service.consumers['a'].is_alive()
        stage.rabbitmq.ctl('change_password', stage.vhost, 'p')
        until(service.check_health, PATIENCE, 'back')
    finally:
        stage.rabbitmq.ctl('delete_user', stage.vhost)


def test_memory_alarm_holds_a_publishing_callback_and_nothing_fails(stage: Stage) -> None:
    got, errors = Collector(), Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_publish('', 'answers', body)
        got(channel, method, properties, body)

    stage.fill('answers')
    thread = stage.thread('q', handle, error_func=errors)
    before = len(got.calls)
    stage.fill('q', b'a')
    got.wait(before + 1)
    stage.rabbitmq.ctl('set_vm_memory_high_watermark', '0')
    try:
        with stage.connection() as publisher:
            channel = publisher.channel()
            sender = threading.Thread(target=channel.basic_publish, args=['', 'q', b'b'])
            sender.start()
            sender.join(2)
            assert sender.is_alive(), 'the confirm waits for the end of the alarm'
            assert thread.is_consuming
            stage.rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', '1GB')
            sender.join(PATIENCE)
            assert not sender.is_alive()
    finally:
        stage.rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', '1GB')
    got.wait(2)
    stage.settled('q')
    assert errors.calls == []
    assert [body for _, _, body in stage.take('answers', 2)] == [b'a', b'b']


def test_an_alarm_while_a_callback_publishes_is_sat_out_and_health_says_so(stage: Stage) -> None:
    inside, go, errors = threading.Event(), threading.Event(), Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        channel.basic_publish('', 'answers', body)

    stage.fill('answers')
    stage.fill('q', b'a', b'b')
    service = stage.service()
    service.register_consumer('a', None, 'q', handle, errors)
    assert service.run_consumers(timeout=PATIENCE)
    assert inside.wait(PATIENCE)
    stage.rabbitmq.ctl('set_vm_memory_high_watermark', '0')
    try:
        go.set()
        until(lambda: not service.check_health(), PATIENCE, 'it cannot go on')
        assert 'memory' in service.consumers['a'].waits_for
        assert service.consumers['a'].is_consuming
    finally:
        stage.rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', '1GB')
    stage.settled('q')
    until(service.check_health, PATIENCE, 'healthy again')
    assert [body for _, _, body in stage.take('answers', 2)] == [b'a', b'b']
    assert errors.calls == []


def test_r11_a_callback_longer_than_two_heartbeats(stage: Stage) -> None:
    """W22: in the original the link dies, the ack fails, the thread ends."""
    got = Collector()

    def handle(*given: Any) -> None:
        threading.Event().wait(4)
        got(*given)

    stage.fill('q', b'a')
    thread = stage.thread('q', handle, heartbeat=1)
    got.wait(1)
    stage.settled('q')
    assert not got.calls[0][1].redelivered
    assert thread.is_consuming


def test_a_refused_ack_timeout_channel_is_opened_again(own_node: RabbitServer) -> None:
    """RabbitMQ closes the channel of a consumer that acks too late (consumer_timeout): all comes again."""
    own_node.ctl('eval', 'application:set_env(rabbit, consumer_timeout, 1000).')
    own_node.ctl('eval', 'application:set_env(rabbit, channel_tick_interval, 500).')
    stage = Stage(own_node, '/')
    try:
        got, errors = Collector(), Collector()

        def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            got(channel, method, properties, body)
            if not method.redelivered:
                until(lambda: channel.is_closed or not thread.is_consuming, 5, 'closed')

        stage.fill('slow', b'x')
        thread = ConsumerThread(stage.service().get_connection_params('/'), 'slow', handle, errors)
        thread.start()
        try:
            got.wait(2)
            stage.settled('slow')
        finally:
            thread.join(PATIENCE)
    finally:
        stage.close()
        own_node.ctl('eval', 'application:set_env(rabbit, consumer_timeout, 1800000).')


def test_a_queue_of_somebody_elses_is_hopeless(stage: Stage) -> None:
    with stage.rabbitmq.connect(stage.vhost) as connection:
        connection.channel().queue_declare('mine', exclusive=True)
        service = stage.service()
        service.register_consumer('a', None, 'mine', nothing)
        with pytest.raises(ConnectorError, match='RESOURCE_LOCKED'):
            service.run_consumers(timeout=PATIENCE)
