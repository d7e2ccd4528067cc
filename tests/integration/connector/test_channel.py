"""Rules K2 to K5 and D2: the channel, connections, publishing; TLS."""

from __future__ import annotations

import threading
from typing import Any

import pika
import pytest

from mikkoo.common.settings import SslOptions
from mikkoo.connector import (
    AccessRefused,
    BasicProperties,
    ChannelClosed,
    ConfigurationError,
    Connection,
    ConnectionLost,
    ConnectionParameters,
    ConnectorError,
    Credentials,
    PublishFailed,
    Unroutable,
    b64_to_dict,
)
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector
from tests.servers.proxy import Proxy
from tests.servers.waiting import until


def test_k2_every_call_and_its_result(stage: Stage) -> None:
    channel = stage.connection().channel()
    assert channel.is_open and not channel.is_closed
    declared = channel.queue_declare('q', durable=True, arguments={'x-max-length': 9}).method
    assert (declared.queue, declared.message_count, declared.consumer_count) == ('q', 0, 0)
    made = channel.queue_declare('', exclusive=True, auto_delete=True).method.queue
    assert made.startswith('amq.gen')
    channel.exchange_declare('x', 'topic', durable=True, arguments={'alternate-exchange': 'y'})
    channel.exchange_declare('h', exchange_type=pika.exchange_type.ExchangeType.headers)
    channel.exchange_declare('x', passive=True)
    channel.queue_bind('q', 'x', 'a.*')
    channel.queue_bind('q', 'x')  # by its own name, as with pika
    channel.queue_bind(queue='q', exchange='h', routing_key='', arguments={'x-match': 'all', 'a': 1})
    for key in ('a.b', 'q'):
        channel.basic_publish('x', key, b'1', mandatory=True)
    channel.basic_publish('h', '', b'2', BasicProperties(headers={'a': 1}), mandatory=True)
    assert channel.queue_declare('q', passive=True).method.message_count == 3
    channel.queue_unbind('q', 'x', 'a.*')
    with pytest.raises(Unroutable, match='NO_ROUTE'):
        channel.basic_publish('x', 'a.b', b'3', mandatory=True)
    assert channel.queue_purge('q').method.message_count == 3
    channel.basic_publish('', 'q', 'é')
    assert channel.queue_delete('q').method.message_count == 1
    channel.exchange_delete('x')
    channel.exchange_delete('h', if_unused=True)
    channel.basic_ack(1)
    channel.close()
    assert channel.is_closed


def test_k2_a_refused_call_is_told_and_the_next_one_works(stage: Stage) -> None:
    """P12: with rabbitpy a refusal ends the whole connection."""
    stage.fill('durable', durable=True)
    connection = stage.connection()
    channel = connection.channel()
    for _ in range(5):
        with pytest.raises(ChannelClosed, match='inequivalent') as caught:
            channel.queue_declare('durable')
        assert caught.value.code == 406
        with pytest.raises(ChannelClosed, match='404 NOT_FOUND'):
            channel.queue_declare('missing', passive=True)
        with pytest.raises(ChannelClosed, match="no exchange 'missing'"):
            channel.basic_publish('missing', 'k', b'x')
        with pytest.raises(ValueError, match='256 bytes'):
            channel.queue_declare('x' * 256)
        with pytest.raises(ValueError, match='property priority'):
            channel.basic_publish('', 'durable', b'x', BasicProperties(priority=300))
        channel.basic_publish('', 'durable', b'x', mandatory=True)
    assert connection.is_open
    assert stage.queued('durable') == 5


def test_k2_calls_in_callbacks_never_meet_the_wrong_body(stage: Stage) -> None:
    """P2: 177 of 293 messages had another message's body."""
    got = Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        assert channel.queue_declare(queue='answers').method.queue == 'answers'
        channel.basic_publish('', 'answers', body, pika.BasicProperties(correlation_id=properties.message_id))
        got(channel, method, properties, body)

    bodies = [b'%d' % n * 50 for n in range(300)]
    with stage.rabbitmq.connect(stage.vhost) as connection:
        channel = connection.channel()
        channel.queue_declare('q')
        for n, body in enumerate(bodies):
            channel.basic_publish('', 'q', body, pika.BasicProperties(message_id=str(n)))
    stage.thread('q', handle, prefetch=50)
    got.wait(300)
    answers = stage.take('answers', 300)
    assert [body for _, _, body in answers] == bodies
    assert [properties.correlation_id for _, properties, _ in answers] == [str(n) for n in range(300)]


