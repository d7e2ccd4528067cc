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
from mikkoo.worker.templates import MADE_AT, TemplateTranslator
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


PLAIN = [False] * MADE_AT  # the events of a kind that are translated the plain way


def test_what_comes_again_and_again_has_a_template() -> None:
    assert prepared(both_ways(events(MADE_AT + 2))) == [*PLAIN, True, True]


def test_each_message_has_a_sequence_number_of_its_own() -> None:
    numbers = itertools.count(2**60)
    quick = TemplateTranslator(plain(sequence=lambda: next(numbers)))
    messages = [quick(event) for event in events(MADE_AT + 3)]
    found = [message.properties['headers']['sequence'] for message in messages]
    assert prepared(messages) == [*PLAIN, True, True, True] and found == sorted(set(found))


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
    both_ways(events(MADE_AT + 2, type=key, txid=txid, extra3=extra3, extra4=extra4), kind)


def test_texts_that_hold_the_very_values_of_the_event() -> None:
    """As where a producer copies ev_time or the txid into a header."""
    given_events = events(MADE_AT + 1)
    message = plain()(given_events[MADE_AT - 1])
    own = {'created': message.properties['headers']['timestamp'], 'id': message.properties['message_id']}
    texts = orjson.dumps(own).decode()
    messages = both_ways([event._replace(extra4=texts) for event in given_events])
    assert prepared(messages) == [*PLAIN, True]


def test_a_txid_that_needs_more_bytes_has_a_template_of_its_own() -> None:
    small, large = (events(MADE_AT + 1, txid=txid) for txid in (2**31 - 1, 2**31))
    mixed = [event for pair in zip(small, large, strict=True) for event in pair]
    assert prepared(both_ways(mixed)) == [*PLAIN, *PLAIN, True, True]


def test_one_difference_in_a_text_makes_another_kind() -> None:
    others = dict.fromkeys(('type', 'extra1', 'extra2'), 'other')
    others |= dict.fromkeys(('extra3', 'extra4'), '{"type": "other"}')
    for column, text in others.items():
        messages = both_ways([*events(MADE_AT + 1), *events(1, **{column: text})])
        assert prepared(messages) == [*PLAIN, True, False]


@pytest.mark.parametrize(('left', 'kept'), [((), False), (('txid',), False), (('txid', 'sequence'), True)])
def test_what_the_event_gives_itself_has_no_template(left: tuple[str, ...], kept: bool) -> None:
    names = ('origin', 'sequence', 'timestamp', 'txid')
    headers = orjson.dumps({name: 1 for name in names if name not in left}).decode()
    given_all = '{"message_id": "m", "correlation_id": "c", "timestamp": 1}'
    messages = both_ways(events(MADE_AT + 1, extra3=given_all, extra4=headers))
    assert prepared(messages) == [*PLAIN, kept]


