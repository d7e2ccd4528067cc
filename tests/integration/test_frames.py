"""Our frames on a real RabbitMQ: what pika reads back, what the broker really refuses (docs/mapping.md)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pamqp.frame
import pytest
from pamqp import commands
from pamqp.header import ProtocolHeader

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Event, Message
from mikkoo.worker.frames import FRAME_OVERHEAD, LARGEST_DEPTH, PROPERTY_OVERHEAD, encoder
from mikkoo.worker.properties import LARGEST_EXPIRATION
from mikkoo.worker.translate import Translator
from tests.servers.rabbitmq import RabbitServer

CHANNEL = 1
TIMEOUT = 30.0  # seconds for any answer of the broker
EXCHANGE = 'обмен'
QUEUE = 'mapping'
PRECONDITION_FAILED = 406
FRAME_ERROR = 501

Answer = commands.Basic.Ack | commands.Channel.Close | commands.Connection.Close


class Publisher:
    """A bare socket that logs in, turns confirms on, and then sends ready-made bytes."""

    def __init__(self, host: str, port: int, vhost: str, frame_max: int) -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT)
        self._received = b''
        self._socket.sendall(ProtocolHeader().marshal())
        self._expect(commands.Connection.Start)
        self._call(0, commands.Connection.StartOk(response='\0guest\0guest'), commands.Connection.Tune)
        self._send(0, commands.Connection.TuneOk(1, frame_max, 0))
        self._call(0, commands.Connection.Open(vhost), commands.Connection.OpenOk)
        self._call(CHANNEL, commands.Channel.Open(), commands.Channel.OpenOk)
        self._call(CHANNEL, commands.Confirm.Select(), commands.Confirm.SelectOk)

    def publish(self, data: bytes) -> Answer:
        """Send one message's frames; what the broker says to it."""
        self._socket.sendall(data)
        answer = self._receive()
        assert isinstance(answer, Answer), answer
        return answer

    def get(self, queue: str) -> Any:
        """The properties of the next message in `queue`, as pamqp reads them."""
        self._call(CHANNEL, commands.Basic.Get(queue=queue, no_ack=True), commands.Basic.GetOk)
        return self._receive().properties

    def close(self) -> None:
        self._socket.close()

    def _call(self, channel: int, method: Any, expected: type) -> None:
        self._send(channel, method)
        self._expect(expected)

    def _send(self, channel: int, method: Any) -> None:
        self._socket.sendall(pamqp.frame.marshal(method, channel))

    def _expect(self, expected: type) -> None:
        frame = self._receive()
        assert isinstance(frame, expected), frame

    def _receive(self) -> Any:
        while len(self._received) < 7 or len(self._received) < self._size():
            data = self._socket.recv(65_536)
            assert data, 'the broker hung up'
            self._received += data
        size, _, frame = pamqp.frame.unmarshal(self._received)
        self._received = self._received[size:]
        return frame

    def _size(self) -> int:
        return int.from_bytes(self._received[3:7], 'big') + FRAME_OVERHEAD


Connect = Callable[..., Publisher]


@pytest.fixture(scope='module')
def vhost(rabbitmq: RabbitServer) -> Iterator[str]:
    """One for all these tests: rabbitmqctl is slow, and every test begins with an empty queue."""
    name = 'mapping'
    rabbitmq.add_vhost(name)
    yield name
    rabbitmq.delete_vhost(name)


@pytest.fixture
def connect(rabbitmq: RabbitServer, vhost: str) -> Iterator[Connect]:
    """`connect(frame_max)`: a logged-in Publisher in the test's virtual host."""
    made: list[Publisher] = []

    def make(frame_max: int = 131_072) -> Publisher:
        made.append(Publisher(rabbitmq.host, rabbitmq.port, vhost, frame_max))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def channel(rabbitmq: RabbitServer, vhost: str) -> Iterator[Any]:
    """pika's channel, with a topic exchange that sends every key to QUEUE."""
    connection = rabbitmq.connect(vhost)
    opened = connection.channel()
    opened.exchange_declare(EXCHANGE, 'topic')
    opened.queue_declare(QUEUE)
    opened.queue_bind(QUEUE, EXCHANGE, '#')
    opened.queue_purge(QUEUE)
    yield opened
    connection.close()


