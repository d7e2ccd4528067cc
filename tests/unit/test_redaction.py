"""What counts as a secret in a text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.redaction import redact, redact_all, writable


@pytest.mark.parametrize(
    ('text', 'safe'),
    [
        ('postgresql://joe:s3cret@db:5432/x', 'postgresql://joe:***@db:5432/x'),
        ('at amqps://u:p@ss/w:rd@mq/%2F, retrying', 'at amqps://u:***@mq/%2F, retrying'),
        ('amqp://:secret@mq', 'amqp://:***@mq'),
        ("'postgresql://a:b@c' and 'amqp://d:e@f'", "'postgresql://a:***@c' and 'amqp://d:***@f'"),
        ('host=db password=hush user=joe', 'host=db password=*** user=joe'),
        (r"password='it\'s hush' user=joe", 'password=*** user=joe'),
        ('postgresql://db/x?password=hush', 'postgresql://db/x?password=***'),
        ("{'password': 'hush hush', 'port': 1}", "{'password': ***, 'port': 1}"),
        ('Password: hush', 'Password: ***'),
        ('sslpassword=hush', 'sslpassword=***'),
        ('PGPASSWORD=hush', 'PGPASSWORD=***'),
        ('passphrase = "hush"', 'passphrase = ***'),
    ],
)
def test_passwords_are_struck_out(text: str, safe: str) -> None:
    assert redact(text) == safe


@pytest.mark.parametrize(
    'text',
    [
        'password authentication failed for user "joe"',
        'relaying to amqp://mq:5672/%2F as guest',
        'postgresql://joe@db/x',
        'http://localhost:8125/metrics',
        'event 5 of orders: a@b.example: c',
        '',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_nested_values() -> None:
    value = {'a': ['amqp://u:p@h', ('x', 1, None)], 'Password': {'deep': 'hush'}, 'n': 5}
    assert redact_all(value) == {'a': ['amqp://u:***@h', ('x', 1, None)], 'Password': '***', 'n': 5}


@given(st.text(st.characters(exclude_categories=['Z', 'C']), max_size=50), st.text('us/er', max_size=5))
def test_no_password_of_a_url_survives(password: str, path: str) -> None:
    assert 'Zq9' not in redact(f'cannot connect to postgresql://u:Zq9{password}Zq9@host/{path} (really)')


@pytest.mark.parametrize('part', ['://', "password='", '://a:b', 'password="\\', 'password: ', '://a:b@'])
def test_a_hostile_text_costs_little(part: str) -> None:
    started = time.process_time()
    redact(part * (100_000 // len(part)))
    assert time.process_time() - started < 1.0 * 3


def test_lone_surrogates_can_be_written() -> None:
    assert writable('plain') == 'plain'
    assert writable('ö\udcff').encode() == 'ö\\udcff'.encode()
