"""The event-to-message mapping: the reference text's example, every rule, and no text that breaks it."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Event, Message
from mikkoo.worker.frames import encoder
from mikkoo.worker.identity import NAMESPACE
from mikkoo.worker.translate import HEADERS_NOT_OBJECT, UNKNOWN_PROPERTY, DeduplicatingTranslator, Translator

EV_TIME = datetime(2017, 2, 23, 6, 17, 14, 471682, tzinfo=UTC)
EAST = timezone(timedelta(hours=2))
TXID = 41356335556
AUTOMATIC_HEADERS = {'origin', 'sequence', 'timestamp', 'txid'}
WHERE: dict[str, Any] = {'database': 'shop', 'queue': 'test', 'origin': 'mikkoo.domain.com'}


def event(**columns: Any) -> Event:
    """The reference text's example event, with other columns where the test gives them."""
    example: dict[str, Any] = {
        'id': 4,
        'time': EV_TIME,
        'txid': TXID,
        'retry': None,
        'type': 'test.routing-key',
        'data': '{"foo": "bar"}',
        'extra1': 'postgres',
        'extra2': 'application/json',
        'extra3': '{"type": "example"}',
        'extra4': '',
    }
    return Event(**{**example, **columns})


def translate(given_event: Event, **options: Any) -> Message:
    return Translator(**{**WHERE, 'sequence': lambda: 4539586784185129828, **options})(given_event)


def own_headers(message: Message) -> dict[str, Any]:
    headers = message.properties['headers']
    return {name: value for name, value in headers.items() if name not in AUTOMATIC_HEADERS}


def test_example_of_the_reference_text() -> None:
    message = Translator(**WHERE)(event())

    properties = dict(message.properties)
    headers = dict(properties.pop('headers'))
    correlation_id = properties.pop('correlation_id')
    assert message[:2] == ('postgres', 'test.routing-key')
    assert message.body == b'{"foo": "bar"}'
    assert uuid.UUID(correlation_id).version == 5
    assert properties.pop('message_id') == correlation_id
    assert properties == {
        'app_id': 'mikkoo',
        'content_type': 'application/json',
        'delivery_mode': 2,
        'timestamp': int(EV_TIME.timestamp()),
        'type': 'example',
    }
    assert 2**53 < headers.pop('sequence') < 2**63
    assert headers == {
        'origin': 'mikkoo.domain.com',
        'timestamp': '2017-02-23 06:17:14.471682+00:00',
        'txid': 41356335556,
    }


@pytest.mark.parametrize(
    ('columns', 'exchange', 'routing_key', 'body'),
    [
        ({'type': None, 'data': None, 'extra1': None}, '', '', b''),
        ({'type': '', 'data': '', 'extra1': ''}, '', '', b''),
        ({'type': 'ключ', 'data': '\U0001f407', 'extra1': 'обмен'}, 'обмен', 'ключ', b'\xf0\x9f\x90\x87'),
        ({'type': 'é' * 127, 'extra1': 'x' * 255}, 'x' * 255, 'é' * 127, b'{"foo": "bar"}'),
    ],
)
def test_columns_become_exchange_routing_key_and_body(
    columns: dict[str, Any], exchange: str, routing_key: str, body: bytes
) -> None:
    message = translate(event(**columns))

    assert (message.exchange, message.routing_key, message.body) == (exchange, routing_key, body)


