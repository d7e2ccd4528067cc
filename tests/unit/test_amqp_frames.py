"""Cutting the stream and making signals of it, against what pamqp writes."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, encode, header, heartbeat

from mikkoo.common import amqp_frames as frames
from mikkoo.common.amqp_fields import Fields, FrameError
from mikkoo.common.amqp_frames import OPENED, Ack, ChannelClosed, Inbox, Nack, Returned, Synced

MOST = 131_072


def feed(inbox: Inbox, *parts: Any) -> list[bool]:
    data = b''.join(pamqp.frame.marshal(part, 1) for part in parts)
    return [inbox.feed(kind, data, start, stop) for kind, _, start, stop in frames.cut(data, MOST)]


def returned(properties: commands.Basic.Properties, *bodies: bytes) -> list[Any]:
    size = sum(map(len, bodies))
    return [
        commands.Basic.Return(312, 'NO_ROUTE', 'the exchange', 'clé'),
        header.ContentHeader(0, size, properties),
        *(body.ContentBody(part) for part in bodies),
    ]


def test_confirms() -> None:
    inbox = Inbox()
    feed(inbox, commands.Basic.Ack(2**40, True), commands.Basic.Ack(1), commands.Basic.Nack(3, True, False))
    assert list(inbox.signals) == [Ack(2**40, True), Ack(1, False), Nack(3, True)]


def test_returned_message_of_several_frames() -> None:
    inbox = Inbox()
    feed(
        inbox,
        *returned(commands.Basic.Properties(content_type='text/plain'), b'ab', b'cde'),
        commands.Basic.Ack(7),
    )
    assert list(inbox.signals) == [
        Returned(312, 'NO_ROUTE', 'the exchange', 'clé', {'content_type': 'text/plain'}, b'abcde'),
        Ack(7, False),
    ]


def test_returned_message_without_a_body_or_properties() -> None:
    inbox = Inbox()
    feed(inbox, *returned(commands.Basic.Properties()))
    (message,) = inbox.signals
    assert isinstance(message, Returned)
    assert (message.properties, message.body) == ({}, b'')


def test_every_property_has_its_amqp_name() -> None:
    given = commands.Basic.Properties(
        content_type='a/b', content_encoding='gzip', headers={'k': [1, {'n': None}]}, delivery_mode=2,
        priority=9, correlation_id='c', reply_to='r', expiration='60', message_id='m',
        timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), message_type='t', user_id='u', app_id='mikkoo',
    )  # fmt: skip
    inbox = Inbox()
    feed(inbox, *returned(given, b'x'))
    (message,) = inbox.signals
    assert isinstance(message, Returned)
    assert message.properties == {
        'content_type': 'a/b', 'content_encoding': 'gzip', 'headers': {'k': [1, {'n': None}]},
        'delivery_mode': 2, 'priority': 9, 'correlation_id': 'c', 'reply_to': 'r',
        'expiration': '60', 'message_id': 'm', 'timestamp': 1767323045,
        'type': 't', 'user_id': 'u', 'app_id': 'mikkoo',
    }  # fmt: skip


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=30), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=30), values))
def test_tables_read_back_as_written(table: dict[str, Any]) -> None:
    assert Fields(encode.field_table(table)).table() == table


def test_table_values_of_other_clients() -> None:
    raw = {b's': b'\xff\xff', b'u': b'\xff\xff', b'b': b'\xff', b'B': b'\xff', b'i': b'\xff' * 4,
           b'L': b'\xff' * 8, b'f': b'\x3f\x80\0\0', b'T': b'\0' * 7 + b'\5', b'x': b'\0\0\0\2hi',
           b'D': b'\2\0\0\1\0', b'S': b'\0\0\0\2\xff\xfe'}  # fmt: skip
    assert {kind: Fields(kind + data).value() for kind, data in raw.items()} == {
        b's': -1, b'u': 65535, b'b': -1, b'B': 255, b'i': 2**32 - 1, b'L': -1, b'f': 1.0, b'T': 5,
        b'x': b'hi', b'D': Decimal('2.56'), b'S': b'\xff\xfe',
    }  # fmt: skip


def test_deep_tables() -> None:
    deep: Any = 'x'
    for _ in range(200):
        deep = [deep]
    assert Fields(encode.field_table({'deep': deep})).table() == {'deep': deep}


@given(st.lists(st.integers(1, 90), max_size=8), st.data())
def test_frames_survive_any_cutting_of_the_stream(sizes: list[int], data: st.DataObject) -> None:
    bodies = [bytes([index]) * size for index, size in enumerate(sizes)]
    stream = b''.join(pamqp.frame.marshal(body.ContentBody(part), 3) for part in bodies)
    rest, seen = b'', []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        rest, stream = rest + stream[:count], stream[count:]
        used = 0
        for kind, channel, start, stop in frames.cut(rest, MOST):
            assert (kind, channel) == (frames.BODY, 3)
            seen.append(rest[start:stop])
            used = stop + 1
        rest = rest[used:]
    assert (seen, rest) == (bodies, b'')


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'HTTP/1.1 400 Bad', 'not AMQP'),
        (b'AMQP\0\1\0\0', 'another protocol, AMQP 0.1.0.0'),
        (b'\x15\x03\x03\0\2\2\x28', 'speaks TLS'),
        (b'\1\0\1\0\2\0\1', 'over the'),
        (heartbeat.Heartbeat.marshal()[:-1] + b'\0', 'ends in 0x00'),
    ],
)
def test_garbage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(FrameError, match=reason):
        list(frames.cut(data, MOST))


def test_frames_before_garbage_are_delivered() -> None:
    seen = []
    with pytest.raises(FrameError):
        for frame in frames.cut(heartbeat.Heartbeat.marshal() + b'garbage', MOST):
            seen.append(frame)
    assert len(seen) == 1


@given(st.sampled_from([1, 2, 3, 8]), st.binary(max_size=60))
def test_any_payload_is_a_signal_or_a_frame_error(kind: int, payload: bytes) -> None:
    for begun in (False, True):
        inbox = Inbox()
        if begun:
            feed(inbox, *returned(commands.Basic.Properties(), b'abc')[:2])
        try:
            inbox.feed(kind, payload, 0, len(payload))
        except FrameError:
            pass


@given(st.binary(max_size=80))
def test_any_bytes_as_properties_are_a_dict_or_a_frame_error(data: bytes) -> None:
    try:
        assert isinstance(Fields(data).properties(), dict)
    except FrameError:
        pass


@pytest.mark.parametrize(
    'parts',
    [
        [body.ContentBody(b'x')],
        [header.ContentHeader(0, 1, commands.Basic.Properties())],
        [commands.Basic.Return(312, '', '', ''), commands.Basic.Ack(1)],
        [commands.Basic.Return(312, '', '', ''), body.ContentBody(b'x')],
        [*returned(commands.Basic.Properties(), b'ab')[:2], body.ContentBody(b'abc')],
        [commands.Channel.CloseOk()],
        [commands.Basic.Deliver('tag', 1, False, '', '')],
    ],
)
def test_what_comes_out_of_order_is_refused(parts: list[Any]) -> None:
    with pytest.raises(FrameError):
        feed(Inbox(), *parts)


def test_replies_and_sync() -> None:
    inbox = Inbox()
    inbox.asked, inbox.syncs = OPENED, 2
    feed(inbox, commands.Basic.QosOk(), commands.Channel.OpenOk(), commands.Basic.QosOk())
    assert list(inbox.replies) == [OPENED]
    assert list(inbox.signals) == [Synced(), Synced()]


@pytest.mark.parametrize('answer', [commands.Channel.OpenOk(), commands.Basic.QosOk()])
def test_each_question_has_one_answer(answer: Any) -> None:
    inbox = Inbox()
    inbox.asked, inbox.syncs = OPENED, 1
    feed(inbox, answer)
    with pytest.raises(FrameError, match='not expected'):
        feed(inbox, answer)


def test_answer_to_another_question() -> None:
    inbox = Inbox()
    inbox.asked = OPENED
    with pytest.raises(FrameError, match='not expected, class 85 method 11'):
        feed(inbox, commands.Confirm.SelectOk())


def test_headers_nested_without_end_are_refused() -> None:
    deep = b''
    for _ in range(20_000):
        deep = b'A' + len(deep).to_bytes(4, 'big') + deep
    table = b'\1k' + deep
    with pytest.raises(FrameError, match='nested too deeply'):
        Fields(b'\x20\0' + len(table).to_bytes(4, 'big') + table).properties()


def test_close_by_the_broker() -> None:
    inbox = Inbox()
    assert feed(inbox, commands.Channel.Close(404, 'NOT_FOUND', 60, 40)) == [True]
    assert list(inbox.signals) == [ChannelClosed(404, 'NOT_FOUND', 60, 40)]
    assert (inbox.owes_answer(), inbox.over) == (True, True)


def test_close_by_both_sides_at_once_is_over_with_our_answer() -> None:
    inbox = Inbox()
    inbox.closing = True
    assert feed(inbox, commands.Channel.Close(404, 'NOT_FOUND', 60, 40)) == [True]
    assert (inbox.owes_answer(), inbox.over) == (True, False)
    assert feed(inbox, commands.Channel.CloseOk()) == [True]
    assert (inbox.owes_answer(), inbox.over) == (False, True)


def test_methods_are_written_as_pamqp_writes_them() -> None:
    for ours, theirs in (
        (frames.channel_close(5), commands.Channel.Close(200, 'closed', 0, 0)),
        (frames.channel_close_ok(5), commands.Channel.CloseOk()),
        (frames.confirm_select(5), commands.Confirm.Select()),
        (frames.qos(5), commands.Basic.Qos()),
        (
            frames.exchange_declare_passive(5, 'logs'),
            commands.Exchange.Declare(exchange='logs', passive=True),
        ),
    ):
        assert ours == pamqp.frame.marshal(theirs, 5)
    assert isinstance(pamqp.frame.unmarshal(frames.channel_open(5))[2], commands.Channel.Open)


def test_exchange_names_may_be_anything_up_to_255_bytes() -> None:
    assert 'né à'.encode() in frames.exchange_declare_passive(1, 'né à')
    frames.exchange_declare_passive(1, 'x' * 255)
    with pytest.raises(ValueError, match='too long'):
        frames.exchange_declare_passive(1, 'é' * 128)
