"""The SQL that docs/mapping.md gives for an event's message_id yields what the relay sends."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from mikkoo.worker.event import Event
from mikkoo.worker.translate import Translator
from tests.conftest import Database

MAPPING = Path(__file__).parents[2] / 'docs' / 'mapping.md'
QUEUE = 'ключ "test"'


def test_documented_sql_gives_the_message_id(database: Database) -> None:
    sql = re.search(r'```sql\n(select uuid_generate_v5.*?);\n```', MAPPING.read_text(), re.DOTALL)
    assert sql is not None
    time = datetime(2017, 2, 23, 6, 17, 14, 471682, UTC)
    event = Event(4, time, 1, None, 'key', '', '', None, None, None)
    message = Translator(database=database.name, queue=QUEUE, origin='host')(event)

    database.execute('create extension "uuid-ossp"')
    query = re.sub(r'(?<!:):(\w+)', r'%(\1)s', sql[1])
    rows = database.execute(query, {'queue': QUEUE, 'ev_id': 4, 'ev_time': time})

    assert rows == [(message.properties['message_id'],)]