@pytest.mark.parametrize(
    ('extra3', 'name', 'value'),
    [
        ('{"app_id": "billing"}', 'app_id', 'billing'),
        ('{"content_encoding": "gzip"}', 'content_encoding', 'gzip'),
        ('{"content_type": "text/csv"}', 'content_type', 'text/csv'),
        ('{"correlation_id": "order-7"}', 'correlation_id', 'order-7'),
        ('{"correlation_id": 7}', 'correlation_id', '7'),
        ('{"correlation_id": -18446744073709}', 'correlation_id', '-18446744073709'),
        ('{"delivery_mode": 1}', 'delivery_mode', 1),
        ('{"delivery_mode": "1"}', 'delivery_mode', 1),
        ('{"delivery_mode": 1.0}', 'delivery_mode', 1),
        ('{"expiration": "60000"}', 'expiration', '60000'),
        ('{"expiration": 60000}', 'expiration', '60000'),
        ('{"expiration": 0}', 'expiration', '0'),
        ('{"expiration": 315360000000}', 'expiration', '315360000000'),
        ('{"expiration": "007"}', 'expiration', '7'),
        ('{"message_id": "m-1"}', 'message_id', 'm-1'),
        ('{"priority": 0}', 'priority', 0),
        ('{"priority": 255}', 'priority', 255),
        ('{"reply_to": "answers"}', 'reply_to', 'answers'),
        ('{"timestamp": 1449600290}', 'timestamp', 1449600290),
        ('{"timestamp": "1449600290"}', 'timestamp', 1449600290),
        ('{"timestamp": 253402300799999}', 'timestamp', 253402300799999),
        ('{"type": ""}', 'type', ''),
        ('{"type": "a", "type": "b"}', 'type', 'b'),
        ('{"user_id": "guest"}', 'user_id', 'guest'),
        ('{"correlation_id": "%s"}' % ('é' * 127), 'correlation_id', 'é' * 127),
    ],
)
def test_properties_of_ev_extra3_win(extra3: str, name: str, value: object) -> None:
    properties = translate(event(extra3=extra3), username='guest').properties

    assert properties[name] == value
    assert type(properties[name]) is type(value)


@pytest.mark.parametrize('extra3', [None, '', '{}', '{"message_id": null}', '{"message_id": ""}'])
def test_without_properties_the_automatic_ones_stand(extra3: str | None) -> None:
    properties = translate(event(extra2='', extra3=extra3)).properties

    name = f'shop\ntest\n4\n{1487830634471682}'
    event_id = str(uuid.uuid5(NAMESPACE, name))
    assert {key: value for key, value in properties.items() if key != 'headers'} == {
        'app_id': 'mikkoo',
        'correlation_id': event_id,
        'delivery_mode': 2,
        'message_id': event_id,
        'timestamp': 1487830634,
    }


def test_message_id_and_correlation_id_are_separate() -> None:
    alone = translate(event(extra3='{"message_id": "m"}')).properties
    other = translate(event(extra3='{"correlation_id": "c"}')).properties

    assert (alone['message_id'], other['correlation_id']) == ('m', 'c')
    assert alone['correlation_id'] == other['message_id'] == translate(event()).properties['message_id']


def test_null_is_not_given() -> None:
    names = ['app_id', 'content_type', 'delivery_mode', 'headers', 'priority', 'timestamp', 'nonsense']
    extra3 = orjson.dumps(dict.fromkeys(names)).decode()

    assert translate(event(extra3=extra3)) == translate(event(extra3=None))


def test_persistent_false_sets_no_delivery_mode() -> None:
    assert 'delivery_mode' not in translate(event(), persistent=False).properties
    given_mode = translate(event(extra3='{"delivery_mode": 2}'), persistent=False)
    assert given_mode.properties['delivery_mode'] == 2


HEADERS = {
    'text': 'ключ\u0000"',
    'int': -1,
    'long': 2**63 - 1,
    'least': -(2**63),
    'float': 0.25,
    'yes': True,
    'null': None,
    'array': [1, 'two', [3.5], {}],
    'object': {'a': {'b': []}},
    '': 'empty name',
    'k' * 255: 'long name',
}


