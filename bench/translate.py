"""Times Translator and encoder, the pure half of the relay's hot path, and prints a table.

python bench/translate.py [EVENTS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from mikkoo.worker.event import Event
from mikkoo.worker.frames import encoder
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


def microseconds(function: Callable[[Any], Any], items: Iterable[Any], count: int) -> float:
    """CPU time per item of the fastest round."""
    best = float('inf')
    for _ in range(ROUNDS):
        started = time.process_time_ns()
        for item in items:
            function(item)
        best = min(best, time.process_time_ns() - started)
    return best / count / 1000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f'{"µs CPU an event, 200-byte body":32} {"translate":>9} {"encode":>9} {"both":>9}')
    for shape, columns in SHAPES.items():
        translate = Translator(database='bench', queue='bench', origin='bench.example.com', username='guest')
        encode = encoder(1, 131_072)
        rows = events(count, *columns)
        first = microseconds(translate, rows, count)
        second = microseconds(encode, [translate(row) for row in rows], count)
        print(f'{shape:32} {first:9.2f} {second:9.2f} {first + second:9.2f}')


if __name__ == '__main__':
    main()
