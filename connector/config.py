"""The configuration of the services on a machine: where the broker is and who may log in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from mikkoo.common.errors import Mistake
from mikkoo.common.settings import BrokerSettings, SslOptions, StatsdSettings
from mikkoo.connector.errors import ConfigurationError

PATH_VARIABLE = 'NEON_MQ_CONFIG_PATH'
DEFAULT_PATH = '~/.config/neon/mq_config.json'
DEFAULT_HOST = 'localhost'
PORT, TLS_PORT = 5672, 5671
HEARTBEAT = 60  # seconds
GIVEN = 'the configuration that was passed in'

T = TypeVar('T')


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login of RabbitMQ."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConnectionParameters:
    """How to reach a virtual host, under pika's names. `heartbeat` in seconds; 0: none."""

    host: str = DEFAULT_HOST
    port: int = PORT
    virtual_host: str = '/'
    credentials: Credentials = field(kw_only=True)
    heartbeat: int = HEARTBEAT
    ssl_options: SslOptions | None = None


def config_path(path: str | os.PathLike[str] | None = None) -> Path:
    """What `load_config` reads: `path`, else $NEON_MQ_CONFIG_PATH, else the file in the home folder."""
    return Path(path or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH).expanduser()


def load_config(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The JSON document at `config_path(path)`; {} where there is no file. What is under "MQ" is unwrapped.

    Raises ConfigurationError with the path for what cannot be read or is no JSON object.
    """
    file = config_path(path)
    try:
        text = file.read_text(encoding='utf-8')
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else 'it is not UTF-8'
        raise ConfigurationError(Mistake(str(file), 0, 0, '', '', f'cannot be read: {why}')) from None
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            Mistake(str(file), error.lineno, error.colno, '', '', f'is not JSON: {error.msg}')
        ) from None
    except RecursionError:
        raise ConfigurationError(Mistake(str(file), 0, 0, '', '', 'is nested too deeply')) from None
    return unwrapped(document, str(file))


def unwrapped(document: object, source: str = GIVEN) -> dict[str, Any]:
    """The configuration itself, also where it is under "MQ". ConfigurationError: no JSON object."""
    if isinstance(document, Mapping) and isinstance(document.get('MQ'), Mapping):
        document = document['MQ']
    if not isinstance(document, Mapping):
        raise ConfigurationError(_mistake(source, '', document, 'the document must be an object'))
    return dict(document)


def parameters(
    config: Mapping[str, Any],
    service: str | None,
    vhost: str,
    *,
    source: str = GIVEN,
    heartbeat: int = HEARTBEAT,
) -> ConnectionParameters:
    """How `service` reaches `vhost`. Raises ConfigurationError with every mistake, `source` and key."""
    mistakes: list[Mistake] = []
    ssl_options = _ssl_options(config.get('ssl_options'), source, mistakes)
    host = _text(config, 'server', DEFAULT_HOST, source, mistakes)
    port = _port(config.get('port'), TLS_PORT if ssl_options else PORT, source, mistakes)
    credentials = _credentials(config.get('users'), service, source, mistakes)
    if not isinstance(vhost, str) or not vhost:
        mistakes.append(_mistake(source, 'vhost', vhost, 'the name of a virtual host is a text'))
    if credentials is None or mistakes:
        raise ConfigurationError(*mistakes)
    return ConnectionParameters(
        host, port, vhost, heartbeat=heartbeat, ssl_options=ssl_options, credentials=credentials
    )


def broker_settings(given: Any) -> BrokerSettings:
    """The same of ConnectionParameters, ours or pika's, or of anything with their names; its own as it is.

    Raises ConfigurationError where something is missing, or where TLS is asked for in another way than ours.
    """
    if isinstance(given, BrokerSettings):
        return given
    source = type(given).__name__
    try:
        login = given.credentials
        username, password = login.username, login.password
        host, port, vhost = given.host, given.port, given.virtual_host
    except AttributeError as error:
        raise ConfigurationError(
            Mistake(source, 0, 0, str(error.name), '', 'is missing: connection parameters have it')
        ) from None
    ssl_options = getattr(given, 'ssl_options', None)
    if not isinstance(ssl_options, SslOptions | None):
        allowed = 'use the ssl_options of the configuration, or mikkoo.common.settings.SslOptions'
        raise ConfigurationError(_mistake(source, 'ssl_options', type(ssl_options).__name__, allowed))
    heartbeat = getattr(given, 'heartbeat', None)
    return BrokerSettings(
        nodes=((host, int(port)),),
        vhost=vhost,
        username=username,
        password=password,
        ssl_options=ssl_options,
        heartbeat_interval=heartbeat if type(heartbeat) is int else HEARTBEAT,
    )


def statsd_settings(config: Mapping[str, Any], source: str = GIVEN) -> StatsdSettings:
    """The section `statsd`: `enabled`, `host`, `port`, `prefix`; off where it is absent."""
    return _record(StatsdSettings, 'statsd', config.get('statsd') or {}, source)


def optional_text(config: Mapping[str, Any], key: str, source: str = GIVEN) -> str | None:
    """The text at `key`, None where it is blank. Raises ConfigurationError; never shows what it found."""
    value = config.get(key) or None
    if not isinstance(value, str | None):
        raise ConfigurationError(_mistake(source, key, type(value).__name__, 'must be a text'))
    return value


def _text(config: Mapping[str, Any], key: str, default: str, source: str, mistakes: list[Mistake]) -> str:
    value = config.get(key)
    if value is None or value == '':
        return default
    if isinstance(value, str):
        return value
    mistakes.append(_mistake(source, key, value, 'must be a text'))
    return default


def _port(value: object, default: int, source: str, mistakes: list[Mistake]) -> int:
    if value is None or value == '':
        return default
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if type(number) is int and 0 < number < 65_536:
        return number
    mistakes.append(_mistake(source, 'port', value, 'must be a number from 1 to 65535'))
    return default


def _credentials(
    users: object, service: str | None, source: str, mistakes: list[Mistake]
) -> Credentials | None:
    if users is not None and not isinstance(users, Mapping):
        mistakes.append(_mistake(source, 'users', type(users).__name__, 'must be an object'))
        return None
    known = ', '.join(sorted(map(str, users))) if users else 'none'
    if not service or not isinstance(service, str):
        mistakes.append(Mistake(source, 0, 0, 'users', '', f'no service_name was given; known: {known}'))
        return None
    key = f'users.{service}'
    entry = (users or {}).get(service)
    if not isinstance(entry, Mapping):
        found = '' if entry is None else type(entry).__name__
        allowed = f'no credentials of the service {service!r}; known: {known}'
        mistakes.append(Mistake(source, 0, 0, key, found, allowed))
        return None
    username = entry.get('username') or entry.get('user')
    password = entry.get('password')
    for name, value in (('username', username), ('password', password)):
        if not isinstance(value, str) or not value:
            allowed = f'must be a text that is not empty (service {service!r}; known: {known})'
            mistakes.append(Mistake(source, 0, 0, f'{key}.{name}', '', allowed))
    if not isinstance(username, str) or not isinstance(password, str):
        return None
    return Credentials(username, password)


def _ssl_options(value: object, source: str, mistakes: list[Mistake]) -> SslOptions | None:
    if value is None or value is False:
        return None
    try:
        return _record(SslOptions, 'ssl_options', {} if value is True else value, source)
    except ConfigurationError as error:
        mistakes += error.mistakes
        return None


def _record(kind: type[T], section: str, given: object, source: str) -> T:
    """A dataclass of settings from an object of JSON: names and types have to be those of its defaults."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(_mistake(source, section, type(given).__name__, 'must be an object'))
    known = {one.name: one for one in fields(cast(Any, kind))}
    mistakes = []
    for name, value in given.items():
        if name not in known:
            allowed = f'unknown; known: {", ".join(known)}'
            mistakes.append(Mistake(source, 0, 0, f'{section}.{name}', '', allowed))
            continue
        default = known[name].default
        wanted = str if default is None else type(default)
        if type(value) is not wanted and not (value is None and default is None):
            article = {str: 'a text', int: 'a number', bool: 'true or false'}[wanted]
            mistakes.append(Mistake(source, 0, 0, f'{section}.{name}', '', f'must be {article}'))
    if mistakes:
        raise ConfigurationError(*mistakes)
    return kind(**given)


def _mistake(source: str, key: str, found: object, allowed: str) -> Mistake:
    return Mistake(
        source, 0, 0, key, found if isinstance(found, str) and found else repr(found)[:40], allowed
    )