@pytest.mark.parametrize('source', ['extra4', 'object in extra3', 'text in extra3'])
def test_headers_travel(source: str) -> None:
    text = orjson.dumps(HEADERS).decode()
    columns = {
        'extra4': {'extra4': text},
        'object in extra3': {'extra3': f'{{"headers": {text}}}', 'extra4': '{"replaced": true}'},
        'text in extra3': {'extra3': orjson.dumps({'headers': text}).decode(), 'extra4': 'not read'},
    }[source]

    message = translate(event(**columns))

    assert own_headers(message) == HEADERS
    assert message.properties['headers'].keys() >= AUTOMATIC_HEADERS
    assert encoder(1, 131_072)(message)


def test_own_headers_win_over_the_four() -> None:
    own = {'origin': None, 'sequence': 'mine', 'timestamp': 0, 'txid': [TXID]}

    assert translate(event(extra4=orjson.dumps(own).decode())).properties['headers'] == own


@pytest.mark.parametrize('extra3', ['{"headers": ""}', '{"headers": null}'])
def test_empty_headers_in_ev_extra3_leave_those_of_ev_extra4(extra3: str) -> None:
    assert own_headers(translate(event(extra3=extra3, extra4='{"a": 1}'))) == {'a': 1}


@pytest.mark.parametrize('routes', [[], ['one'], ['one', 'ключ', '']])
@pytest.mark.parametrize('name', ['CC', 'BCC'])
def test_more_routing_keys_may_be_arrays_of_texts(name: str, routes: list[str]) -> None:
    message = translate(event(extra4=orjson.dumps({name: routes}).decode()))

    assert message.properties['headers'][name] == routes


@pytest.mark.parametrize(
    ('extra4', 'found'),
    [('[1]', 'an array'), ('"x"', 'a text'), ('7', 'a number'), ('true', 'a boolean'), ('null', 'null')],
)
def test_headers_that_are_no_object_are_ignored_and_counted(extra4: str, found: str) -> None:
    heard: list[tuple[str, str]] = []

    message = translate(event(extra4=extra4), on_warning=lambda *words: heard.append(words))

    assert own_headers(message) == {}
    assert heard == [(HEADERS_NOT_OBJECT, f'event 4: ev_extra4 is {found}, not an object: ignored')]


def test_unknown_properties_are_ignored_and_counted() -> None:
    heard: list[tuple[str, str]] = []
    extra3 = '{"colour": "red", "type": "example", "cluster_id": [1]}'

    message = translate(event(extra3=extra3), on_warning=lambda *words: heard.append(words))

    assert message == translate(event())
    assert [kind for kind, _ in heard] == [UNKNOWN_PROPERTY] * 2
    assert "'colour'" in heard[0][1]
    assert "'cluster_id'" in heard[1][1]


