"""From the insert to the message, through the running daemon: nothing lost, nothing twice, all as documented.

What is expected is worked out here, from the columns that were inserted and docs/mapping.md, not by the code
under test.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from tests.integration.mixed import Draft, Producer, insert_concurrently
from tests.integration.product import Message, Product

EACH = 10_000  # events in each of two queues
NAMESPACE = uuid.UUID('30dd6d3b-408d-4c43-af5b-74ec3e7a8cfa')  # docs/mapping.md
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

GIVEN = ('app_id', 'content_encoding', 'content_type', 'correlation_id', 'message_id', 'reply_to', 'type',
         'user_id', 'delivery_mode', 'priority', 'timestamp', 'expiration')  # fmt: skip
NUMBERS = ('delivery_mode', 'priority', 'timestamp')


class Stored(NamedTuple):
    """An event as PgQ has it."""

    id: int
    time: datetime
    txid: int
    key: str | None
    body: str | None
    exchange: str | None
    content_type: str | None
    properties: str | None
    headers: str | None


def stored(product: Product, queue: str) -> dict[int, Stored]:
    [(table,)] = product.sql('select queue_data_pfx from pgq.queue where queue_name = %s', queue)
    rows = product.sql(
        f"""select ev_id, ev_time, ev_txid, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4
            from {table}"""
    )
    return {row[0]: Stored(*row) for row in rows}


def check_stored(queue: str, given: Draft, event: Stored) -> None:
    """PgQ has what was given; what mikkoo.sql adds is added."""
    assert event[3:7] == (given.key, given.body, given.exchange, given.content_type)
    if given.form in ('', 'insert_event/7'):
        assert event[7:] == (given.properties, given.headers)
        return
    properties = json.loads(event.properties or '')
    if given.form.endswith('/5'):
        assert list(properties) == ['message_id'] and uuid.UUID(properties['message_id']).version == 4
        assert json.loads(event.headers or '') == {'pgq_queue': queue}
    else:
        before = json.loads(given.properties or '{}')
        assert properties == {'message_id': properties['message_id'], **before}
        assert event.headers == given.headers


def expected(event: Stored, database: str, queue: str) -> str:
    """The message that docs/mapping.md makes of an event, but for the header `sequence`; see `canonical`."""
    microseconds = (event.time - EPOCH) // timedelta(microseconds=1)
    event_id = str(uuid.uuid5(NAMESPACE, f'{database}\n{queue}\n{event.id}\n{microseconds}'))
    given = json.loads(event.properties or '{}')
    properties: dict[str, Any] = {
        'app_id': 'mikkoo',
        'content_type': event.content_type or None,
        'correlation_id': event_id,
        'delivery_mode': 2,
        'message_id': event_id,
        'timestamp': microseconds // 1_000_000,
    }
    for name in GIVEN:
        if given.get(name) is not None and (name, given[name]) != ('message_id', ''):
            properties[name] = int(given[name]) if name in NUMBERS else str(given[name])
    headers = given.get('headers')
    if headers is None:
        headers = event.headers or '{}'
    added = {
        'origin': origin(),
        'timestamp': event.time.astimezone(UTC).isoformat(' ', 'microseconds'),
        'txid': event.txid,
    }
    headers = {**added, **(json.loads(headers) if isinstance(headers, str) else headers)}
    body = (event.body or '').encode()
    return canonical(event.exchange or '', event.key or '', body, properties, headers)


def origin() -> str:
    name = socket.getfqdn()
    return socket.gethostname() if name.startswith('localhost') else name


def arrived(message: Message) -> str:
    method, properties, body = message
    names = [*GIVEN, 'cluster_id']
    found = {name: getattr(properties, name) for name in names}
    headers = dict(properties.headers)
    del headers['sequence']
    return canonical(method.exchange, method.routing_key, body, found, headers)


def canonical(
    exchange: str, key: str, body: bytes, properties: dict[str, Any], headers: dict[str, Any]
) -> str:
    """A message as one text that tells true from 1 and null from nothing. Properties that are not set go."""
    properties = {name: value for name, value in properties.items() if value is not None}
    whole = [exchange, key, body.decode(), properties, whole_floats(headers)]
    return json.dumps(whole, sort_keys=True)


def whole_floats(value: Any) -> Any:
    """pika 1.4 reads a floating-point header as an integer."""
    if isinstance(value, float):
        return int(value)
    if isinstance(value, dict):
        return {name: whole_floats(item) for name, item in value.items()}
    return [whole_floats(item) for item in value] if isinstance(value, list) else value


def declare(product: Product, queue: str) -> None:
    """A PgQ queue; in RabbitMQ a queue of the same name, bound to an exchange of each type."""
    product.create_queue(queue)
    product.channel.queue_declare(queue, durable=True)
    bindings = {'topic': ['good.#'], 'direct': ['exact', ''], 'fanout': [''], 'headers': ['']}
    for kind, keys in bindings.items():
        product.channel.exchange_declare(f'{queue}.{kind}', kind, durable=True)
        arguments = {'x-match': 'any', 'pick': 'me'} if kind == 'headers' else None
        for key in keys:
            product.channel.queue_bind(queue, f'{queue}.{kind}', key, arguments)


def test_events_of_mixed_shape_arrive_as_the_mapping_says(product: Product) -> None:
    """One queue of which one transaction follows another: total order. One with three producers at once."""
    for queue in ('ordered', 'concurrent'):
        declare(product, queue)
        product.worker(queue)
    product.run()
    alone = Producer(product, 'ordered')
    thread = threading.Thread(target=alone.insert_mixed, args=(random.Random(1), EACH))
    thread.start()
    together = insert_concurrently(product, 'concurrent', EACH, seed=2)
    thread.join()
    alone.close()
    product.until_settled()
    for queue, producers in {'ordered': [alone], 'concurrent': together}.items():
        events = stored(product, queue)
        given = {number: each for producer in producers for number, each in producer.events}
        assert len(given) == len(events) == EACH
        for number, each in given.items():
            check_stored(queue, each, events[number])
        check_audit(product, queue, given, events)
        messages = product.take(queue)
        assert product.queued(queue) == 0
        check_messages(messages, {expected(e, product.database.name, queue): e.id for e in events.values()})
        check_order(messages, events, producers, product.database.name, queue)
    numbers = {name: child['numbers'] for name, child in product.children().items()}
    assert [numbers[queue]['failed'] for queue in ('ordered', 'concurrent')] == [0, 0]


def check_audit(product: Product, queue: str, given: dict[int, Draft], events: dict[int, Stored]) -> None:
    """Each audited event, and no other, has a record of what was stored."""
    rows = product.sql(
        """select event_id, routing_key, payload, exchange, content_type, properties, headers,
               message_id::text
           from mikkoo.audit where queue = %s""",
        queue,
    )
    audited = {number for number, each in given.items() if 'audited' in each.form}
    assert {row[0] for row in rows} == audited and len(rows) == len(audited) > 1000
    for number, *columns, message_id in rows:
        assert tuple(columns) == events[number][3:]
        assert json.loads(events[number].properties or '')['message_id'] == message_id


def check_messages(messages: list[Message], wanted: dict[str, int]) -> None:
    """All of them, once each."""
    assert len(wanted) == EACH, 'events are told apart by what they carry'
    found = Counter(map(arrived, messages))
    missing, surplus = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    assert not missing and not surplus, f'{sorted(missing)[:3]}\n{sorted(surplus)[:3]}'
    assert set(found.values()) == {1}


def check_order(
    messages: list[Message],
    events: dict[int, Stored],
    producers: list[Producer],
    database: str,
    queue: str,
) -> None:
    """By ev_id for each producer, whose transactions follow each other; `sequence` grows with it."""
    numbers = {expected(event, database, queue): event.id for event in events.values()}
    order = [numbers[arrived(message)] for message in messages]
    for producer in producers:
        mine = [number for number, _ in producer.events]
        assert mine == sorted(mine)
        members = set(mine)
        assert [number for number in order if number in members] == mine
    for (_, earlier, _), (_, later, _) in pairwise(messages):
        assert 0 < earlier.headers['sequence'] < later.headers['sequence'] < 2**63
