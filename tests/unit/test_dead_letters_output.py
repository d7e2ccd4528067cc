"""Dead letters as people read them, and the SQL of a filter."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mikkoo.common.pgq_dead_letters import CONDITIONS, Filter, WholeDeadLetter
from mikkoo.supervisor import output

LETTER = WholeDeadLetter(
    id=7, queue='invoices', consumer='mikkoo', event_id=42, event_time='2026-11-22T10:00:00+00:00',
    event_txid=9, attempts=3, exchange='ex', routing_key='key', content_type=None, reason_code='returned',
    reason='312 NO_ROUTE', first_failed_at='a', last_failed_at='b', dead_at='c', age=61.0, payload_bytes=4,
    payload='[red]', properties='{}', headers=None,
)  # fmt: skip


def test_a_table_for_each_database(capsys: pytest.CaptureFixture[str]) -> None:
    output.dead_letters([('h/a', LETTER), ('h/b', LETTER)], 1234567)
    lines = capsys.readouterr().out.splitlines()
    row = ['7', 'invoices', '42', 'ex', 'key', '3', '1', 'min', '1', 's', 'returned', '312', 'NO_ROUTE']
    assert [lines[0], lines[3], lines[6]] == ['h/a', 'h/b', 'and 1,234,565 more']
    assert lines[2].split() == lines[5].split() == row


def test_all_of_one_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.dead_letter('h/a', LETTER)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'dead letter 7 of h/a'
    assert lines[-2:] == ['  payload', '[red]']
    shown = {line.split()[0]: line.split()[-1] for line in lines[1:-2]}
    assert set(shown) == {field.name for field in fields(LETTER)} - {'id', 'age', 'payload'}
    assert (shown['headers'], shown['attempts'], shown['reason']) == ('NULL', '3', 'NO_ROUTE')


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('plain ä ☃', 'plain ä ☃'),
        ('\x1b[31m', '\\x1b[31m'),
        ('a\nb', 'a\\nb'),
        ('\u202e\x9b', '\\u202e\\x9b'),
    ],
)
def test_what_steers_a_terminal_is_shown_and_not_sent(text: str, shown: str) -> None:
    assert output.printable(text) == shown


def test_lines_of_a_payload_stay_lines() -> None:
    assert output.printable('a\n\tb\r', also='\n\t') == 'a\n\tb\\r'


def test_every_filter_has_its_condition() -> None:
    assert set(CONDITIONS) == {field.name for field in fields(Filter)}


def test_the_sql_of_a_filter() -> None:
    assert Filter().where() == ('true', [])
    condition, args = Filter(ids=(1, 2), exchange='', newer_than=0.0).where()
    assert condition.count('%s') == 3 and condition.count(' and ') == 3
    assert args == [[1, 2], '', 0.0]
