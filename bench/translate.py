"""Times Translator and encoder, the pure half of the relay's hot path, and prints a table.

"templates": both, as the relay does it. "new": of events that each have headers of their own, which shows
what looking for a template costs where there is none. "fours": four each have the same, the worst case, where
templates are made and never used.

python bench/translate.py [EVENTS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from mikkoo.worker.event import Event, Message
from mikkoo.worker.frames import encoder
from mikkoo.worker.templates import MADE_AT, TemplateTranslator
from mikkoo.worker.translate import Translator

ROUNDS = 5  # the best one counts: the others were disturbed
START = datetime(2026, 1, 1, tzinfo=UTC)
BODY = '{"invoice": "' + 'x' * 185 + '"}'
SHAPES = {
    'no property, no header': (None, None),
    '1 property, 2 headers': ('{"type": "example"}', '{"customer": "c-1842", "schema": 3}'),
    'all properties, 8 headers': (
        '{"app_id": "billing", "content_encoding": "utf-8", "correlation_id": "4d5e", "delivery_mode": 1, '
        '"expiration": "60000", "message_id": "8f3c", "priority": 4, "timestamp": 1449600290, "type": "new"}',
        '{"a": 1, "b": 2.5, "c": null, "d": [1, 2], "e": {"f": "g"}, "h": true, "i": "j", "k": 12345678901}',
    ),
}


def events(count: int, properties: str | None, headers: str | None) -> list[Event]:
    """Events one millisecond apart, with 100 routing keys."""
    return [
        Event(
            id=number,
            time=START + timedelta(milliseconds=number),
            txid=41356335556 + number,
            retry=None,
            type=f'invoice.{number % 100}',
            data=BODY,
            extra1='postgres',
            extra2='application/json',
            extra3=properties,
            extra4=headers,
        )
        for number in range(count)
    ]


def different(rows: list[Event], alike: int = 1) -> list[Event]:
    """Events of which each, or so many in a row, have headers of their own: no template is of use."""
    return [row._replace(extra4=f'{{"customer": "c-{row.id // alike}", "schema": 3}}') for row in rows]


def microseconds(make: Callable[[], Callable[[Any], Any]], items: list[Any]) -> float:
    """CPU time per item of the fastest round, each with a function newly made."""
    best = float('inf')
    for _ in range(ROUNDS):
        function = make()
        started = time.process_time_ns()
        for item in items:
            function(item)
        best = min(best, time.process_time_ns() - started)
    return best / len(items) / 1000


def plain() -> Translator:
    return Translator(database='bench', queue='bench', origin='bench.example.com', username='guest')


def encoding() -> Callable[[Message], bytes]:
    return encoder(1, 131_072)


def plainly() -> Callable[[Event], bytes]:
    translate, encode = plain(), encoding()
    return lambda event: encode(translate(event))


def by_templates() -> Callable[[Event], bytes]:
    translate, encode = TemplateTranslator(plain()), encoding()
    return lambda event: encode(translate(event))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    columns = ('translate', 'encode', 'both', 'templates', 'both, new', 'templates, new', 'fours')
    print(f'{"µs CPU an event, 200-byte body":32}' + ''.join(f'{column:>15}' for column in columns))
    for shape, texts in SHAPES.items():
        rows = events(count, *texts)
        new, fours = different(rows), different(rows, MADE_AT)
        figures = (
            microseconds(plain, rows),
            microseconds(encoding, list(map(plain(), rows))),
            microseconds(plainly, rows),
            microseconds(by_templates, rows),
            microseconds(plainly, new),
            microseconds(by_templates, new),
            microseconds(by_templates, [row._replace(type='invoice') for row in fours]),
        )
        print(f'{shape:32}' + ''.join(f'{figure:15.2f}' for figure in figures))


if __name__ == '__main__':
    main()
