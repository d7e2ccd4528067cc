"""Frames: what encoder() makes, pamqp (a decoder that shares no code with it) reads back the same."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.body
import pamqp.commands
import pamqp.frame
import pamqp.header
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Message
from mikkoo.worker.frames import LARGEST_DEPTH, encoder

CHANNEL = 3
FRAME_MAX = 131_072
NAMES = {'type': 'message_type'}  # where pamqp has another name
ALL_PROPERTIES: dict[str, Any] = {
    'content_type': 'application/json',
    'content_encoding': 'utf-8',
    'headers': {'a': 1},
    'delivery_mode': 2,
    'priority': 255,
    'correlation_id': 'c',
    'reply_to': 'r',
    'expiration': '60000',
    'message_id': 'm',
    'timestamp': 1449600290,
    'type': 'example',
    'user_id': 'guest',
    'app_id': 'mikkoo',
}


def encode(message: Message, frame_max: int = FRAME_MAX) -> bytes:
    return encoder(CHANNEL, frame_max)(message)


def decode(data: bytes, frame_max: int = FRAME_MAX) -> Message:
    """The message in `data`, which has to hold its frames and nothing else, none larger than `frame_max`."""
    frames = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        assert channel == CHANNEL
        assert size <= frame_max
        frames.append(frame)
        data = data[size:]
    publish, header, *bodies = frames
    pieces = [frame.value for frame in bodies if isinstance(frame, pamqp.body.ContentBody)]
    assert isinstance(publish, pamqp.commands.Basic.Publish)
    assert isinstance(header, pamqp.header.ContentHeader)
    assert (publish.mandatory, publish.immediate) == (True, False)
    assert len(pieces) == len(bodies)
    assert all(pieces)
    assert {header.weight, header.class_id} == {0, 60}
    body = b''.join(pieces)
    assert header.body_size == len(body)
    return Message(publish.exchange, publish.routing_key, as_sent(header.properties), body)


def as_sent(decoded: Any) -> dict[str, Any]:
    """Properties by their AMQP names; pamqp makes a datetime of `timestamp`."""
    properties = {name: getattr(decoded, NAMES.get(name, name)) for name in ALL_PROPERTIES}
    if properties['timestamp'] is not None:
        properties['timestamp'] = int(properties['timestamp'].timestamp())
    return {name: value for name, value in properties.items() if value is not None}


def same(one: Any, other: Any) -> bool:
    """Equal in type too: 1 is neither True nor 1.0, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack('>d', one) == struct.pack('>d', other)
    return bool(one == other)


def carried(properties: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    message = Message(others.get('exchange', 'e'), others.get('routing_key', 'k'), properties, b'body')
    decoded = decode(encode(message))
    assert decoded._replace(properties={}) == message._replace(properties={})
    return dict(decoded.properties)


UNICODE = st.text(st.characters(exclude_categories=['Cs']))  # no lone surrogates
SHORT = UNICODE.filter(lambda text: len(text.encode()) <= 255)
LIMIT = st.sampled_from(['x' * 255, 'é' * 127 + 'x', '€' * 85, '\U0001f407' * 63 + '€', '', '\0'])
NAME = SHORT | LIMIT
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | UNICODE,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAME, inner, max_size=5),
    max_leaves=20,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(ALL_PROPERTIES, NAME),
        'headers': st.dictionaries(NAME, VALUE, max_size=8),
        'delivery_mode': st.sampled_from([1, 2]),
        'priority': st.integers(0, 255),
        # Past 2106 pamqp takes seconds for milliseconds: test_large_timestamps reads those bytes itself.
        'timestamp': st.integers(0, 2**32 - 1),
    },
)


@given(NAME, NAME, PROPERTIES, st.binary(max_size=20_000))
@example('', '', {}, b'')
@example('amq.topic', 'a.b', ALL_PROPERTIES, b'{}')
def test_whatever_is_encoded_is_decoded_the_same(
    exchange: str, routing_key: str, properties: dict[str, Any], body: bytes
) -> None:
    message = Message(exchange, routing_key, properties, body)

    decoded = decode(encode(message, 65_536), 65_536)

    assert decoded._replace(properties={}) == message._replace(properties={})
    assert same(decoded.properties, properties)


@pytest.mark.parametrize('name', ALL_PROPERTIES)
def test_each_property_alone(name: str) -> None:
    assert carried({name: ALL_PROPERTIES[name]}) == {name: ALL_PROPERTIES[name]}


def test_the_order_of_properties_does_not_matter() -> None:
    backwards = dict(reversed(ALL_PROPERTIES.items()))

    assert encode(Message('e', 'k', backwards, b'')) == encode(Message('e', 'k', ALL_PROPERTIES, b''))


@pytest.mark.parametrize(
    ('value', 'encoded'),
    [
        (True, b't\x01'),
        (False, b't\x00'),
        (None, b'V'),
        (0, b'I\0\0\0\0'),
        (-1, b'I\xff\xff\xff\xff'),
        (2**31 - 1, b'I\x7f\xff\xff\xff'),
        (-(2**31), b'I\x80\0\0\0'),
        (2**31, b'l\0\0\0\0\x80\0\0\0'),
        (2**63 - 1, b'l\x7f' + b'\xff' * 7),
        (-(2**63), b'l\x80' + b'\0' * 7),
        (1.5, b'd\x3f\xf8' + b'\0' * 6),
        ('é', b'S\0\0\0\x02\xc3\xa9'),
        ('a\0b', b'S\0\0\0\x03a\0b'),
        ([], b'A\0\0\0\0'),
        ({}, b'F\0\0\0\0'),
        ([None, [True]], b'A\0\0\0\x08VA\0\0\0\x02t\x01'),
        ({'k': {'': None}}, b'F\0\0\0\x09\x01kF\0\0\0\x02\0V'),
    ],
)
def test_header_values_on_the_wire(value: object, encoded: bytes) -> None:
    table = b'\x01h' + encoded

    assert struct.pack('>I', len(table)) + table in encode(Message('e', 'k', {'headers': {'h': value}}, b''))
    assert same(carried({'headers': {'h': value}}), {'headers': {'h': value}})


