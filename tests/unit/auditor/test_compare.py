"""What a message is to its record, and to itself when it comes again."""

from __future__ import annotations

import uuid

import pytest

from mikkoo.auditor.compare import Memory, Settled, differing, identity, recorded_content_type
from mikkoo.common.audit_settle import Arrival
from mikkoo.common.errors import EventError
from mikkoo.worker.event import Event
from mikkoo.worker.translate import Translator
from tests.unit.test_translate import EV_TIME as TIME

ONE = '6b1f5b0e-9f3f-4f0c-8d8e-0d6f4b1a2c3d'
ARRIVAL = Arrival(ONE, 'shop', 'k', 'text/plain', b'\x01' * 32, 4, 0.0)


@pytest.mark.parametrize('text', [ONE, ONE.upper(), ONE.replace('-', ''), f'{{{ONE}}}'])
def test_a_uuid_in_the_forms_that_postgresql_reads(text: str) -> None:
    assert identity(text) == ONE


@pytest.mark.parametrize('text', [None, '', 'x', ONE[:-1], ONE + '0', 7, f'{ONE}\0', f' {ONE}x'])
def test_what_is_no_uuid(text: object) -> None:
    assert identity(text) is None


CONTENT_TYPES = [None, '', 'text/a', 'ü']
PROPERTIES = [
    None,
    '',
    '{}',
    '{"content_type": "text/b"}',
    '{"content_type": ""}',
    '{"content_type": null}',
    '{"content_type": 7}',
    '{"content\\u005ftype": "x"}',
    '{"content_type": "a", "content_type": "b"}',
    '{"type": "content_type"}',
    '{"headers": {"content_type": "h"}}',
]


@pytest.mark.parametrize('content_type', CONTENT_TYPES)
@pytest.mark.parametrize('properties', PROPERTIES)
def test_the_content_type_is_the_relays(content_type: str | None, properties: str | None) -> None:
    """Asked of the relay's own translation."""
    translate = Translator(database='d', queue='q', origin='o')
    event = Event(1, TIME, 1, None, 'k', 'body', 'shop', content_type, properties, None)
    expected = translate(event).properties.get('content_type', '')
    assert recorded_content_type(content_type, properties) == expected


@pytest.mark.parametrize('properties', ['no JSON', '[]', '"content_type"', '7'])
def test_a_record_that_no_event_could_have(properties: str) -> None:
    event = Event(1, TIME, 1, None, 'k', 'body', 'shop', 'text/a', properties, None)
    with pytest.raises(EventError):
        Translator(database='d', queue='q', origin='o')(event)
    assert recorded_content_type('text/a', properties) == 'text/a'


@pytest.mark.parametrize(
    ('change', 'fields'),
    [
        ({}, []),
        ({'at': 9.0}, []),
        ({'exchange': 'x'}, ['exchange']),
        ({'routing_key': 'x', 'content_type': ''}, ['routing_key', 'content_type']),
        ({'body_sha256': b'\x02' * 32}, ['body']),
    ],
)
def test_what_differs(change: dict[str, object], fields: list[str]) -> None:
    assert differing(ARRIVAL._replace(**change), ARRIVAL) == fields


def test_the_memory_forgets_the_oldest() -> None:
    memory = Memory(2)
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for message_id in ids:
        memory.add([Settled(ARRIVAL._replace(message_id=message_id), 'q')])
    assert memory.get(ids[0]) is None
    found = memory.get(ids[2])
    assert found is not None and (found.arrival.message_id, found.queue) == (ids[2], 'q')
