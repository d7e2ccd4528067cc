"""The frames of a client that calls and consumes, against pamqp, an independent codec."""

from __future__ import annotations

import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, header

from mikkoo.common import amqp_mailbox as mail
from mikkoo.common import amqp_methods as methods
from mikkoo.common import amqp_values as values
from mikkoo.common.amqp_fields import FrameError
from mikkoo.common.amqp_frames import Ack, Nack, cut
from mikkoo.common.amqp_mailbox import Answer, Cancelled, Mailbox, Raw, Unroutable

NAMES = (
    'content_type', 'content_encoding', 'headers', 'delivery_mode', 'priority', 'correlation_id', 'reply_to',
    'expiration', 'message_id', 'timestamp', 'type', 'user_id', 'app_id', 'cluster_id',
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=['Cs']), max_size=20)
FLAT = (
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.none()
    | st.decimals('-9999', '9999', places=2)
    | st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2100, 1, 1)).map(
        lambda when: when.replace(microsecond=0, tzinfo=datetime.UTC)
    )
)  # fmt: skip
TABLES = st.dictionaries(
    TEXTS, FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(TEXTS, FLAT, max_size=2), max_size=4
)


def fed(*frames: Any, channel: int = 3) -> Mailbox:
    mailbox = Mailbox()
    data = b''.join(pamqp.frame.marshal(frame, channel) for frame in frames)
    for kind, _, start, stop in cut(data, 131_072):
        mailbox.feed(kind, data, start, stop)
    return mailbox


def delivery(properties: commands.Basic.Properties, *parts: bytes) -> list[Any]:
    return [
        commands.Basic.Deliver('ctag', 2**40, True, 'ex', 'né.y'),
        header.ContentHeader(0, sum(map(len, parts)), properties),
        *(body.ContentBody(part) for part in parts),
    ]


@pytest.mark.parametrize('parts', [(), (b'x',), (b'ab', b'cd', b'e')])
def test_a_delivery_is_put_together(parts: tuple[bytes, ...]) -> None:
    properties = commands.Basic.Properties(message_id='m', delivery_mode=2)
    mailbox = fed(*delivery(properties, *parts))
    raw = mailbox.deliveries.get_nowait()
    assert isinstance(raw, Raw)
    assert mail.delivered(raw.method) == ('ctag', 2**40, True, 'ex', 'né.y')
    assert mail.properties(raw.header) == {'message_id': 'm', 'delivery_mode': 2}
    assert raw.body == b''.join(parts)
    assert mailbox.deliveries.empty()


def test_answers_confirms_returns_and_cancels() -> None:
    mailbox = fed(
        commands.Queue.DeclareOk('q', 5, 2),
        commands.Basic.Ack(7, True),
        commands.Basic.Nack(8, False),
        commands.Basic.Return(312, 'NO_ROUTE', '', 'k'),
        header.ContentHeader(0, 1, commands.Basic.Properties()),
        body.ContentBody(b'x'),
        commands.Basic.Cancel('ctag', True),
        commands.Channel.Close(404, 'NOT_FOUND', 50, 10),
    )
    answer = mailbox.answers.get_nowait()
    assert isinstance(answer, Answer)
    assert answer.reply == methods.QUEUE_DECLARED
    assert (answer.fields.short_text(), answer.fields.number(), answer.fields.number()) == ('q', 5, 2)
    assert [mailbox.answers.get_nowait() for _ in range(4)] == [
        Ack(7, True), Nack(8, False), Unroutable(312, 'NO_ROUTE'), None,
    ]  # fmt: skip
    assert [mailbox.deliveries.get_nowait() for _ in range(2)] == [Cancelled(), None]
    assert mailbox.closed is not None
    assert mailbox.closed.code == 404
    assert mailbox.owes_answer()
    assert mailbox.over


@pytest.mark.parametrize(
    'frames',
    [
        [header.ContentHeader(0, 1, commands.Basic.Properties())],
        [body.ContentBody(b'x')],
        [commands.Basic.Deliver('c', 1, False, '', 'q'), body.ContentBody(b'x')],
        [commands.Basic.Deliver('c', 1, False, '', 'q'), commands.Basic.Ack(1, False)],
        [*delivery(commands.Basic.Properties(), b'x')[:2], body.ContentBody(b'xy')],
        [*delivery(commands.Basic.Properties(), b'x')[:2], delivery(commands.Basic.Properties(), b'x')[1]],
        [commands.Channel.CloseOk()],
    ],
)  # fmt: skip
def test_what_is_out_of_order(frames: list[Any]) -> None:
    with pytest.raises(FrameError):
        fed(*frames)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_garbage_in_a_delivery_is_an_error_of_ours(method: bytes, head: bytes) -> None:
    for read in (lambda: mail.delivered(method), lambda: mail.properties(bytes(12) + head)):
        try:
            read()
        except (FrameError, RecursionError):
            pass


@given(TABLES)
def test_headers_come_back_as_they_were(table: dict[str, Any]) -> None:
    encoded = values.properties(SimpleNamespace(headers=table))
    assert mail.properties(bytes(12) + encoded) == {'headers': table}