REFUSED = [
    ({'type': 'x' * 256}, 'ev_type', '256 bytes'),
    ({'type': 'é' * 128}, 'ev_type', '256 bytes'),
    ({'extra1': 'x' * 256}, 'ev_extra1', '256 bytes'),
    ({'extra2': 'x' * 256}, 'ev_extra2', '256 bytes'),
    ({'data': 'x' * 11}, 'ev_data', '11 bytes'),
    ({'data': '\ud800'}, 'ev_data', 'not Unicode'),
    ({'time': datetime(1969, 12, 31, tzinfo=UTC)}, 'ev_time', '1970'),
    ({'time': datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, 'ev_time', '9999'),
    ({'extra3': 'type=x'}, 'ev_extra3', 'not JSON'),
    ({'extra3': '[]'}, 'ev_extra3', 'an array'),
    ({'extra3': 'null'}, 'ev_extra3', 'null'),
    ({'extra3': '{"type": NaN}'}, 'ev_extra3', 'not JSON'),
    ({'extra3': '{"type": ["x"]}'}, 'ev_extra3.type', 'an array'),
    ({'extra3': '{"type": true}'}, 'ev_extra3.type', 'a boolean'),
    ({'extra3': '{"type": 1.5}'}, 'ev_extra3.type', 'a number'),
    ({'extra3': '{"app_id": "%s"}' % ('x' * 256)}, 'ev_extra3.app_id', '256 bytes'),
    ({'extra3': '{"priority": 300}'}, 'ev_extra3.priority', '300'),
    ({'extra3': '{"priority": -1}'}, 'ev_extra3.priority', '-1'),
    ({'extra3': '{"priority": true}'}, 'ev_extra3.priority', 'a boolean'),
    ({'extra3': '{"priority": 1.5}'}, 'ev_extra3.priority', '1.5'),
    ({'extra3': '{"priority": "high"}'}, 'ev_extra3.priority', "'high'"),
    ({'extra3': '{"priority": "٣"}'}, 'ev_extra3.priority', 'whole number'),
    ({'extra3': '{"delivery_mode": 0}'}, 'ev_extra3.delivery_mode', 'from 1 to 2'),
    ({'extra3': '{"delivery_mode": 3}'}, 'ev_extra3.delivery_mode', 'from 1 to 2'),
    ({'extra3': '{"expiration": ""}'}, 'ev_extra3.expiration', "''"),
    ({'extra3': '{"expiration": "1h"}'}, 'ev_extra3.expiration', "'1h'"),
    ({'extra3': '{"expiration": -1}'}, 'ev_extra3.expiration', '-1'),
    ({'extra3': '{"expiration": 315360000001}'}, 'ev_extra3.expiration', '315360000000'),
    ({'extra3': '{"timestamp": -1}'}, 'ev_extra3.timestamp', '-1'),
    ({'extra3': '{"timestamp": 253402300800000}'}, 'ev_extra3.timestamp', '253402300799999'),
    ({'extra3': '{"timestamp": "2017-02-23T06:17:14Z"}'}, 'ev_extra3.timestamp', '2017-02-23'),
    ({'extra3': '{"user_id": "root"}'}, 'ev_extra3.user_id', "'guest'"),
    ({'extra3': '{"headers": []}'}, 'ev_extra3.headers', 'an array'),
    ({'extra3': '{"headers": "[]"}'}, 'ev_extra3.headers', 'an array'),
    ({'extra3': '{"headers": "{"}'}, 'ev_extra3.headers', 'not JSON'),
    ({'extra3': '{"headers": {"CC": "x"}}'}, 'ev_extra3.headers.CC', 'array of texts'),
    ({'extra3': '{"headers": {"a": 18446744073709551616}}'}, 'ev_extra3', '64 bits'),
    ({'extra4': 'a=1'}, 'ev_extra4', 'not JSON'),
    ({'extra4': ' '}, 'ev_extra4', 'not JSON'),
    ({'extra4': '{"a": 18446744073709551616}'}, 'ev_extra4', '18446744073709551616'),
    ({'extra4': '{"a": -9223372036854775809}'}, 'ev_extra4', '-9223372036854775809'),
    ({'extra4': '{"a": {"b": [1%s]}}' % ('0' * 300)}, 'ev_extra4', '64 bits'),
    ({'extra4': '{"a": Infinity}'}, 'ev_extra4', 'not JSON'),
    ({'extra4': '{"a": 1e400}'}, 'ev_extra4', 'not JSON'),
    ({'extra4': '{"a": "\\ud800"}'}, 'ev_extra4', 'not JSON'),
    ({'extra4': '{"a": 1%s}' % ('0' * 5000)}, 'ev_extra4', 'infinity'),
    ({'extra4': '[' * 5000 + ']' * 5000}, 'ev_extra4', 'not JSON'),
    ({'extra4': '{"CC": "x"}'}, 'ev_extra4.CC', 'array of texts'),
    ({'extra4': '{"CC": null}'}, 'ev_extra4.CC', 'array of texts'),
    ({'extra4': '{"BCC": ["x", 1]}'}, 'ev_extra4.BCC', 'array of texts'),
]


@pytest.mark.parametrize(('columns', 'field', 'reason'), REFUSED)
def test_what_no_retry_can_cure_is_refused(columns: dict[str, Any], field: str, reason: str) -> None:
    small = {'largest_body': 10} if 'data' in columns else {}

    with pytest.raises(EventError) as refusal:
        translate(event(**columns), username='guest', **small)

    assert refusal.value.field == field
    assert reason in refusal.value.reason
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ('extra4', 'value'),
    [
        ('{"a": 1e19}', 1e19),
        ('{"a": 123456789012345678901.5}', 123456789012345678901.5),
        ('{"a": [1.5, "18446744073709551616", "\\"18446744073709551616"]}', None),
        ('{"18446744073709551616": 1.5, "a": 9223372036854775807}', 2**63 - 1),
    ],
)
def test_floats_and_texts_of_many_digits_are_no_large_integers(extra4: str, value: object) -> None:
    headers = own_headers(translate(event(extra4=extra4)))

    assert value is None or headers['a'] == value


