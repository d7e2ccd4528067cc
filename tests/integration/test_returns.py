"""Whatever properties a message has, made by a template or not: what RabbitMQ returns finds its event."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from mikkoo.common.amqp import Link
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings, WorkerSettings
from mikkoo.worker.event import Encoded, Event
from mikkoo.worker.publisher import Publisher
from mikkoo.worker.routes import Routes
from mikkoo.worker.templates import MADE_AT, TemplateTranslator
from mikkoo.worker.translate import DeduplicatingTranslator
from mikkoo.worker.verdict import Kind
from tests.servers.rabbitmq import RabbitServer

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
HEADERS: list[dict[str, Any]] = [
    {},
    {'integers': [0, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)], 'one': 2**31},
    {'fractions': [0.0, -0.0, 1.0, 1.5, 5e-324, 1.7976931348623157e308], 'whole': 1.0},
    {'true': True, 'false': False, 'null': None, 'empty': '', 'é': '😀 %b %s\n'},
    {'nested': {'txid': 7, 'list': [{'a': [None, {}]}, []], 'text': 'b'}},
    {'CC': ['nobody.1'], 'BCC': ['nobody.2', 'nobody.3'], 'kept': 'x'},
    {'BCC': ['nobody.4'], 'origin': 'theirs', 'sequence': 'text', 'timestamp': None, 'txid': 1.5},
]
PROPERTIES: list[dict[str, Any]] = [
    {},
    {'type': 't', 'timestamp': 2**32 + 5, 'expiration': 60000, 'priority': 255, 'delivery_mode': 1},
    {'app_id': '', 'correlation_id': '%', 'content_encoding': 'é', 'reply_to': 'r', 'user_id': 'guest'},
]


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


@pytest.fixture
def links(rabbitmq: RabbitServer, vhost: str, pulse: Pulse) -> Iterator[list[Link]]:
    settings = BrokerSettings(nodes=((rabbitmq.host, rabbitmq.port),), vhost=vhost)
    made = [Link.open(settings, pulse, properties={}) for _ in range(2)]
    yield made
    for link in made:
        link.dispose()


def events() -> list[Event]:
    """All kinds in turn, with one body and one routing key, which no queue has."""
    kinds = [
        (orjson.dumps(properties).decode(), orjson.dumps(headers).decode())
        for properties in PROPERTIES
        for headers in HEADERS
    ]
    return [
        Event(
            n,
            START + timedelta(microseconds=999_983 * n),
            2**31 - 50 + n,
            None,
            'nobody',
            '{}',
            '',
            '',
            *kind,
        )
        for n, kind in enumerate(kinds * (2 * MADE_AT + 2), 1)
    ]


def publisher(link: Link, pulse: Pulse) -> Publisher:
    return Publisher(link, pulse, WorkerSettings('w', 'q', ''), Routes(1.0, lambda event: False))


def translator() -> TemplateTranslator:
    return TemplateTranslator(
        DeduplicatingTranslator(database='d', queue='q', origin='here.example.com', username='guest')
    )


def test_each_return_finds_its_event(links: list[Link], pulse: Pulse) -> None:
    sender, translate = publisher(links[0], pulse), translator()
    for event in events():
        sender.publish(event, translate(event))
    sender.drain()
    failures = sender.take_failures()
    assert {failure.kind for failure in failures} == {Kind.RETURNED}
    assert [failure.event for failure in failures] == events()


def test_what_is_sent_again_over_another_channel_finds_its_event(links: list[Link], pulse: Pulse) -> None:
    first, translate = publisher(links[0], pulse), translator()
    for event in events()[:900]:  # no multiple of what is written at once: some are left in any case
        first.publish(event, translate(event))
    left = first.unjudged()
    assert any(type(flight.message.properties) is Encoded for flight in left)
    links[0].dispose()
    links[1].publisher_channel(confirm=True)  # takes the number that the first link used
    second = publisher(links[1], pulse)
    second.resend(left)
    second.drain()
    assert [failure.event for failure in second.take_failures()] == [flight.event for flight in left]