@given(TABLES)
def test_pamqp_reads_the_same_table(table: dict[str, Any]) -> None:
    from pamqp import decode

    assert decode.field_table(values.table(table))[1] == table


def test_every_property_and_a_message_of_several_frames() -> None:
    given: dict[str, Any] = {
        'content_type': 'a', 'content_encoding': 'b', 'headers': {'x': 1}, 'delivery_mode': 2, 'priority': 9,
        'correlation_id': 'c', 'reply_to': 'd', 'expiration': '5', 'message_id': 'e', 'timestamp': 1,
        'type': 'f', 'user_id': 'g', 'app_id': 'h', 'cluster_id': 'i',
    }  # fmt: skip
    encoded = values.properties(SimpleNamespace(**given))
    data = methods.publish(3, 4096, 'ex', 'né', True, encoded, b'x' * 10_000)
    frames = []
    while data:
        used, channel, frame = pamqp.frame.unmarshal(data)
        frames.append(frame)
        data = data[used:]
        assert channel == 3
        assert used <= 4096
    publish, head, *parts = frames
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ('ex', 'né', True)
    assert head.body_size == 10_000
    assert b''.join(part.value for part in parts) == b'x' * 10_000
    told = {name: getattr(head.properties, 'message_type' if name == 'type' else name) for name in given}
    told['timestamp'] = int(told['timestamp'].timestamp())
    assert told == given
    assert mail.properties(bytes(12) + encoded) == given


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        ({'priority': 256}, 'property priority'),
        ({'message_id': 5}, 'property message_id: must be a text'),
        ({'message_id': 'é' * 128}, '256 bytes'),
        ({'headers': {'a': {'b': object()}}}, "property headers: 'a': 'b': AMQP has no type for object"),
        ({'headers': {'a': 2**63}}, "property headers: 'a'"),
        ({'headers': {'k' * 256: 1}}, 'too long for a name'),
        ({'headers': {'a': '\ud800'}}, "property headers: 'a'"),
        ({'headers': {'a': Decimal('NaN')}}, 'no finite number'),
        ({'headers': {'a': Decimal(10**12)}}, "property headers: 'a'"),
        ({'headers': 'text'}, 'property headers'),
        ({'timestamp': -1}, 'property timestamp'),
        ({'delivery_mode': 'x'}, 'property delivery_mode'),
    ],
)
def test_what_amqp_cannot_carry_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        values.properties(SimpleNamespace(**given))


def test_tables_that_are_nested_too_deeply() -> None:
    deep: dict[str, Any] = {}
    for _ in range(1000):
        deep = {'d': deep}
    with pytest.raises(ValueError, match='nested deeper'):
        values.table(deep)
    data = b''
    for _ in range(5000):
        data = b'\1dF' + len(data).to_bytes(4) + data
    with pytest.raises(FrameError, match='nested too deeply'):
        mail.properties(bytes(12) + b'\x20\0' + len(data).to_bytes(4) + data)


def test_a_timestamp_beyond_the_calendar_is_a_number() -> None:
    data = b'\1tT' + (2**60).to_bytes(8)
    assert mail.properties(bytes(12) + b'\x20\0' + len(data).to_bytes(4) + data) == {'headers': {'t': 2**60}}


@pytest.mark.parametrize(
    ('made', 'wanted'),
    [
        (methods.queue_declare(3, 'né q', True, True, True, True, {'a': 1}), (50, 10)),
        (methods.queue_bind(3, 'q', 'x', 'k', None), commands.Queue.Bind(0, 'q', 'x', 'k')),
        (methods.queue_unbind(3, 'q', 'x', 'k', None), commands.Queue.Unbind(0, 'q', 'x', 'k')),
        (methods.queue_purge(3, 'q'), commands.Queue.Purge(0, 'q')),
        (methods.queue_delete(3, 'q', True, False), commands.Queue.Delete(0, 'q', True)),
        (methods.queue_delete(3, 'q', False, True), commands.Queue.Delete(0, 'q', False, True)),
        (
            methods.exchange_declare(3, 'x', 'topic', False, True, False, True, None),
            commands.Exchange.Declare(0, 'x', 'topic', False, True, False, True),
        ),
        (methods.exchange_delete(3, 'x', True), commands.Exchange.Delete(0, 'x', True)),
        (methods.limit(3, 500), commands.Basic.Qos(0, 500)),
        (methods.consume(3, 'q'), commands.Basic.Consume(0, 'q')),
        (methods.ack(3, 2**40, True), commands.Basic.Ack(2**40, True)),
        (methods.nack(3, 5, False, True), commands.Basic.Nack(5, False, True)),
        (methods.nack(3, 5, True, False), commands.Basic.Nack(5, True, False)),
    ],
)  # fmt: skip
def test_requests_are_what_pamqp_writes(made: bytes, wanted: Any) -> None:
    if isinstance(wanted, tuple):  # a name that pamqp refuses
        assert made[7:11] == wanted[0].to_bytes(2) + wanted[1].to_bytes(2)
        return
    assert made == pamqp.frame.marshal(wanted, 3)