def test_what_a_template_is_made_of_may_happen_to_be_in_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it would give each event's own where the producer's has to stay."""
    stranger = templates._stranger
    monkeypatch.setattr(templates, '_stranger', lambda event: stranger(event)._replace(txid=77))
    given_events = events(MADE_AT + 1, txid=5, extra4='{"copied": {"txid": 77}}')
    assert prepared(both_ways(given_events)) == [*PLAIN, False]


def test_every_event_is_warned_of() -> None:
    heard: list[str] = []
    quick = TemplateTranslator(plain(on_warning=lambda kind, text: heard.append(kind)))
    for event in events(MADE_AT + 2, extra3='{"no_such": 1}'):
        quick(event)
    assert len(heard) == MADE_AT + 2


def test_every_event_that_cannot_be_translated_is_refused() -> None:
    quick = TemplateTranslator(plain(username='relay'))
    for event in events(MADE_AT + 2, extra3='{"user_id": "root"}'):
        with pytest.raises(EventError, match='user_id'):
            quick(event)
    bad = events(MADE_AT + 2, extra4='{"a": 1, "b": ')
    for event in bad:
        with pytest.raises(EventError, match='ev_extra4'):
            quick(event)


def test_every_event_that_cannot_be_encoded_is_refused() -> None:
    quick = TemplateTranslator(plain())
    for event in events(MADE_AT + 2, extra4='{"n": 18446744073709551615}'):
        message = quick(event)
        with pytest.raises(EventError, match='headers'):
            encode(message)


def test_a_body_that_is_too_large_is_refused_with_a_template_too() -> None:
    quick = TemplateTranslator(plain(largest_body=10))
    *known, last = events(MADE_AT + 2)
    assert prepared([quick(event) for event in known]) == [*PLAIN, True]
    with pytest.raises(EventError, match='ev_data'):
        quick(last._replace(data='x' * 11))


@pytest.mark.parametrize(('more', 'kept'), [(0, True), (1, False)])
def test_long_texts_are_not_kept(more: int, kept: bool) -> None:
    """Bodies do not count: they are not kept."""
    start, end, others = '{"h": "', '"}', 'a.key' + 'postgres' + 'application/json' + '{"type": "example"}'
    long = start + 'x' * (templates.LONGEST_TEXTS - len(start + end + others) + more) + end
    given_events = [event._replace(data='y' * 5000) for event in events(MADE_AT + 1, extra4=long)]
    assert prepared(both_ways(given_events)) == [*PLAIN, kept]


def kinds(count: int, times: int) -> list[Event]:
    """So many events of each of so many kinds, in turn."""
    return [events(1, type=f'kind.{number}')[0] for number in range(count)] * times


def test_as_many_have_templates_as_may() -> None:
    quick = TemplateTranslator(plain())
    for event in kinds(templates.MOST_TEMPLATES + 5, MADE_AT):
        quick(event)
    found = prepared([quick(event) for event in kinds(templates.MOST_TEMPLATES + 5, 1)])
    assert found == [True] * templates.MOST_TEMPLATES + [False] * 5


@pytest.mark.parametrize('limit', ['MOST_TEMPLATES', 'MOST_CHARACTERS'])
def test_full_templates_make_room(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    one = kinds(1, 1)[0]._replace(extra2='text/0')
    size = sum(len(text) for text in (one.type, one.extra1, one.extra2, one.extra3, one.extra4) if text)
    monkeypatch.setattr(templates, limit, 2 if limit == 'MOST_TEMPLATES' else 2 * size)
    monkeypatch.setattr(templates, 'RENEWED_AFTER', 6 * MADE_AT)
    quick = TemplateTranslator(plain())
    for turn in range(3):  # each with kinds of its own
        those = [event._replace(extra2=f'text/{turn}') for event in kinds(4, 1)]
        found = [sum(prepared([quick(event) for event in those])) for _ in range(12 * MADE_AT)]
        assert max(found) == 2


def test_templates_that_are_not_full_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, 'RENEWED_AFTER', 2 * MADE_AT)
    quick = TemplateTranslator(plain())
    for event in [*kinds(1, MADE_AT), *kinds(3 * MADE_AT, 1)]:
        quick(event)
    assert prepared([quick(kinds(1, 1)[0])]) == [True]
    assert len(quick._seen) <= 2 * MADE_AT, 'what came seldom is forgotten'


@pytest.mark.parametrize('extra4', ['{"origin": 1, "sequence": 1, "timestamp": 1, "txid": 1}', None])
def test_a_template_is_tried_once(monkeypatch: pytest.MonkeyPatch, extra4: str | None) -> None:
    """It costs as much as several events: not for each event of a kind that has none, or finds no room."""
    made: list[int] = []
    stranger = templates._stranger
    monkeypatch.setattr(templates, '_stranger', lambda event: made.append(event.id) or stranger(event))
    quick = TemplateTranslator(plain())
    if extra4 is None:
        monkeypatch.setattr(templates, 'MOST_TEMPLATES', 0)
    given_all = '{"message_id": "m", "correlation_id": "c", "timestamp": 1}'
    for event in events(5 * MADE_AT, extra3=given_all, extra4=extra4):
        quick(event)
    assert len(made) == (0 if extra4 is None else 1)


def test_a_return_finds_its_flight() -> None:
    """The properties that come back are compared with what was sent, encoded or not."""
    flights = Flights()
    given_events = events(MADE_AT + 3)
    for event, message in zip(given_events, map(TemplateTranslator(plain()), given_events), strict=True):
        flights.add(Flight(event, message, 1))
    for flight in reversed(flights.outstanding()):
        message = flight.message
        back = dict(message.properties)
        assert len(message.properties) == len(back)
        assert flights.mark_returned(312, 'NO_ROUTE', *message[:2], back, message.body)
        assert flight.returned == (312, 'NO_ROUTE')


def test_a_return_reads_no_more_messages_than_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bodies that are all alike: to read the properties of all in flight took 0.1 s for each Return."""
    flights, quick, read = Flights(), TemplateTranslator(plain()), list[Encoded]()
    for event in events(MADE_AT + 100):
        flights.add(Flight(event, quick(event._replace(data='{}')), 1))
    message = flights.outstanding()[MADE_AT].message
    back = dict(message.properties)
    reading = Encoded.read
    monkeypatch.setattr(Encoded, 'read', lambda self: read.append(self) or reading(self))
    assert flights.mark_returned(312, 'NO_ROUTE', message.exchange, message.routing_key, back, message.body)
    assert flights.outstanding()[MADE_AT].returned
    assert read == [message.properties]
