"""The connector's configuration: rules C1 to C6."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pika
import pytest

from mikkoo.common.settings import SslOptions
from mikkoo.connector import (
    ConfigurationError,
    ConnectionParameters,
    ConnectorError,
    Credentials,
    MQConnector,
    config,
    load_config,
)

USERS = {'chat': {'username': 'chatty', 'password': 'pencil'}, 'old': {'user': 'older', 'password': 'p'}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.delenv(config.PATH_VARIABLE, raising=False)
    (tmp_path / '.config' / 'neon').mkdir(parents=True)
    return tmp_path


def reach(document: Any, service: str | None = 'chat', vhost: str = '/v') -> ConnectionParameters:
    return config.parameters(document, service, vhost, source='f.json')


def mistakes(document: Any, service: str | None = 'chat') -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        reach(document, service)
    assert isinstance(caught.value, ConnectorError)
    assert 'pencil' not in str(caught.value)
    return str(caught.value).splitlines()


def test_c1_the_file_is_looked_up_when_called(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config() == {}
    default = home / '.config' / 'neon' / 'mq_config.json'
    default.write_text('{"server": "a"}')
    assert load_config() == {'server': 'a'}
    (home / 'b.json').write_text('{"MQ": {"server": "b"}, "else": 1}')
    monkeypatch.setenv(config.PATH_VARIABLE, str(home / 'b.json'))
    assert load_config() == {'server': 'b'}
    assert load_config(default) == {'server': 'a'}
    monkeypatch.setenv(config.PATH_VARIABLE, '')
    assert load_config() == {'server': 'a'}
    assert load_config(home / 'missing.json') == {}


def test_c1_a_dictionary_stands_alone(home: Path) -> None:
    (home / '.config' / 'neon' / 'mq_config.json').write_text('{"server": "a", "port": 1}')
    given = {'users': USERS}
    service = MQConnector(given, 'chat')
    assert service.config == given
    assert service.get_connection_params().host == 'localhost'
    assert MQConnector(service_name='chat').config == {'server': 'a', 'port': 1}
    assert MQConnector({}).config == {}


def test_c3_told_when_a_consumer_is_registered(home: Path) -> None:
    service = MQConnector({'users': USERS}, 'ghost')
    with pytest.raises(ConfigurationError, match=r"users\.ghost: .*'ghost'; known: chat, old"):
        service.register_consumer('a', '/', 'q', print)
    with pytest.raises(ConfigurationError, match=r'mq_config\.json: users\.ghost: .*known: none'):
        MQConnector(service_name='ghost').create_mq_connection()


@pytest.mark.parametrize('blank', [{}, {'server': '', 'port': ''}, {'server': None, 'port': None}])
def test_c2_blanks_mean_the_defaults(blank: dict[str, Any]) -> None:
    made = reach({**blank, 'users': USERS})
    assert (made.host, made.port) == ('localhost', 5672)
    assert reach({**blank, 'users': USERS, 'ssl_options': True}).port == 5671


def test_c2_a_port_may_be_a_numeric_text() -> None:
    assert reach({'server': 'h', 'port': '5673', 'users': USERS}).port == 5673


@pytest.mark.parametrize('port', ['x', '0', 65536, -1, True, 1.5, [1], '²'])
def test_c2_what_is_no_port(port: Any) -> None:
    (line,) = mistakes({'port': port, 'users': USERS})
    assert line.startswith('f.json: port: ')
    assert 'from 1 to 65535' in line


def test_c3_username_or_user() -> None:
    assert reach({'users': USERS}).credentials == Credentials('chatty', 'pencil')
    assert reach({'users': USERS}, 'old').credentials.username == 'older'


@pytest.mark.parametrize(
    ('users', 'service', 'says'),
    [
        (USERS, 'ghost', "f.json: users.ghost: no credentials of the service 'ghost'; known: chat, old"),
        ({}, 'ghost', "f.json: users.ghost: no credentials of the service 'ghost'; known: none"),
        (USERS, None, 'f.json: users: no service_name was given; known: chat, old'),
        ({'chat': {'username': 'u'}}, 'chat', 'f.json: users.chat.password: must be a text'),
        ({'chat': {'username': 'u', 'password': ''}}, 'chat', 'f.json: users.chat.password: must be'),
        ({'chat': {'username': 7, 'password': 'pencil'}}, 'chat', 'f.json: users.chat.username: must be'),
        ({'chat': {'password': 'pencil'}}, 'chat', 'f.json: users.chat.username: must be'),
        ({'chat': ['u', 'pencil']}, 'chat', 'f.json: users.chat: found list;'),
        (['u', 'pencil'], 'chat', 'f.json: users: found list; must be an object'),
    ],
)
def test_c3_missing_credentials_are_a_mistake_never_guest(users: Any, service: Any, says: str) -> None:
    (line,) = mistakes({'users': users}, service)
    assert line.startswith(says)


def test_every_mistake_is_told_at_once() -> None:
    wrong = {'server': 5, 'port': 'x', 'users': {}, 'ssl_options': {'verfy': True, 'protocol': 'new'}}
    keys = [line.split(': ')[1] for line in mistakes(wrong)]
    assert keys == ['ssl_options.verfy', 'ssl_options.protocol', 'server', 'port', 'users.chat']


def test_c4_unreadable_files(home: Path) -> None:
    file = home / 'wrong.json'
    file.write_text('{"users": {"chat": \n pencil}}')
    with pytest.raises(ConfigurationError, match=r'wrong\.json:2:2: is not JSON') as caught:
        load_config(file)
    assert 'pencil' not in str(caught.value)
    file.write_bytes(b'\xff')
    with pytest.raises(ConfigurationError, match='not UTF-8'):
        load_config(file)
    file.write_text('[]')
    with pytest.raises(ConfigurationError, match='must be an object'):
        load_config(file)
    for secret in ('"pencil"', '[{"password": "pencil"}]', '{"users": {}, "port": ["pencil"]}'):
        file.write_text(secret)
        with pytest.raises(ConfigurationError, match=r'wrong\.json: ') as caught:
            config.parameters(load_config(file), 'chat', '/', source=str(file))
        assert 'pencil' not in str(caught.value)
    file.write_text('[' * 100_000)
    with pytest.raises(ConfigurationError, match='nested too deeply'):
        load_config(file)
    with pytest.raises(ConfigurationError, match='Is a directory'):
        load_config(home)


def test_c5_no_password_is_shown() -> None:
    made = reach({'users': USERS})
    assert 'pencil' not in repr(made) + str(made) + repr(config.broker_settings(made))


@pytest.mark.parametrize('vhost', ['/', '/neon_api', 'neon api', 'é%2F'])
def test_c6_the_vhost_is_verbatim(vhost: str) -> None:
    assert config.broker_settings(reach({'users': USERS}, vhost=vhost)).vhost == vhost


def test_ssl_options_of_the_relay() -> None:
    given = {'ca_certs': '/ca.pem', 'verify': False, 'password': 'pencil', 'ca_path': None}
    made = reach({'users': USERS, 'ssl_options': given})
    assert made.ssl_options == SslOptions(ca_certs='/ca.pem', verify=False, password='pencil')
    assert 'pencil' not in repr(made)
    assert reach({'users': USERS, 'ssl_options': True}).ssl_options == SslOptions()
    assert reach({'users': USERS, 'ssl_options': False}).ssl_options is None


def test_r2_parameters_of_pika() -> None:
    given = pika.ConnectionParameters('h', 5, '/v', pika.PlainCredentials('u', 'p'), heartbeat=7)
    made = config.broker_settings(given)
    assert (made.nodes, made.vhost, made.username, made.password) == ((('h', 5),), '/v', 'u', 'p')
    assert made.heartbeat_interval == 7
    assert config.broker_settings(pika.ConnectionParameters()).heartbeat_interval == config.HEARTBEAT


def test_r2_what_is_no_connection_and_tls_that_would_be_forgotten() -> None:
    with pytest.raises(ConfigurationError, match='credentials: is missing'):
        config.broker_settings(object())
    import ssl

    secure = pika.SSLOptions(ssl.create_default_context())
    with pytest.raises(ConfigurationError, match='ssl_options'):
        config.broker_settings(pika.ConnectionParameters(ssl_options=secure))


def test_statsd_and_sentry() -> None:
    assert not config.statsd_settings({}).enabled
    assert config.statsd_settings({'statsd': {'enabled': True, 'port': 1}}).port == 1
    with pytest.raises(ConfigurationError, match=r'statsd\.prot'):
        config.statsd_settings({'statsd': {'prot': 1}})
    with pytest.raises(ConfigurationError, match='statsd: found'):
        config.statsd_settings({'statsd': [1]})
    assert config.optional_text({'sentry_dsn': ''}, 'sentry_dsn') is None
    assert config.optional_text({'sentry_dsn': 'd'}, 'sentry_dsn') == 'd'
    with pytest.raises(ConfigurationError, match='sentry_dsn'):
        config.optional_text({'sentry_dsn': ['d']}, 'sentry_dsn')


def test_a_document_given_is_unwrapped_too() -> None:
    assert config.unwrapped(json.loads('{"MQ": {"server": "b"}}')) == {'server': 'b'}
    assert config.unwrapped({'server': 'c', 'MQ': None}) == {'server': 'c', 'MQ': None}
    with pytest.raises(ConfigurationError):
        config.unwrapped([])