def translate(**columns: Any) -> Message:
    event = Event(
        id=1,
        time=datetime(2017, 2, 23, 6, 17, 14, 471682, UTC),
        txid=41356335556,
        retry=None,
        type=columns.get('type', 'test.routing-key'),
        data=columns.get('data', '{"foo": "bar"}'),
        extra1=columns.get('extra1', EXCHANGE),
        extra2='application/json',
        extra3=columns.get('extra3'),
        extra4=columns.get('extra4'),
    )
    translator = Translator(database='shop', queue='test', origin='mikkoo.domain.com', username='guest')
    return translator(event)


def delivered(channel: Any) -> tuple[Any, dict[str, Any], bytes]:
    """The next message of QUEUE: (method, properties by AMQP name, body)."""
    method, properties, body = channel.basic_get(QUEUE, auto_ack=True)
    assert method is not None
    return method, {name: value for name, value in vars(properties).items() if value is not None}, body


EVERY_PROPERTY = {
    'app_id': 'billing',
    'content_encoding': 'utf-8',
    'content_type': 'ключ',
    'correlation_id': 7,
    'delivery_mode': 1,
    'expiration': LARGEST_EXPIRATION,
    'message_id': 'x' * 255,
    'priority': 255,
    'reply_to': 'answers',
    'timestamp': 253_402_300_799_999,
    'type': 'a\0b',
    'user_id': 'guest',
}
EVERY_HEADER = {
    'null': None,
    'true': True,
    'false': False,
    'int': -5,
    'most': 2**63 - 1,
    'least': -(2**63),
    'float': 1e100,  # pika 1.4 reads a float as an integer, so no fraction: test_fractions_arrive
    'text': '\U0001f407\0',
    'empty': '',
    'array': [1, 'two', [None], {}],
    'object': {'a': {'b': [True]}},
    '': 'no name',
    'k' * 255: 'long name',
    'ключ': 'unicode name',
    '1 $@': 'a name that AMQP 0-9-1 would not have',
}
MESSAGES: dict[str, dict[str, Any]] = {
    'the example': {'extra3': '{"type": "example"}', 'extra4': ''},
    'every property': {'extra3': orjson.dumps(EVERY_PROPERTY).decode()},
    'every type of header': {'extra4': orjson.dumps(EVERY_HEADER).decode()},
    'no key, no body': {'type': None, 'data': None},
    'a key of 255 bytes': {'type': 'é' * 127 + 'x'},
    'deep headers': {'extra4': '{"a":' * LARGEST_DEPTH + '1' + '}' * LARGEST_DEPTH},
}


@pytest.mark.parametrize('columns', MESSAGES.values(), ids=MESSAGES.keys())
def test_pika_reads_what_the_event_says(connect: Connect, channel: Any, columns: dict[str, Any]) -> None:
    message = translate(**columns)

    answer = connect().publish(encoder(CHANNEL, 131_072)(message))

    assert isinstance(answer, commands.Basic.Ack), answer
    method, properties, body = delivered(channel)
    assert (method.exchange, method.routing_key) == (message.exchange, message.routing_key)
    assert properties == message.properties
    assert body == message.body


def test_fractions_arrive(connect: Connect, channel: Any) -> None:
    message = translate(extra4='{"tenth": 0.1, "least": [5e-324]}')
    publisher = connect()

    assert isinstance(publisher.publish(encoder(CHANNEL, 131_072)(message)), commands.Basic.Ack)

    assert publisher.get(QUEUE).headers == message.properties['headers']


@pytest.mark.parametrize('frame_max', [4096, 131_072])
@pytest.mark.parametrize('more', [-1, 0, 1, 1_000_000])
def test_bodies_around_the_frame_limit(connect: Connect, channel: Any, frame_max: int, more: int) -> None:
    message = translate(data='x' * (frame_max - FRAME_OVERHEAD + more))

    answer = connect(frame_max).publish(encoder(CHANNEL, frame_max)(message))

    assert isinstance(answer, commands.Basic.Ack), answer
    assert delivered(channel)[2] == message.body


