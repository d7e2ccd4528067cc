"""Events of mixed shape, and producers that insert them through every function that there is."""

from __future__ import annotations

import json
import random
import threading
import uuid
from typing import Any, NamedTuple

from tests.integration.product import Product

PGQ = """
    select pgq.insert_event(%(queue)s, key, body, exchange, content_type, properties, headers)
    from unnest(%(key)s::text[], %(body)s::text[], %(exchange)s::text[], %(content_type)s::text[],
        %(properties)s::text[], %(headers)s::text[])
        with ordinality as e (key, body, exchange, content_type, properties, headers, n) order by n
"""
MIKKOO = """
    select case form
        when 'insert_event/5' then mikkoo.insert_event(%(queue)s, exchange, key, body, content_type)
        when 'insert_event/7' then mikkoo.insert_event(%(queue)s, exchange, key, body, content_type, properties, headers)
        when 'insert_audited_event/5' then mikkoo.insert_audited_event(%(queue)s, exchange, key, body, content_type)
        when 'insert_audited_event/7' then mikkoo.insert_audited_event(%(queue)s, exchange, key, body, content_type, properties, headers)
        end
    from unnest(%(form)s::text[], %(key)s::text[], %(body)s::text[], %(exchange)s::text[], %(content_type)s::text[],
        %(properties)s::text[], %(headers)s::text[])
        with ordinality as e (form, key, body, exchange, content_type, properties, headers, n) order by n
"""  # noqa: E501
FORMS = ('insert_event/5', 'insert_event/7', 'insert_audited_event/5', 'insert_audited_event/7')


class Draft(NamedTuple):
    """What is given to an insert. `form`: which one, '' for pgq.insert_event."""

    form: str
    exchange: str | None
    key: str | None
    body: str | None
    content_type: str | None
    properties: str | None
    headers: str | None


# Drafts of mixed shape

BODIES = (None, '', '{"foo": "bar"}', 'žluťoučký kůň 🐎', 'line\nend\ttab \\ "quoted"', ' ', '[1, 2]')
TYPES = (None, '', 'application/json', 'text/plain; charset=utf-8')
HEADERS: dict[str, Any] = {
    'text': 'some',
    'empty': '',
    'unicode': 'Ω→🐎',
    'long': 'x' * 5_000,
    'zero': 0,
    'int': -7,
    'int32': 2**31 - 1,
    'int64': 2**63 - 1,
    'least': -(2**63),
    'whole float': 12.0,
    'float': 1e100,
    'true': True,
    'false': False,
    'null': None,
    'array': [1, 'two', None, [3.0, {'four': True}]],
    'object': {'a': {'b': {'c': [1, 2**40]}}, '': 'empty name'},
    'empty array': [],
    'empty object': {},
    'quote"d\\': 'name',
    'x' * 255: 'the longest name',
    'CC': ['nowhere'],
    'txid': 'the event has its own',
    'origin': 'elsewhere',
    'timestamp': 'another',
}
PROPERTIES: dict[str, tuple[Any, ...]] = {
    'app_id': ('shop', 'Büro', 42),
    'content_encoding': ('gzip', 'utf-8'),
    'content_type': ('text/csv', None, 'ü' * 127),
    'correlation_id': ('shared', 1234567890123),
    'message_id': ('given', '', None),
    'reply_to': ('answers', 'a.b'),
    'type': ('example', 'x' * 255),
    'user_id': ('guest',),
    'delivery_mode': (1, 2, '1', 2.0),
    'priority': (0, 255, '4', None),
    'timestamp': (0, 1487830634, '1487830634', 4_102_444_800),
    'expiration': (600_000, '600000', 315_360_000_000),
    'headers': ({'from': 'properties', 'pick': 'me'}, '{"from": "text", "pick": "me"}', {'pick': 'me'}),
    'colour': ('red',),  # no property: ignored
}