def test_k2_from_any_thread(stage: Stage) -> None:
    channel = stage.connection().channel()
    channel.queue_declare('q')
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for n in range(50):
                channel.basic_publish('', 'q', b'%d' % (name * 1000 + n), mandatory=True)
                assert channel.queue_declare('q', passive=True).method.queue == 'q'
        except (AssertionError, ConnectorError, ValueError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[name]) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    bodies = [int(body) for _, _, body in stage.take('q', 250)]
    for name in range(5):
        assert [b % 1000 for b in bodies if b // 1000 == name] == list(range(50))


def test_k3_confirmed_before_it_returns(stage: Stage) -> None:
    channel = stage.connection().channel()
    channel.queue_declare('full', arguments={'x-max-length': 1, 'x-overflow': 'reject-publish'})
    channel.basic_publish('', 'full', b'1')
    assert stage.queued('full') == 1
    with pytest.raises(PublishFailed, match='nack'):
        channel.basic_publish('', 'full', b'2')
    large = bytes(range(256)) * 2000
    channel.queue_declare('q')
    channel.basic_publish('', 'q', large)
    channel.basic_publish('', 'q', bytearray(b'ba'))
    channel.basic_publish('', 'q', memoryview(b'mv'), properties=None)
    channel.basic_publish('', 'q', 'tëxt', pika.BasicProperties(headers={'a': [1, {'b': None}]}, type='t'))
    taken = stage.take('q', 4)
    assert [body for _, _, body in taken] == [large, b'ba', b'mv', 'tëxt'.encode()]
    assert (taken[3][1].headers, taken[3][1].type) == ({'a': [1, {'b': None}]}, 't')


def test_publish_many_pipelines_and_tells_what_was_not_taken(stage: Stage) -> None:
    channel = stage.connection().channel()
    channel.queue_declare('q')
    assert channel.publish_many(('', 'q', b'%d' % n) for n in range(5000)) == 5000
    assert [body for _, _, body in stage.take('q', 5000)] == [b'%d' % n for n in range(5000)]
    assert channel.publish_many([]) == 0
    channel.queue_declare('full', arguments={'x-max-length': 10, 'x-overflow': 'reject-publish'})
    with pytest.raises(PublishFailed, match='of 100: '):
        channel.publish_many(('', 'full', b'x', BasicProperties()) for _ in range(100))
    with pytest.raises(Unroutable, match=r'2 of 4: 312'):
        channel.publish_many((('', key, b'x') for key in ('q', 'no', 'q', 'no')), mandatory=True)
    with pytest.raises(ChannelClosed, match='404'):
        channel.publish_many([('', 'q', b'x'), ('missing', 'q', b'x')])

    def broken() -> Any:
        yield from (('', 'q', b'y') for _ in range(120))
        raise KeyError('mine')

    with pytest.raises(KeyError, match='mine'):
        channel.publish_many(broken())
    channel.basic_publish('', 'q', b'after')


def test_k3_a_lost_link_while_publishing(stage: Stage, proxy: Proxy) -> None:
    connection = stage.connection(proxy.port)
    channel = connection.channel()
    channel.queue_declare('q')
    proxy.stall()
    cutter = threading.Timer(0.5, proxy.cut)
    cutter.start()
    with pytest.raises(ConnectionLost):
        channel.basic_publish('', 'q', b'x')
    cutter.join()
    proxy.resume()
    assert not connection.is_open and channel.is_closed
    for call in (lambda: channel.queue_declare('q'), lambda: channel.basic_publish('', 'q', b'')):
        with pytest.raises(ConnectionLost):
            call()
    channel.close()
    connection.close()


def test_a_silent_broker_has_a_deadline(stage: Stage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    from mikkoo.common import amqp_shared

    monkeypatch.setattr(amqp_shared, 'CALL_TIMEOUT', 0.5)
    channel = stage.connection(proxy.port).channel()
    channel.queue_declare('q')
    proxy.stall()
    with pytest.raises(ConnectionLost, match=r'no answer within 0\.5 s'):
        channel.queue_declare('q')
    proxy.resume()


def test_k4_a_callbacks_channel_stays_of_use_after_close(stage: Stage) -> None:
    got = Collector()

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_publish('', 'answers', body)
        channel.close()
        got(channel, method, properties, body)

    stage.fill('answers')
    stage.fill('q', b'1', b'2', b'3')
    stage.thread('q', handle, prefetch=1)
    got.wait(3)
    stage.settled('q')
    assert [body for _, _, body in stage.take('answers', 3)] == [b'1', b'2', b'3']


def test_k5_a_connection_is_made_at_once_or_says_why(stage: Stage, proxy: Proxy) -> None:
    with stage.service().create_mq_connection() as connection:
        assert connection.is_open
        port = connection.parameters.port
    assert connection.is_closed
    proxy.refuse()
    with pytest.raises(ConnectionLost, match='cannot be reached'):
        stage.connection(proxy.port)
    with pytest.raises(AccessRefused) as caught:
        stage.service().create_mq_connection('/no such vhost')
    assert caught.value.code == 530
    with pytest.raises(ConfigurationError, match="'ghost'; known: test"):
        service = stage.service()
        service.service_name = 'ghost'
        service.create_mq_connection()
    wrong = Credentials('guest', 'top secret')
    with pytest.raises(AccessRefused, match='ACCESS_REFUSED') as caught:
        Connection(ConnectionParameters(stage.rabbitmq.host, port, stage.vhost, credentials=wrong))
    assert 'top secret' not in str(caught.value) + repr(caught.value)


def test_d2_emit(stage: Stage) -> None:
    service = stage.service()
    connection = stage.connection()
    given = {'a': [1, 'é']}
    told = service.emit_mq_message(connection, 'q', given, expiration=None)
    assert given == {'a': [1, 'é']}
    assert len(told) == 32
    assert service.emit_mq_message(connection, 'q', {'message_id': 'mine'}, '') == 'mine'
    [(_, first, body), (_, second, other)] = stage.take('q', 2)
    assert b64_to_dict(body) == {'a': [1, 'é'], 'message_id': told}
    assert b64_to_dict(other) == {'message_id': 'mine'}
    assert (first.expiration, second.expiration) == (None, '1000')
    connection.channel().exchange_declare('x', 'fanout')
    connection.channel().queue_bind('q', 'x')
    service.emit_mq_message(connection, 'k', {'a': 1}, exchange='x', expiration=60_000)
    assert stage.take('q', 1)[0][0].exchange == 'x'
    with pytest.raises(ChannelClosed):
        connection.channel().queue_declare('k', passive=True)
    stage.fill('durable', durable=True)
    service.emit_mq_message(connection, 'durable', {'a': 1}, expiration=60_000)
    assert stage.queued('durable') == 1
    for wrong in ({}, None, [1], 'x', {'a': object()}):
        with pytest.raises(ValueError):
            service.emit_mq_message(connection, 'q', wrong)  # type: ignore[arg-type]


def test_tls_as_in_the_relay(stage: Stage) -> None:
    server = stage.rabbitmq
    secure = {'ca_certs': server.ca_file, 'certfile': server.client_cert, 'keyfile': server.client_key}
    service = stage.service(server.tls_port, ssl_options=secure)
    assert isinstance(service.get_connection_params().ssl_options, SslOptions)
    got = Collector()
    service.register_consumer('a', None, 'q', got)
    assert service.run_consumers(timeout=PATIENCE)
    with service.create_mq_connection() as connection:
        connection.channel().publish_many(('', 'q', b'%d' % n * 1000) for n in range(200))
    got.wait(200)
    assert got.bodies == [b'%d' % n * 1000 for n in range(200)]
    stage.settled('q')
    with pytest.raises(AccessRefused, match='certificate was not accepted'):
        stage.service(server.tls_port, ssl_options=True).create_mq_connection()
    with pytest.raises(ConnectionLost):
        stage.service(server.tls_port).create_mq_connection()


def test_the_broker_shows_who_is_connected(stage: Stage) -> None:
    service = stage.service()
    service.register_consumer('input', None, 'q', Collector())
    assert service.run_consumers(timeout=PATIENCE)
    shown = stage.rabbitmq.ctl('list_connections', 'vhost', 'client_properties')
    [line] = [line for line in shown.splitlines() if line.startswith(stage.vhost)]
    assert '"connection_name","test.input"' in line
    assert '"product","mikkoo.connector"' in line
    until(service.check_health, PATIENCE, 'healthy')