def test_headers_that_fill_a_frame(connect: Connect, channel: Any) -> None:
    table = 4 + 1 + 1 + 5  # sizes of the table, of its key and of the text; the key
    text = 'x' * (4096 - FRAME_OVERHEAD - PROPERTY_OVERHEAD - table)
    message = Message(EXCHANGE, '', {'headers': {'h': text}}, b'')

    answer = connect(4096).publish(encoder(CHANNEL, 4096)(message))

    assert isinstance(answer, commands.Basic.Ack), answer
    assert delivered(channel)[1] == message.properties


def test_a_content_header_over_the_frame_limit_closes_the_connection(connect: Connect, channel: Any) -> None:
    message = Message(EXCHANGE, '', {'headers': {'h': 'x' * 4096}}, b'')
    with pytest.raises(EventError, match=r'^headers: '):
        encoder(CHANNEL, 4096)(message)

    answer = connect(4096).publish(encoder(CHANNEL, 131_072)(message))

    assert isinstance(answer, commands.Connection.Close)
    assert answer.reply_code == FRAME_ERROR


def refused(properties: dict[str, Any]) -> bool:
    """Whether Translator refuses an event with these properties."""
    try:
        translate(extra3=orjson.dumps(properties).decode())
    except EventError:
        return True
    return False


@pytest.mark.parametrize(
    'properties',
    [
        {'expiration': ''},
        {'expiration': '1h'},
        {'expiration': '-1'},
        {'expiration': '1.5'},
        {'expiration': str(LARGEST_EXPIRATION + 1)},
        {'delivery_mode': 0},
        {'delivery_mode': 3},
        {'user_id': 'root'},
        {'user_id': ''},
        {'headers': {'CC': 'x'}},
        {'headers': {'CC': None}},
        {'headers': {'BCC': {}}},
    ],
    ids=str,
)
def test_what_the_broker_refuses_is_refused_before(
    connect: Connect, channel: Any, properties: dict[str, Any]
) -> None:
    answer = connect().publish(encoder(CHANNEL, 131_072)(Message(EXCHANGE, '', properties, b'')))

    assert isinstance(answer, commands.Channel.Close), answer
    assert answer.reply_code == PRECONDITION_FAILED
    assert refused(properties)


@pytest.mark.parametrize(
    ('properties', 'refused_by_us'),
    [
        ({'timestamp': 2**64 - 1}, True),
        ({'expiration': '007'}, False),
        ({'headers': {'CC': [1]}}, True),  # a key that is no text is dropped without a word
        ({'headers': {'CC': [], 'BCC': ['x' * 1000]}}, False),
        ({'headers': {'x-death': 'none', 'x-delay': {}}}, False),
    ],
    ids=str,
)
def test_what_the_broker_takes(
    connect: Connect, channel: Any, properties: dict[str, Any], refused_by_us: bool
) -> None:
    answer = connect().publish(encoder(CHANNEL, 131_072)(Message(EXCHANGE, '', properties, b'')))

    assert isinstance(answer, commands.Basic.Ack), answer
    assert refused(properties) is refused_by_us


def test_more_routing_keys_reach_their_queues(connect: Connect, channel: Any) -> None:
    channel.queue_declare('copies')
    channel.queue_bind('copies', 'amq.direct', 'cc')
    channel.queue_bind('copies', 'amq.direct', 'bcc')
    message = translate(extra1='amq.direct', extra4='{"CC": ["cc"], "BCC": ["bcc"]}')

    answer = connect().publish(encoder(CHANNEL, 131_072)(message))

    assert isinstance(answer, commands.Basic.Ack)
    _, properties, _ = channel.basic_get('copies', auto_ack=True)
    assert 'BCC' not in properties.headers
    assert properties.headers['CC'] == ['cc']


def test_an_event_without_exchange_goes_to_the_queue_of_its_key(connect: Connect, channel: Any) -> None:
    answer = connect().publish(encoder(CHANNEL, 131_072)(translate(type=QUEUE, extra1=None)))

    assert isinstance(answer, commands.Basic.Ack)
    assert delivered(channel)[2] == b'{"foo": "bar"}'