def draft(chance: random.Random, queue: str, form: str) -> Draft:
    exchange, key = destination(chance, queue, null=form == '')
    properties, headers = optional(chance, some_properties(chance)), optional(chance, some_headers(chance))
    if exchange == f'{queue}.headers':  # routed by a header
        if form.endswith('/5'):
            exchange = f'{queue}.fanout'
        else:
            headers = json.dumps({**some_headers(chance), 'pick': 'me'})
    if form == 'insert_audited_event/7' and properties:
        message_id = str(uuid.UUID(int=chance.getrandbits(128)))
        properties = json.dumps({**json.loads(properties), 'message_id': message_id})
    return Draft(form, exchange, key, body(chance), chance.choice(TYPES), properties, headers)


def destination(chance: random.Random, queue: str, *, null: bool) -> tuple[str | None, str | None]:
    """An exchange, and a key by which it routes to the queue of RabbitMQ that has the PgQ queue's name."""
    return chance.choice([
        (f'{queue}.topic', 'good.key'),
        (f'{queue}.topic', 'good.ключ.' + 'k' * chance.randrange(237)),
        (f'{queue}.direct', 'exact'),
        (f'{queue}.direct', None if null else ''),
        (f'{queue}.fanout', None if null else 'any thing'),
        (f'{queue}.headers', 'whatever'),
        (None, queue),
        ('', queue),
    ])  # fmt: skip


def some_properties(chance: random.Random) -> dict[str, Any]:
    names = chance.sample(list(PROPERTIES), chance.randrange(1, 6))
    return {name: chance.choice(PROPERTIES[name]) for name in names}


def some_headers(chance: random.Random) -> dict[str, Any]:
    return {name: HEADERS[name] for name in chance.sample(list(HEADERS), chance.randrange(1, 6))}


def optional(chance: random.Random, value: dict[str, Any]) -> str | None:
    return chance.choice([None, '', '{}', json.dumps(value), json.dumps(value, ensure_ascii=False)])


def body(chance: random.Random) -> str | None:
    at = chance.random()
    if at < 0.0003:
        return 'M' * 1_000_000
    if at < 0.002:
        return 'é' * 50_000
    return chance.choice(BODIES) if at < 0.3 else f'{{"n": {chance.getrandbits(60)}}}'


# Inserting


class Producer:
    """Inserts drafts in transactions of its own. `events`: what it inserted, in order.

    It calls mikkoo.sql's functions as a role that may do nothing else, and pgq.insert_event as a superuser.
    """

    def __init__(self, made: Product, queue: str) -> None:
        self.queue = queue
        self.events: list[tuple[int, Draft]] = []
        database = made.database
        self._connections = {True: database.connect(), False: database.connect(f'producer_{database.name}')}

    def insert(self, drafts: list[Draft]) -> None:
        """One transaction; all drafts are for pgq.insert_event, or none is."""
        (by_pgq,) = {not each.form for each in drafts}
        columns = {name: [getattr(each, name) for each in drafts] for name in Draft._fields}
        with self._connections[by_pgq].cursor() as cursor:
            cursor.execute(PGQ if by_pgq else MIKKOO, {'queue': self.queue, **columns})
            self.events += zip((row[0] for row in cursor.fetchall()), drafts, strict=True)

    def insert_mixed(self, chance: random.Random, count: int) -> None:
        """In transactions of 1 to 200 events."""
        while (left := count - len(self.events)) > 0:
            forms = chance.choice([('',), FORMS])
            size = min(left, chance.randrange(1, 200))
            self.insert([draft(chance, self.queue, chance.choice(forms)) for _ in range(size)])

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


def insert_concurrently(made: Product, queue: str, count: int, seed: int) -> list[Producer]:
    """Three producers at once, each with connections of its own."""
    producers = [Producer(made, queue) for _ in range(3)]
    shares = [count // 3, count // 3, count - 2 * (count // 3)]
    threads = [
        threading.Thread(target=producer.insert_mixed, args=(random.Random(seed + number), share))
        for number, (producer, share) in enumerate(zip(producers, shares, strict=True))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for producer in producers:
        producer.close()
    return producers
