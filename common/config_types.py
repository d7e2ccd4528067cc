"""The types of configuration values, each with its JSON Schema. With config_model, the home of pydantic.

A validator takes a Scalar of the tree and raises ValueError with what is allowed, never with what was found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from mikkoo.common import durations
from mikkoo.common.config_tree import Items, Scalar, Section

# ssl.PROTOCOL_TLS, _TLSv1, _TLSv1_1, _TLSv1_2, _TLS_CLIENT; 0 and 1 are SSL 2 and 3, gone from OpenSSL
TLS_PROTOCOLS = (2, 3, 4, 5, 16)

_ANY_TEXT: dict[str, Any] = {'type': ['string', 'number', 'boolean']}
_SUBSTITUTION: dict[str, Any] = {'type': 'string', 'pattern': r'\$\{[^}]+\}'}
_HOST = re.compile(r'[^\s/@\[\],?#]+')


@dataclass(frozen=True)
class Rule:
    """How a value of the tree becomes a value of the model, and the JSON Schema that says so."""

    check: Callable[[Any, ValidationInfo], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)


def _rule(check: Callable[[Any], Any], **schema: Any) -> Rule:
    return Rule(lambda value, info: check(value), schema)


def _typed(check: Callable[[Any], Any], *schemas: dict[str, Any]) -> Rule:
    """A rule for what is no text: a substitution may stand for it."""
    return _rule(check, anyOf=[*schemas, _SUBSTITUTION])


def _text(value: Any, allowed: str = 'a text') -> str:
    found = value.text if isinstance(value, Scalar) else value
    if not isinstance(found, str) or '\0' in found:
        raise ValueError(allowed)
    return found


def _flag(value: Any) -> bool:
    if isinstance(value, Scalar) and isinstance(value.typed, bool):
        return value.typed
    raise ValueError('true or false')


def _number(value: Any) -> int | float | None:
    typed = value.typed if isinstance(value, Scalar) else None
    return typed if isinstance(typed, int | float) and not isinstance(typed, bool) else None


def count(least: int, most: int) -> Rule:
    """A whole number from `least` to `most`."""
    allowed = f'a whole number from {least} to {most}'

    def check(value: Any) -> int:
        number = _number(value)
        if not isinstance(number, int) or not least <= number <= most:
            raise ValueError(allowed)
        return number

    return _typed(check, {'type': 'integer', 'minimum': least, 'maximum': most})


def _duration(value: Any) -> float | None:
    number = _number(value)
    if number is None and isinstance(value, Scalar):
        number = durations.seconds(value.text)
    return None if number is None or not math.isfinite(number) else float(number)


def seconds(least: float, most: float, whole: bool = False) -> Rule:
    """A duration: a number of seconds, or a text such as '500 ms', '30s', '5 min'."""
    form = 'a whole number of seconds' if whole else 'a number of seconds'
    allowed = f"{form} from {least:g} to {most:.10g}, or as '30s', '5 min'"

    def check(value: Any) -> float | int:
        number = _duration(value)
        if number is None or not least <= number <= most or (whole and number % 1):
            raise ValueError(allowed)
        return int(number) if whole else number

    text = {'type': 'string', 'pattern': f'^{durations.DURATION.pattern}$'}
    kind = 'integer' if whole else 'number'
    return _typed(check, {'type': kind, 'minimum': least, 'maximum': most}, text)


def text(least: int, most: int, allowed: str, pattern: str = '') -> Rule:
    """A text of `least` to `most` UTF-8 bytes that matches `pattern` wholly."""

    def check(value: Any) -> str:
        found = _text(value, allowed)
        if not least <= len(found.encode()) <= most or (pattern and not re.fullmatch(pattern, found)):
            raise ValueError(allowed)
        return found

    return _rule(check, **_ANY_TEXT)


def one_of(*words: str) -> Rule:
    """One of these words."""

    def check(value: Any) -> str:
        found = _text(value, allowed := ' or '.join(words))
        if found not in words:
            raise ValueError(allowed)
        return found

    return _typed(check, {'type': 'string', 'enum': list(words)})


def _arguments(value: Any) -> dict[str, Any]:
    allowed = 'a mapping of names to texts, numbers, true or false'
    if not isinstance(value, Section):
        raise ValueError(allowed)
    found = {name: item.value if isinstance(item, Scalar) else None for name, item in value.items()}
    if not all(0 < len(name.encode()) <= 255 and _is_argument(item) for name, item in found.items()):
        raise ValueError(allowed)
    return found


def _is_argument(value: Any) -> bool:
    """Whether AMQP has a type for it: integers have 64 bits."""
    return value is not None and not (type(value) is int and not -(2**63) <= value < 2**63)


def some_items(value: Any) -> Any:
    """Before a model of a list: a list with something in it."""
    if not isinstance(value, Items) or not value:
        raise ValueError('a list with at least one item')
    return value


def _umask(value: Any) -> int:
    digits = _text(value, allowed := "octal digits up to 777, as '022'").removeprefix('0o')
    if not re.fullmatch('0?[0-7]{1,3}', digits):
        raise ValueError(allowed)
    return int(digits, 8)


def _path(value: Any, info: ValidationInfo) -> str:
    found = _text(value, allowed := 'the path of a file')
    if not found:
        raise ValueError(allowed)
    return str(Path((info.context or {})['folder']) / found)


def _database_url(value: Any) -> str:
    found = _text(
        value, allowed := 'a URL as postgresql://user:password@host:5432/database, or host=... dbname=...'
    )
    if re.match('postgres(ql)?://', found):
        try:
            user, _, authority = urlsplit(found).netloc.rpartition('@')
        except ValueError:
            raise ValueError(allowed) from None
        # libpq would take what follows the first @ for the host, and say that name aloud.
        if '@' in user or re.search('%(?![0-9A-Fa-f]{2})', found):
            raise ValueError(f'{allowed}; in a password @ is written %40, and % is written %25')
        ports = [
            host.rpartition(':')[2] for host in re.sub(r'\[[^\]]*\]', '', authority).split(',') if ':' in host
        ]
        if all(not port or _is_port(port) for port in ports):
            return found
    elif re.match(r'\s*\w+\s*=', found):
        return found
    raise ValueError(allowed)


def _is_port(digits: str) -> bool:
    return bool(re.fullmatch('[0-9]{1,5}', digits)) and 1 <= int(digits) <= 65535


def _sentry_dsn(value: Any) -> str | None:
    found = _text(value, allowed := "Sentry's URL of a project, as https://key@host/1")
    if found and not _is_dsn(found):
        raise ValueError(allowed)
    return found or None


def _is_dsn(found: str) -> bool:
    try:
        parts = urlsplit(found)
        return (
            parts.scheme in ('http', 'https')
            and bool(parts.hostname and parts.username and parts.path.strip('/'))
            and parts.port != 0
        )
    except ValueError:
        return False


def _host(value: Any) -> str:
    found = _text(value, allowed := 'the name or address of a host')
    if not _HOST.fullmatch(found):
        raise ValueError(allowed)
    return found


def _nodes(value: Any) -> tuple[tuple[str, int | None], ...]:
    allowed = "a host, 'host:port', or a list of them"
    found = [_text(item, allowed) for item in (value if isinstance(value, Items) else [value])]
    nodes = [_node(part.strip(), allowed) for item in found for part in item.split(',')]
    if not nodes:
        raise ValueError(allowed)
    return tuple(dict.fromkeys(nodes))


def _node(found: str, allowed: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r'\[([0-9a-fA-F:.]+)\](?::([0-9]+))?', found)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif found.count(':') == 1:
        host, _, port = found.partition(':')
    else:
        host, port = found, None
    if not _HOST.fullmatch(host) or (port is not None and not _is_port(port)):
        raise ValueError(allowed)
    return host, None if port is None else int(port)


def _tls_protocol(value: Any) -> int:
    number = _number(value)
    if number not in TLS_PROTOCOLS or not isinstance(number, int):
        raise ValueError(
            '2 (TLS, the newest that both speak), 16 (the same), 3 (TLS 1.0), 4 (TLS 1.1) or 5 (TLS 1.2)'
        )
    return number


def switchable(value: Any) -> Any:
    """Before a model of TLS options: true is an empty mapping, false is None."""
    if isinstance(value, Scalar) and isinstance(value.typed, bool):
        return Section(value.place) if value.typed else None
    if not isinstance(value, Section):
        raise ValueError('a mapping of TLS options, or true for their defaults, or false')
    return value


FLAG = _typed(_flag, {'type': 'boolean'})
TEXT = _rule(_text, **_ANY_TEXT)
NAME = text(1, 255, 'a name of 1 to 255 bytes without control characters', r'[^\x00-\x1f\x7f-\x9f]+')
QUEUE = text(1, 255, 'the name of a queue, 1 to 255 bytes')
EXCHANGE = text(1, 255, 'the name of an exchange, 1 to 255 bytes; the default exchange cannot be tapped')
ROUTING_KEY = text(0, 255, 'a binding key, at most 255 bytes')
ARGUMENTS = _rule(_arguments, type='object')
VIRTUAL_HOST = text(1, 255, 'the name of a virtual host, 1 to 255 bytes')
STATSD_PREFIX = text(0, 255, 'a name without spaces and : | @', r'[^\s:|@]*')
HOST = _rule(_host, type='string')
PORT = count(1, 65535)
FILE_PATH = Rule(_path, {'type': 'string'})
OCTAL_MODE = _rule(_umask, type=['string', 'integer'])
DATABASE_URL = _rule(_database_url, type='string')
TLS_PROTOCOL = _typed(_tls_protocol, {'enum': list(TLS_PROTOCOLS)})
SENTRY_DSN = _rule(
    _sentry_dsn, anyOf=[{'type': 'string'}, {'type': 'array', 'description': 'a placeholder: means not set'}]
)
BROKER_HOSTS = _rule(
    _nodes, anyOf=[{'type': 'string'}, {'type': 'array', 'items': {'type': 'string'}, 'minItems': 1}]
)