@pytest.mark.parametrize('seconds', [0, 2**32, 253_402_300_799_999, 2**64 - 1])
def test_large_timestamps(seconds: int) -> None:
    encoded = encode(Message('e', 'k', {'timestamp': seconds}, b''))

    assert encoded.endswith(struct.pack('>HQ', 1 << 6, seconds) + b'\xce')


@pytest.mark.parametrize('frame_max', [4096, FRAME_MAX])
@pytest.mark.parametrize('more', [-1, 0, 1, FRAME_MAX])
def test_bodies_around_the_frame_limit(frame_max: int, more: int) -> None:
    body = bytes(range(256)) * 1024
    body = body[: frame_max - 8 + more]

    encoded = encode(Message('e', 'k', {}, body), frame_max)

    assert decode(encoded, frame_max).body == body


@pytest.mark.parametrize(
    ('size', 'frames'), [(0, 2), (1, 3), (FRAME_MAX - 8, 3), (FRAME_MAX - 7, 4), (10_000_000, 79)]
)
def test_body_frames_are_as_few_as_can_be(size: int, frames: int) -> None:
    message = Message('e', 'k', {}, b'x' * size)

    encoded = encode(message)

    assert decode(encoded) == message
    empty = len(encode(message._replace(body=b'')))
    assert len(encoded) == empty + size + 8 * (frames - 2)


def test_frame_max_0_is_no_limit() -> None:
    message = Message('e', 'k', {}, b'x' * 200_000)

    assert encode(message, 0) == encode(message, FRAME_MAX)


def test_one_encoder_keeps_messages_apart() -> None:
    encode_both = encoder(CHANNEL, FRAME_MAX)
    messages = [Message(f'e{n % 3}', f'k{n}', {'headers': {f'h{n}': n}}, b'%d' % n) for n in range(5000)]

    for message in messages + messages[::-1]:
        assert decode(encode_both(message)) == message


def nested(levels: int) -> dict[str, Any]:
    """Headers of that many levels, arrays and objects by turns."""
    value: Any = 'core'
    for level in range(levels - 1):
        value = [value] if level % 2 else {'k': value}
    return {'k': value}


def test_headers_nest_to_the_limit() -> None:
    assert carried({'headers': nested(LARGEST_DEPTH)}) == {'headers': nested(LARGEST_DEPTH)}


def test_headers_fill_a_frame_exactly() -> None:
    table = 4 + 1 + 1 + 5  # sizes of the table, of its key and of the text; the key
    text = 'x' * (4096 - 8 - 14 - table)
    message = Message('e', 'k', {'headers': {'h': text}}, b'')

    assert same(decode(encode(message, 4096), 4096), message)
    with pytest.raises(EventError, match=r'^headers: 4,075 bytes do not fit a frame: 4,074$'):
        encode(message._replace(properties={'headers': {'h': text + 'x'}}), 4096)


@pytest.mark.parametrize(
    ('message', 'field'),
    [
        (Message('x' * 256, '', {}, b''), 'exchange'),
        (Message('\ud800', '', {}, b''), 'exchange'),
        (Message('', 'é' * 128, {}, b''), 'routing_key'),
        (Message('', '', {'type': 'x' * 256}, b''), 'type'),
        (Message('', '', {'message_id': '\ud800'}, b''), 'message_id'),
        (Message('', '', {'app_id': 7}, b''), 'app_id'),
        (Message('', '', {'app_id': None}, b''), 'app_id'),
        (Message('', '', {'app_id': ['x']}, b''), 'app_id'),
        (Message('', '', {'priority': 256}, b''), 'priority'),
        (Message('', '', {'priority': -1}, b''), 'priority'),
        (Message('', '', {'timestamp': -1}, b''), 'timestamp'),
        (Message('', '', {'timestamp': datetime.now(UTC)}, b''), 'timestamp'),
        (Message('', '', {'colour': 'red'}, b''), 'colour'),
        (Message('', '', {'headers': None}, b''), 'headers'),
        (Message('', '', {'headers': {'x' * 256: 1}}, b''), 'headers.' + 'x' * 192),
        (Message('', '', {'headers': {'\ud800': 1}}, b''), 'headers.\ud800'),
        (Message('', '', {'headers': {'a': 2**63}}, b''), 'headers.a'),
        (Message('', '', {'headers': {'a': -(2**63) - 1}}, b''), 'headers.a'),
        (Message('', '', {'headers': {'a': '\ud800'}}, b''), 'headers.a'),
        (Message('', '', {'headers': {'a': {'b': [0, {'c': Decimal(1)}]}}}, b''), 'headers.a.b[1].c'),
        (Message('', '', {'headers': {'a': {'b': [0, [2**64]]}}}, b''), 'headers.a.b[1][0]'),
        (Message('', '', {'headers': nested(LARGEST_DEPTH + 1)}, b''), 'headers' + '.k[0]' * 32),
        (Message('', '', {'headers': nested(1023)}, b''), 'headers' + '.k[0]' * 32),  # orjson reads 1024
    ],
)
def test_what_cannot_be_encoded_is_named(message: Message, field: str) -> None:
    with pytest.raises(EventError) as refusal:
        encode(message)

    assert refusal.value.field.startswith(field)
    assert refusal.value.reason
    assert len(str(refusal.value)) < 500
