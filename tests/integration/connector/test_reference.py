"""The reference text's own example, with pika's classes: what it shows works as shown."""

import base64
import json
from pathlib import Path
from typing import Any

import pika
import pika.channel
import pytest

from mikkoo.connector import ConsumerThread, MQConnector, b64_to_dict
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.servers.waiting import until


class NeonApi(MQConnector):
    """A service as the text says: a class that extends MQConnector."""

    def __init__(self, vhost: str) -> None:
        super().__init__(service_name='neon_api')
        self.vhost = vhost
        connection = self.create_mq_connection(vhost)
        self.consumers = {
            'neon_api_consumer': ConsumerThread(
                connection, queue='neon_api_input', callback_func=self.handle_api_input
            )
        }
        connection.close()
        self.seen: list[tuple[Any, ...]] = []

    # fmt: off
    def handle_api_input(self,
                         channel: pika.channel.Channel,
                         method: pika.spec.Basic.Return,
                         properties: pika.spec.BasicProperties,
                         body: bytes):
        """
            Handles input requests from MQ to Neon API

            :param channel: MQ channel object (pika.channel.Channel)
            :param method: MQ return method (pika.spec.Basic.Return)
            :param properties: MQ properties (pika.spec.BasicProperties)
            :param body: request body (bytes)
        """
        request = json.loads(base64.b64decode(body))
        data = base64.b64encode(json.dumps({'message_id': request['message_id'], 'answer': 42}).encode())

        channel.queue_declare(queue='neon_api_output')

        channel.basic_publish(exchange='',
                              routing_key='neon_api_output',
                              body=data,
                              properties=pika.BasicProperties(expiration='1000')
                              )
        self.seen.append((channel, method, properties, body))
    # fmt: on


@pytest.fixture
def documented_file(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The JSON of the text, where the text says."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv('NEON_MQ_CONFIG_PATH', raising=False)
    file = tmp_path / '.config' / 'neon' / 'mq_config.json'
    file.parent.mkdir(parents=True)
    text = """{
      "server": "localhost",
      "port": 5672,
      "users": {
        "<service_name>": {
          "username": "<username>",
          "password": "<password>"
        }
      }
    }"""
    for shown, real in (
        ('5672', str(stage.rabbitmq.port)),
        ('<service_name>', 'neon_api'),
        ('<username>', stage.vhost),
        ('<password>', 'se cret:@/%'),
        ('localhost', stage.rabbitmq.host),
    ):
        text = text.replace(shown, real)
    file.write_text(text)
    return file


def test_the_example_word_for_word(stage: Stage, documented_file: Path) -> None:
    stage.rabbitmq.ctl('add_user', stage.vhost, 'se cret:@/%')
    try:
        stage.rabbitmq.ctl('set_permissions', '-p', stage.vhost, stage.vhost, '.*', '.*', '.*')
        with NeonApi(stage.vhost) as service:
            assert service.check_health()
            request = base64.b64encode(json.dumps({'message_id': 'abc', 'text': 'how many?'}).encode())
            with stage.rabbitmq.connect(stage.vhost) as connection:
                channel = connection.channel()
                channel.queue_declare('neon_api_output')
                answers: list[tuple[Any, bytes]] = []
                channel.basic_consume(
                    'neon_api_output', lambda c, m, p, b: answers.append((p, b)), auto_ack=True
                )
                channel.basic_publish('', 'neon_api_input', request)
                until(lambda: connection.process_data_events(0.1) or answers, PATIENCE, 'the answer')
        [(properties, body)] = answers
        assert b64_to_dict(body) == {'message_id': 'abc', 'answer': 42}
        assert properties.expiration == '1000'
        [(_, method, _, seen)] = service.seen
        assert type(seen) is bytes
        assert seen == request
        assert (method.exchange, method.routing_key, method.redelivered) == ('', 'neon_api_input', False)
        stage.settled('neon_api_input')
    finally:
        stage.rabbitmq.ctl('delete_user', stage.vhost)


def test_the_way_services_in_the_field_do_it(stage: Stage) -> None:
    """Registered by keyword, acked by position, sending through emit_mq_message and a plain channel."""
    service = stage.service()
    seen: list[bytes] = []

    def handle(channel: Any, method: Any, _: Any, body: bytes) -> None:
        if not isinstance(body, bytes):
            raise TypeError(f'Invalid body received, expected: bytes string; got: {type(body)}')
        seen.append(body)
        channel.basic_ack(method.delivery_tag)

    service.register_consumer(
        name='input', vhost=stage.vhost, queue='in', callback=handle,
        on_error=service.default_error_handler, auto_ack=False,
    )  # fmt: skip
    assert service.run_consumers()
    with service.create_mq_connection(vhost=stage.vhost) as connection:
        told = service.emit_mq_message(
            connection=connection, queue='in', request_data={'a': 1}, exchange='', expiration=60_000
        )
    connection = service.create_mq_connection(vhost=stage.vhost)
    channel = connection.channel()
    channel.queue_declare(queue='in')
    channel.basic_publish(
        exchange='', routing_key='in', body=b'plain', properties=pika.BasicProperties(expiration='60000')
    )
    channel.close()
    connection.close()
    until(lambda: len(seen) == 2, PATIENCE, 'both messages')
    assert b64_to_dict(seen[0]) == {'a': 1, 'message_id': told}
    assert seen[1] == b'plain'
    stage.settled('in')


def test_a_service_restarts_its_consumers_from_its_error_handler(stage: Stage) -> None:
    """W18: in the original a hang, or `cannot join current thread`."""
    service = stage.service()
    handled: list[bytes] = []
    threads: list[ConsumerThread] = []

    def handle(channel: Any, method: Any, _: Any, body: bytes) -> None:
        if body == b'bad' and not threads:
            raise RuntimeError('once')
        handled.append(body)

    def on_error(thread: ConsumerThread, exception: BaseException) -> None:
        threads.append(thread)
        service.stop_consumers()
        assert service.run_consumers(timeout=PATIENCE)

    first = service.register_consumer('c', None, 'in', handle, on_error)
    stage.fill('in', b'bad', b'good')
    assert service.run_consumers(timeout=PATIENCE)
    until(lambda: sorted(handled) == [b'bad', b'good'], PATIENCE, lambda: str(handled))
    assert threads == [first]
    assert service.consumers['c'] is not first
    until(lambda: not first.is_alive(), PATIENCE, 'the first thread has ended')
    assert service.check_health()
    stage.settled('in')
