"""Templates against the plain way: the same bytes for every event, whatever its texts hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.errors import EventError
from mikkoo.worker import templates
from mikkoo.worker.event import Encoded, Event, Message
from mikkoo.worker.flights import Flight, Flights
from mikkoo.worker.frames import encoder
from mikkoo.worker.templates import TemplateTranslator
from mikkoo.worker.translate import DeduplicatingTranslator, Translator

WHERE: dict[str, Any] = {'database': 'shop', 'queue': 'test', 'origin': 'mikkoo.domain.com'}
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
encode = encoder(1, 131_072)


def plain(kind: type[Translator] = Translator, **options: Any) -> Translator:
    return kind(**{**WHERE, 'sequence': lambda: 4539586784185129828, **options})


def events(count: int, **columns: Any) -> list[Event]:
    """Events of the same texts, except for their bodies."""
    given_columns: dict[str, Any] = {
        'txid': 41356335556, 'retry': None, 'type': 'a.key', 'extra1': 'postgres',
        'extra2': 'application/json', 'extra3': '{"type": "example"}', 'extra4': '{"tenant": "north"}',
        **columns,
    }  # fmt: skip
    return [
        Event(id=n, time=START + timedelta(microseconds=1_234_567 * n), data=f'{{"n": {n}}}', **given_columns)
        for n in range(1, count + 1)
    ]


def frames(translate: Callable[[Event], Message], event: Event) -> tuple[Message | None, bytes | str]:
    """What is sent of an event, or why it is refused."""
    try:
        message = translate(event)
        return message, encode(message)
    except EventError as error:
        return None, str(error)


def both_ways(given_events: list[Event], kind: type[Translator] = Translator) -> list[Message | None]:
    """The messages of a TemplateTranslator, whose bytes are those of the plain way."""
    reference, quick = plain(kind), TemplateTranslator(plain(kind))
    messages = []
    for event in given_events:
        message, found = frames(quick, event)
        assert found == frames(reference, event)[1]
        messages.append(message)
    return messages


def prepared(messages: Sequence[Message | None]) -> list[bool]:
    return [message is not None and type(message.properties) is Encoded for message in messages]


def test_the_third_event_of_a_kind_has_a_template() -> None:
    assert prepared(both_ways(events(4))) == [False, False, True, True]


def test_each_message_has_a_sequence_number_of_its_own() -> None:
    numbers = itertools.count(2**60)
    quick = TemplateTranslator(plain(sequence=lambda: next(numbers)))
    messages = [quick(event) for event in events(6)]
    found = [message.properties['headers']['sequence'] for message in messages]
    assert prepared(messages)[3:] == [True] * 3 and found == sorted(set(found))


TEXTS = st.text(max_size=12) | st.sampled_from(
    ['%', '%b', '%%', '\0', '2026-01-01 12:00:01.234567+00:00', 'txid']
)
VALUES = TEXTS | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none() | st.lists(TEXTS, max_size=2)
NAMES = TEXTS | st.sampled_from(['origin', 'sequence', 'timestamp', 'txid', 'x-deduplication-header'])
HEADERS = st.dictionaries(NAMES, VALUES, max_size=4)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        'type': TEXTS, 'message_id': TEXTS, 'correlation_id': TEXTS, 'app_id': TEXTS, 'content_type': TEXTS,
        'timestamp': st.integers(0, 2**32), 'priority': st.integers(0, 9), 'headers': HEADERS,
    },
)  # fmt: skip


@given(
    key=TEXTS,
    properties=st.none() | PROPERTIES,
    headers=st.none() | HEADERS,
    txid=st.integers(0, 2**63 - 1) | st.integers(0, 2**31 + 1),
    kind=st.sampled_from([Translator, DeduplicatingTranslator]),
)
def test_whatever_the_texts_hold(
    key: str, properties: Any, headers: Any, txid: int, kind: type[Translator]
) -> None:
    extra3, extra4 = (None if own is None else orjson.dumps(own).decode() for own in (properties, headers))
    both_ways(events(4, type=key, txid=txid, extra3=extra3, extra4=extra4), kind)


def test_texts_that_hold_the_very_values_of_the_event() -> None:
    """As where a producer copies ev_time or the txid into a header."""
    first, second, third = events(3)
    message = plain()(second)
    own = {'created': message.properties['headers']['timestamp'], 'id': message.properties['message_id']}
    texts = orjson.dumps(own).decode()
    assert prepared(both_ways([event._replace(extra4=texts) for event in (first, second, third)])) == [
        False, False, True,
    ]  # fmt: skip


def test_a_txid_that_needs_more_bytes_has_a_template_of_its_own() -> None:
    small, large = events(3, txid=2**31 - 1), events(3, txid=2**31)
    mixed = [event for pair in zip(small, large, strict=True) for event in pair]
    assert prepared(both_ways(mixed)) == [False, False, False, False, True, True]


def test_one_difference_in_a_text_makes_another_kind() -> None:
    for column in ('type', 'extra1', 'extra2'):
        [other] = events(1, **{column: 'other'})
        assert prepared(both_ways([*events(3), other])) == [False, False, True, False]
    for column in ('extra3', 'extra4'):
        [other] = events(1, **{column: '{"type": "other"}'})
        assert prepared(both_ways([*events(3), other])) == [False, False, True, False]


def test_what_the_event_gives_itself_has_no_template() -> None:
    headers = orjson.dumps(dict.fromkeys(('origin', 'sequence', 'timestamp', 'txid'), 1)).decode()
    given_all = '{"message_id": "m", "correlation_id": "c", "timestamp": 1}'
    assert not any(prepared(both_ways(events(4, extra3=given_all, extra4=headers))))


def test_every_event_is_warned_of() -> None:
    heard: list[str] = []
    quick = TemplateTranslator(plain(on_warning=lambda kind, text: heard.append(kind)))
    for event in events(5, extra3='{"no_such": 1}'):
        quick(event)
    assert len(heard) == 5


def test_every_event_that_cannot_be_translated_is_refused() -> None:
    quick = TemplateTranslator(plain(username='relay'))
    for event in events(5, extra3='{"user_id": "root"}'):
        with pytest.raises(EventError, match='user_id'):
            quick(event)
    bad = events(5, extra4='{"a": 1, "b": ')
    for event in bad:
        with pytest.raises(EventError, match='ev_extra4'):
            quick(event)


def test_every_event_that_cannot_be_encoded_is_refused() -> None:
    quick = TemplateTranslator(plain())
    for event in events(5, extra4='{"n": 18446744073709551615}'):
        with pytest.raises(EventError, match='headers'):
            encode(quick(event))


def test_a_body_that_is_too_large_is_refused_with_a_template_too() -> None:
    quick = TemplateTranslator(plain(largest_body=10))
    *known, last = events(4)
    assert prepared([quick(event) for event in known]) == [False, False, True]
    with pytest.raises(EventError, match='ev_data'):
        quick(last._replace(data='x' * 11))


def test_long_texts_are_not_kept() -> None:
    long = orjson.dumps({'h': 'x' * templates.LONGEST_TEXTS}).decode()
    assert not any(prepared(both_ways(events(4, extra4=long))))


def test_templates_are_bounded_and_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, 'MOST_TEMPLATES', 2)
    monkeypatch.setattr(templates, 'RENEWED_AFTER', 10)
    quick = TemplateTranslator(plain())
    kinds = [events(1, type=f'kind.{number}')[0] for number in range(4)]

    first, again = ([quick(event) for event in kinds * 3] for _ in range(2))

    assert prepared(first) == [False] * 8 + [True, True, False, False]
    assert sum(prepared(again)) < 12 and len(quick._templates) <= 2
    assert any(quick(kinds[3]) and type(quick(kinds[3]).properties) is Encoded for _ in range(20))


def test_a_return_finds_its_flight() -> None:
    """The properties that come back are compared with what was sent, encoded or not."""
    flights = Flights()
    for event, message in zip(events(5), map(TemplateTranslator(plain()), events(5)), strict=True):
        flights.add(Flight(event, message, 1))
    for flight in reversed(flights.outstanding()):
        message = flight.message
        assert flights.mark_returned(312, 'NO_ROUTE', *message[:2], dict(message.properties), message.body)
        assert flight.returned == (312, 'NO_ROUTE')
