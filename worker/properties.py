"""The JSON of ev_extra3 and ev_extra4: reading it exactly, and each AMQP property's type and range. Pure.

`RULES` holds the property names of the reference text (`headers` apart) and `reply_to`. A rule makes a JSON
value ready for the wire; it raises ValueError with the reason where it cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import orjson

from mikkoo.common.errors import EventError

LARGEST_SHORT_TEXT = 255  # bytes: a shortstr, AMQP 0-9-1 section 4.2.5.3
LARGEST_EXPIRATION = 315_360_000_000  # milliseconds, ten years; RabbitMQ 3.10 closes the channel over more
LARGEST_TIMESTAMP = 253_402_300_799_999  # the year 9999, even if in milliseconds: clients break past it
SMALLEST_EXACT, LARGEST_EXACT = -(2**63), 2**64 - 1  # the integers that orjson reads as such

KINDS = {
    dict: 'an object', list: 'an array', str: 'a text', bool: 'a boolean', int: 'a number', float: 'a number',
    NoneType: 'null',
}  # fmt: skip
EXACT = frozenset({str, int, bool, NoneType})  # as written; a float may have been an integer too large
MANY_DIGITS = re.compile('[0-9]{19}')
# The texts and numbers of valid JSON.
TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?')
DIGITS = re.compile(r'[0-9]{1,20}')


def read_json(field: str, text: str) -> Any:
    """What a JSON text holds; of equal keys the last wins.

    Raises EventError where it is not JSON (nor is NaN, Infinity, a lone surrogate, the 1,025th level), or
    where it holds an integer that needs more than 64 bits: orjson would silently make it a float.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise EventError(field, f'is not JSON: {error}') from None
    flat = type(value) is dict and EXACT.issuperset(map(type, value.values()))
    if not flat and MANY_DIGITS.search(text):
        _refuse_large_integers(field, text)
    return value


def _refuse_large_integers(field: str, text: str) -> None:
    for match in TOKENS.finditer(text):
        token = match[0]
        if len(token) > 18 and token.removeprefix('-').isdigit() and not _is_exact(token):
            raise EventError(field, f'the integer {token[:40]} needs more than 64 bits')


def _is_exact(digits: str) -> bool:
    return len(digits) <= 20 and SMALLEST_EXACT <= int(digits) <= LARGEST_EXACT


def read_properties(
    text: str, unknown: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The properties and, where given, the headers of an ev_extra3; `unknown` hears each unknown name.

    Raises EventError, whose field is 'ev_extra3' or 'ev_extra3.NAME'.
    """
    given = read_json('ev_extra3', text)
    if type(given) is not dict:
        raise EventError('ev_extra3', f'is {KINDS[type(given)]}, and has to be an object of properties')
    properties = {}
    headers = None
    for name, value in given.items():
        rule = RULES.get(name)
        if value is None:
            continue
        if rule is not None:
            try:
                properties[name] = rule(value)
            except ValueError as error:
                raise EventError(f'ev_extra3.{name}', str(error)) from None
        elif name == 'headers':
            headers = _read_headers(value)
        else:
            unknown(name)
    return properties, headers


def _read_headers(value: Any) -> dict[str, Any] | None:
    if value == '':
        return None
    if type(value) is str:
        value = read_json('ev_extra3.headers', value)
    if type(value) is not dict:
        raise EventError('ev_extra3.headers', f'is {KINDS[type(value)]}, and has to be an object')
    return value


def short_text(text: str) -> str:
    """The text itself. Raises ValueError where it is longer than AMQP carries in a name or a property."""
    if len(text) * 4 > LARGEST_SHORT_TEXT and (size := len(text.encode())) > LARGEST_SHORT_TEXT:
        raise ValueError(f'has {size} bytes, and may have {LARGEST_SHORT_TEXT}')
    return text


def _text(value: Any) -> str:
    if type(value) is str:
        return short_text(value)
    if type(value) is int:
        return str(value)
    raise ValueError(f'is {KINDS[type(value)]}, and has to be a text')


def _integer(value: Any, smallest: int, largest: int) -> int:
    """An integer from a JSON number without fraction, or from a text of digits."""
    number = value
    if (type(value) is float and value.is_integer()) or (type(value) is str and DIGITS.fullmatch(value)):
        number = int(value)
    if type(number) is not int or not smallest <= number <= largest:
        found = repr(value)[:40] if type(value) in (int, float, str) else KINDS[type(value)]
        raise ValueError(f'is {found}, and has to be a whole number from {smallest} to {largest}')
    return number


def _delivery_mode(value: Any) -> int:
    return _integer(value, 1, 2)


def _priority(value: Any) -> int:
    return _integer(value, 0, 255)


def _timestamp(value: Any) -> int:
    return _integer(value, 0, LARGEST_TIMESTAMP)


def _expiration(value: Any) -> str:
    return str(_integer(value, 0, LARGEST_EXPIRATION))


RULES: Mapping[str, Callable[[Any], Any]] = {
    'app_id': _text,
    'content_encoding': _text,
    'content_type': _text,
    'correlation_id': _text,
    'delivery_mode': _delivery_mode,
    'expiration': _expiration,
    'message_id': _text,
    'priority': _priority,
    'reply_to': _text,
    'timestamp': _timestamp,
    'type': _text,
    'user_id': _text,
}