def test_a_login_that_may_impersonate_may_name_any_user() -> None:
    message = translate(event(extra3='{"user_id": "root"}'), username=None)

    assert message.properties['user_id'] == 'root'


def test_body_may_be_as_large_as_the_limit() -> None:
    assert translate(event(data='é' * 5), largest_body=10).body == 'é'.encode() * 5


def test_message_id_stays_the_same_at_every_redelivery() -> None:
    first = translate(event())
    moved = EV_TIME.astimezone(timezone(timedelta(hours=5, minutes=30)))
    again = translate(event(retry=3, txid=TXID + 1, time=moved, data='other'), origin='other')

    assert again.properties['message_id'] == first.properties['message_id']
    assert again.properties['headers']['timestamp'] == first.properties['headers']['timestamp']


def test_message_id_tells_events_databases_and_queues_apart() -> None:
    later = EV_TIME + timedelta(microseconds=1)
    messages = [
        translate(event()),
        translate(event(id=5)),
        translate(event(time=later)),
        translate(event(), database='other'),
        translate(event(), queue='other'),
    ]

    assert len({message.properties['message_id'] for message in messages}) == len(messages)


@pytest.mark.parametrize(
    ('time', 'text', 'seconds'),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), '1970-01-01 00:00:00.000000+00:00', 0),
        (datetime(2026, 3, 4, 1, tzinfo=EAST), '2026-03-03 23:00:00.000000+00:00', 1772578800),
        (datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), '9999-12-31 23:59:59.999999+00:00', 253402300799),
    ],
)
def test_ev_time_in_utc_with_microseconds(time: datetime, text: str, seconds: int) -> None:
    properties = translate(event(time=time)).properties

    assert properties['headers']['timestamp'] == text
    assert datetime.fromisoformat(text) == time
    assert properties['timestamp'] == seconds


OFFSETS = st.integers(-15 * 3600, 15 * 3600).map(lambda seconds: timezone(timedelta(seconds=seconds)))


@given(st.lists(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=OFFSETS), max_size=5))
def test_every_time_is_carried_exactly(times: list[datetime]) -> None:
    translator = Translator(**WHERE)

    for time in times:
        headers = translator(event(time=time)).properties['headers']
        assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00', headers['timestamp'])
        assert datetime.fromisoformat(headers['timestamp']) == time


def test_the_deduplication_header_is_the_message_id() -> None:
    dedup = DeduplicatingTranslator(**WHERE)
    message = dedup(event())
    assert own_headers(message) == {'x-deduplication-header': message.properties['message_id']}
    given = dedup(event(extra3='{"message_id": "mine"}', extra4='{"a": 1}'))
    assert own_headers(given) == {'a': 1, 'x-deduplication-header': 'mine'}
    own = dedup(event(extra4='{"x-deduplication-header": null}'))
    assert own_headers(own) == {'x-deduplication-header': None}
    assert 'x-deduplication-header' not in translate(event()).properties['headers']
