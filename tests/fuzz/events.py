"""Any row of PgQ: a message that another decoder of AMQP reads back the same, or EventError."""

from __future__ import annotations

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Event, Message
from tests.unit.test_frames import FRAME_MAX, decode, encode, same
from tests.unit.test_translate import event, translate

COLUMNS = ('type', 'data', 'extra1', 'extra2', 'extra3', 'extra4')
SEPARATOR = b'\xff'  # no octet of UTF-8
LARGEST_COMMON = 2**32  # pamqp takes more seconds than that for milliseconds
LONGEST_REASON = 1000  # characters
SEEDS = [
    b'key\xffbody\xffexchange\xfftext/plain\xff{"type": "t", "priority": 5, "headers": {"a": [1, null]}}\xff',
    b'\xff\xff\xff\xff{"timestamp": 1449600290, "expiration": "60000", "delivery_mode": 1.0}\xff{"k": 1e300}',
    b'k\xff\xff\xff\xff{"headers": "{\\"CC\\": []}", "user_id": "guest"}\xff{"n": -9223372036854775808}',
    b'k\xff\xff\xff\xff{"correlation_id": 7, "x": true}\xff{"d": {"f": [[[{"g": "\\ud83d\\udc07"}]]]}}',
]


def check(row: Event, frame_max: int = FRAME_MAX) -> bool:
    """Whether it became a message. Fails on any other exception, and on a message that is not read back."""
    try:
        message = translate(row, username='guest')
        data = encode(message, frame_max)
    except EventError as error:
        assert error.field and error.reason
        assert len(str(error)) < LONGEST_REASON
        return False
    found = decode(data, frame_max)
    assert found._replace(properties={}) == message._replace(properties={})
    assert same_properties(found, message)
    return True


def same_properties(found: Message, message: Message) -> bool:
    """Equal in type too; the timestamp only where pamqp can tell it."""
    known = message.properties['timestamp'] < LARGEST_COMMON
    left_out = () if known else ('timestamp',)
    one, other = (
        {name: value for name, value in each.properties.items() if name not in left_out}
        for each in (found, message)
    )
    return same(one, other)


def run(data: bytes) -> None:
    """For atheris."""
    parts = data.split(SEPARATOR, len(COLUMNS) - 1)
    check(row_of([part.decode('utf-8', 'surrogateescape') for part in parts]))  # noise: lone surrogates


def row_of(texts: list[str | None]) -> Event:
    return event(**{**dict.fromkeys(COLUMNS), **dict(zip(COLUMNS, texts, strict=False))})
