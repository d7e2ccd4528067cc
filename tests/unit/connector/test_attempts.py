"""What a dead letter bears, and which exceptions are the link's."""

from __future__ import annotations

from mikkoo.connector import BasicProperties, ConnectionLost
from mikkoo.connector.attempts import LONGEST_ERROR, burial_properties, caused_by
from mikkoo.connector.properties import NAMES


def test_a_dead_letter_keeps_its_properties_but_those_that_harm() -> None:
    given = BasicProperties(
        content_type='t', headers={'a': 1, 'CC': ['x'], 'BCC': ['y'], 'x-error': 'earlier'}, priority=3,
        expiration='1000', user_id='u', delivery_mode=1, timestamp=5,
    )  # fmt: skip
    made = burial_properties(given, ValueError('why'), 'q', 3)
    assert (made.content_type, made.priority, made.timestamp) == ('t', 3, 5)
    assert (made.expiration, made.user_id, made.delivery_mode) == (None, None, 2)
    assert made.headers == {
        'a': 1, 'x-original-cc': ['x'], 'x-original-bcc': ['y'],
        'x-error': 'ValueError: why', 'x-original-queue': 'q', 'x-attempts': 3,
    }  # fmt: skip
    assert given.headers == {'a': 1, 'CC': ['x'], 'BCC': ['y'], 'x-error': 'earlier'}
    assert given.expiration == '1000'


def test_a_long_error_is_cut() -> None:
    made = burial_properties(BasicProperties(), ValueError('x' * 10_000), 'q', 1)
    assert made.headers is not None
    assert len(made.headers['x-error']) == LONGEST_ERROR


def test_exceptions_of_the_link() -> None:
    lost = ConnectionLost('gone')
    wrapped = ValueError('in a service')
    wrapped.__cause__ = lost
    assert caused_by(lost, ConnectionLost)
    assert caused_by(wrapped, ConnectionLost)
    assert not caused_by(ValueError('its own'), ConnectionLost)
    circle = ValueError('a')
    other = ValueError('b')
    circle.__context__, other.__context__ = other, circle
    assert not caused_by(circle, ConnectionLost)


def test_properties_compare_and_show_what_is_there() -> None:
    assert repr(BasicProperties(type='t', priority=0)) == "BasicProperties(priority=0, type='t')"
    assert BasicProperties(type='t') == BasicProperties(type='t') != BasicProperties()
    assert BasicProperties() != 5
    assert len(NAMES) == 14
