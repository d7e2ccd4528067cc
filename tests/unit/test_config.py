"""The configuration file: what is read, with which names, types and defaults."""

from __future__ import annotations

import logging
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common import config
from mikkoo.common.resources import example_configuration_path
from mikkoo.common.settings import (
    AuditorSettings,
    BindingSettings,
    BrokerSettings,
    DaemonSettings,
    Settings,
    SslOptions,
    StatsdSettings,
    Telemetry,
    WorkerSettings,
)

REFERENCE = Path(__file__).parent / 'data' / 'reference.yml'
URL = 'postgresql://localhost:5432/postgres'


def worker(body: str = '', rabbitmq: str = '', environ: dict[str, str] | None = None) -> WorkerSettings:
    """The settings of a worker `test` with more keys, and keys of its `rabbitmq`, one a line."""
    return parse(body, rabbitmq, environ).workers[0]


def parse(body: str = '', rabbitmq: str = '', environ: dict[str, str] | None = None) -> Settings:
    lines = ['Application:', '  workers:', '    test:', f'      postgres_url: {URL}']
    lines += [f'      {line}' for line in body.splitlines()]
    lines += ['      rabbitmq:', *(f'        {line}' for line in rabbitmq.splitlines())] if rabbitmq else []
    return config.parse('\n'.join(lines), '/etc/mikkoo/mikkoo.yml', environ or {})


def test_the_reference_texts_full_example() -> None:
    settings = config.load(REFERENCE, {})
    assert settings.workers == (
        WorkerSettings(
            name='test',
            queue='test',
            postgres_url=URL,
            rabbitmq=BrokerSettings(nodes=(('localhost', 5671),), ssl_options=SslOptions(protocol=2)),
            confirm=False,
            consumer_name='my_consumer',
            max_failures=5,
            retry_delay=5.0,
            unregister=False,
            wait_duration=5.0,
        ),
    )
    levels = {'': logging.CRITICAL, 'helper': logging.INFO, 'mikkoo': logging.INFO}
    levels |= dict.fromkeys(('pika', 'queries', 'tornado'), logging.ERROR)
    assert settings.telemetry == Telemetry(StatsdSettings(enabled=True), None, levels, 10.0)
    assert settings.daemon == DaemonSettings(user='mikkoo', pidfile='/var/run/mikkoo')
    assert settings.logging['handlers']['console']['debug_only'] is True
    assert settings.logging['formatters']['verbose']['format'].startswith('%(levelname) -10s %(asctime)s')
    sentry, confirm = settings.warnings
    assert sentry.startswith(f'{REFERENCE}:4:3: Application.sentry_dsn: a placeholder')
    assert confirm.startswith(f'{REFERENCE}:13:16: Application.workers.test.confirm: false: without confirms')


def test_the_reference_texts_short_example() -> None:
    short = 'confirm: false', 'host: localhost\nport: 5671\nvhost: /\nssl_options:\n  protocol: 2'
    assert worker(*short).confirm is False
    assert worker(*short).rabbitmq == BrokerSettings((('localhost', 5671),), ssl_options=SslOptions())


def test_the_shipped_example_loads_without_warnings_and_is_all_defaults() -> None:
    settings = config.load(example_configuration_path(), {})
    assert settings.warnings == ()
    assert settings.workers == (WorkerSettings('test', 'test', URL),)
    assert settings.telemetry.statsd == StatsdSettings()
    assert settings.daemon == DaemonSettings(umask=0o022)


def test_defaults() -> None:
    settings = parse()
    assert settings.workers == (WorkerSettings('test', 'test', URL),)
    assert settings.telemetry == Telemetry(levels={'': logging.INFO})
    assert settings.daemon == DaemonSettings()
    assert settings.warnings == ()
    made = settings.workers[0]
    assert (made.confirm, made.consumer_name, made.max_failures) == (True, 'mikkoo', 10)
    assert (made.retry_delay, made.wait_duration, made.rabbitmq.heartbeat_interval) == (10.0, 10.0, 300)
    assert (made.rabbitmq.vhost, made.rabbitmq.username, made.unregister) == ('/', 'guest', False)


@pytest.mark.parametrize(
    ('line', 'name', 'value'),
    [
        ('queue: invoices', 'queue', 'invoices'),
        ('confirm: no', 'confirm', False),
        ('confirm: off', 'confirm', False),
        ('unregister: Yes', 'unregister', True),
        ('retry_interval: 3', 'retry_delay', 3.0),
        ('retry_delay: 30s', 'retry_delay', 30.0),
        ('retry_delay: 5 min', 'retry_delay', 300.0),
        ('wait_duration: 500 ms', 'wait_duration', 0.5),
        ('wait_duration: 0.05', 'wait_duration', 0.05),
        ('wait_duration:', 'wait_duration', 10.0),
        ('max_failures: 0x10', 'max_failures', 16),
        ('consumer_name: 007', 'consumer_name', '007'),
        ('create_queue: true', 'create_queue', True),
        ('persistent: false', 'persistent', False),
        ('confirm_window: 1', 'confirm_window', 1),
        ('confirm_timeout: 2', 'confirm_timeout', 2.0),
        ('window_bytes: 65536', 'window_bytes', 65536),
        ('max_failures: ${N}', 'max_failures', 3),
        ('max_failures: "${N}"', 'max_failures', 3),
        ('confirm: ${OFF:-false}', 'confirm', False),
    ],
)
def test_a_workers_keys(line: str, name: str, value: Any) -> None:
    found = getattr(worker(line, environ={'N': '3'}), name)
    assert found == value
    assert type(found) is type(value)


def test_the_second_name_of_the_database_url() -> None:
    text = 'Application: {workers: {test: {postgresql_url: "postgresql://a/b"}}}'
    assert config.parse(text, 'm.yml', {}).workers[0].postgres_url == 'postgresql://a/b'


@pytest.mark.parametrize(
    'url',
    [
        'postgresql://user:p%40ss@[::1]:5432/db?sslmode=require',
        'postgres:///db?host=/run/postgresql',
        'postgresql://a:1,b:2/db?target_session_attrs=read-write',
        'host=localhost dbname=shop',
        'service=shop',
    ],
)
def test_database_urls_that_libpq_takes(url: str) -> None:
    text = f'Application: {{workers: {{test: {{postgres_url: "{url}"}}}}}}'
    assert config.parse(text, 'm.yml', {}).workers[0].postgres_url == url


@pytest.mark.parametrize(
    ('lines', 'nodes'),
    [
        ('host: rabbit', (('rabbit', 5672),)),
        ('host: rabbit:5673', (('rabbit', 5673),)),
        ('host: rabbit\nport: 1', (('rabbit', 1),)),
        ('host: [a, "b:5673"]\nport: 1', (('a', 1), ('b', 5673))),
        ('hosts:\n- a\n- a\n- b', (('a', 5672), ('b', 5672))),
        ('host: a, b:1', (('a', 5672), ('b', 1))),
        ('host: ::1', (('::1', 5672),)),
        ('host: "[::1]:5673"', (('::1', 5673),)),
        ('host: rabbit\nssl_options: {}', (('rabbit', 5671),)),
        ('host: rabbit\nport: 5673\nssl_options: true', (('rabbit', 5673),)),
        ('host: rabbit\nssl_options: false', (('rabbit', 5672),)),
        ('host: ${HOSTS}', (('x', 1), ('y', 5672))),
    ],
)
def test_brokers(lines: str, nodes: Any) -> None:
    assert worker(rabbitmq=lines, environ={'HOSTS': 'x:1,y'}).rabbitmq.nodes == nodes


def test_every_ssl_option() -> None:
    options = """ssl_options:
  ca_certs: /etc/ca.pem
  ca_path: certs
  ca_data: |
    -----BEGIN CERTIFICATE-----
  prototcol: 5
  certfile: client.pem
  keyfile: /etc/client.key
  password: 0123
  ciphers: HIGH
  verify: false
"""
    assert worker(rabbitmq=options).rabbitmq.ssl_options == SslOptions(
        ca_certs='/etc/ca.pem',
        ca_path='/etc/mikkoo/certs',
        ca_data='-----BEGIN CERTIFICATE-----\n',
        protocol=5,
        certfile='/etc/mikkoo/client.pem',
        keyfile='/etc/client.key',
        password='0123',
        ciphers='HIGH',
        verify=False,
    )
    assert worker(rabbitmq='ssl_options: true').rabbitmq.ssl_options == SslOptions()


def test_a_rabbitmq_url_of_mikkoo_3_is_taken_apart_with_a_warning() -> None:
    settings = parse(
        'rabbitmq_url: amqps://u:p%40@rabbit:1/%2fv?heartbeat=9\nprocesses: 4\nretry_interval: 10'
    )
    assert settings.workers[0].rabbitmq == BrokerSettings((('rabbit', 1),), '/v', 'u', 'p@', SslOptions(), 9)
    assert [text.split(': ')[1] for text in settings.warnings] == [
        'Application.workers.test.rabbitmq_url',
        'Application.workers.test.processes',
    ]
    assert parse('rabbitmq_url: amqp://localhost:5672/%2f').workers[0].rabbitmq == BrokerSettings()


@pytest.mark.parametrize(
    ('body', 'rabbitmq', 'warning'),
    [
        (
            'confirm: false',
            '',
            '5:16: Application.workers.test.confirm: false: without confirms an event may be lost',
        ),
        (
            'unregister: on',
            '',
            '5:19: Application.workers.test.unregister: true: events that are inserted while',
        ),
        (
            '',
            'port: 5671',
            "6:15: Application.workers.test.rabbitmq.port: RabbitMQ's port for TLS, but TLS is off",
        ),
        ('', 'ssl_options:', '6:9: Application.workers.test.rabbitmq.ssl_options: empty, so TLS is off'),
        (
            '',
            'ssl_options: {verify: no}',
            '6:31: Application.workers.test.rabbitmq.ssl_options.verify: false: whoever',
        ),
    ],
)
def test_warnings(body: str, rabbitmq: str, warning: str) -> None:
    (found,) = parse(body, rabbitmq).warnings
    assert found.startswith(f'/etc/mikkoo/mikkoo.yml:{warning}')


AUDITOR = """
Application:
  workers: {}
  auditors:
    proof:
      postgresql_url: postgresql://h/d
      bindings: [{exchange: shop}]
"""


def test_an_auditor_with_defaults() -> None:
    settings = config.parse(AUDITOR, 'm.yml', {})
    assert settings.warnings == ()
    (made,) = settings.auditors
    assert made == AuditorSettings(
        'proof', 'mikkoo.audit.proof', 'postgresql://h/d', (BindingSettings('shop', '#', {}),)
    )
    assert (made.queue_type, made.action, made.prefetch) == ('quorum', 'delete', 1000)
    assert (made.grace, made.keep) == (60.0, 7 * 86_400.0)
    assert 'postgresql://' not in repr(made)


def test_every_key_of_an_auditor() -> None:
    text = """
Application:
  workers: {}
  auditors:
    proof:
      postgres_url: postgresql://h/d
      rabbitmq: {hosts: rabbit}
      bindings:
        - {exchange: shop, routing_key: order.#}
        - {exchange: kinds, routing_key: '', arguments: {x-match: all, paid: true, count: 3, share: 0.5}}
        - {exchange: shop, routing_key: 7}
      queue: witness
      queue_type: classic
      grace: 5s
      keep: 1 d
      action: mark
      prefetch: 10
"""
    (made,) = config.parse(text, 'm.yml', {}).auditors
    assert made == AuditorSettings(
        name='proof',
        queue='witness',
        postgres_url='postgresql://h/d',
        bindings=(
            BindingSettings('shop', 'order.#'),
            BindingSettings('kinds', '', {'x-match': 'all', 'paid': True, 'count': 3, 'share': 0.5}),
            BindingSettings('shop', '7'),
        ),
        rabbitmq=BrokerSettings((('rabbit', 5672),)),
        queue_type='classic',
        grace=5.0,
        keep=86_400.0,
        action='mark',
        prefetch=10,
    )
    assert made.exchanges == ('shop', 'kinds')


def test_no_workers_on_purpose_is_a_warning() -> None:
    settings = config.parse('Application: {workers: {}}', 'm.yml', {})
    assert settings.workers == ()
    assert settings.warnings == ('m.yml:1:15: Application.workers: no workers: nothing is relayed',)


@pytest.mark.parametrize('dsn', ['[YOUR SENTRY DSN]', "'[YOUR SENTRY DSN]'", 'YOUR_SENTRY_DSN'])
def test_a_placeholder_for_sentry_means_unset(dsn: str) -> None:
    settings = config.parse(f'Application: {{sentry_dsn: {dsn}, workers: {{}}}}', 'm.yml', {})
    assert settings.telemetry.sentry_dsn is None
    assert any('placeholder' in warning for warning in settings.warnings)


def test_sentry_from_the_environment() -> None:
    text = 'Application:\n  sentry_dsn: ${DSN:-}\n  workers: {}'
    assert config.parse(text, 'm.yml', {}).telemetry.sentry_dsn is None
    dsn = 'https://key@sentry.example.com/1'
    assert config.parse(text, 'm.yml', {'DSN': dsn}).telemetry.sentry_dsn == dsn


@pytest.mark.parametrize(
    ('umask', 'value'),
    [('022', 0o22), ("'022'", 0o22), ('0o77', 0o77), ('22', 0o22), ('0', 0), ('777', 0o777)],
)
def test_a_umask_is_octal(umask: str, value: int) -> None:
    assert (
        config.parse(f'Application: {{workers: {{}}}}\nDaemon: {{umask: {umask}}}', 'm', {}).daemon.umask
        == value
    )


def test_anchors_merge_keys_and_x_keys() -> None:
    text = """
x-broker: &broker {host: rabbit, username: relay}
x-worker: &worker
  postgres_url: postgresql://h/a
  rabbitmq: *broker
  max_failures: 3
Application:
  workers:
    a: *worker
    b: {<<: *worker, max_failures: 4, queue: q}
    c:
      <<: [{retry_delay: 1}, *worker]
      rabbitmq: {<<: *broker, username: other}
"""
    a, b, c = config.parse(text, 'm.yml', {}).workers
    assert (a.rabbitmq, a.max_failures) == (b.rabbitmq, 3)
    assert (b.max_failures, b.queue) == (4, 'q')
    assert (c.retry_delay, c.rabbitmq.username, c.rabbitmq.nodes) == (1.0, 'other', (('rabbit', 5672),))


def test_substitutions(tmp_path: Path) -> None:
    (tmp_path / 'password').write_text('p@ss:w/rd$x\n')
    text = """
Application:
  workers:
    test:
      postgres_url: postgresql://${HOST}:${PORT:-5433}/${DB:-shop}
      consumer_name: a$$b$c$${d}
      rabbitmq: {password: '${file:password}', username: "${file:%s/password}", vhost: "${EMPTY:-/v}"}
"""
    path = tmp_path / 'mikkoo.yml'
    path.write_text(text % tmp_path)
    (found,) = config.load(path, {'HOST': 'db', 'EMPTY': '', 'DB': 'other'}).workers
    assert found.postgres_url == 'postgresql://db:5433/other'
    assert found.consumer_name == 'a$b$c${d}'
    assert found.rabbitmq.username == found.rabbitmq.password == 'p@ss:w/rd$x'
    assert found.rabbitmq.vhost == '/v'


def test_sources_are_the_file_and_its_secrets_even_when_they_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_text('# ${file:/comment}\na: [${file:one}, "x${file:/two}"\nb: $${file:/escaped}')
    assert config.sources(path, {}) == {path, tmp_path / 'one', Path('/two')}
    assert config.sources(tmp_path / 'absent.yml', {}) == {tmp_path / 'absent.yml'}


def test_logging_levels_with_the_root_among_the_loggers() -> None:
    loggers = '{root: {level: 35}, a.b: {level: DEBUG}, c: {}}'
    text = f'Application: {{workers: {{}}}}\nLogging: {{loggers: {loggers}}}'
    settings = config.parse(text, 'm.yml', {})
    assert settings.telemetry.levels == {'': 35, 'a.b': logging.DEBUG}
    assert settings.logging['version'] == 1


def test_settings_cross_to_children_and_hide_secrets() -> None:
    made = parse('', 'password: hunter2\nssl_options: {password: hunter3}')
    assert pickle.loads(pickle.dumps(made)) == made
    assert 'hunter' not in repr(made)
    assert URL not in repr(made)
    telemetry = config.parse(
        'Application: {sentry_dsn: "https://hunter4@sentry.example/1", workers: {}}', 'm.yml', {}
    ).telemetry
    assert telemetry.sentry_dsn and 'hunter' not in repr(telemetry)


def test_a_byte_order_mark_is_no_character_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / 'mikkoo.yml'
    path.write_bytes(b'\xef\xbb\xbfApplication: {workers: {}}')
    assert config.load(path, {}).workers == ()


def test_fifty_workers_load_at_once() -> None:
    block = Path(example_configuration_path()).read_text().split('    test:\n')[1].split('# The process')[0]
    text = 'Application:\n  workers:\n' + ''.join(f'    w{number}:\n{block}' for number in range(50))
    config.parse(text, 'm.yml', {})  # the first call imports and compiles
    began = time.process_time()
    settings = config.parse(text + '\n', 'm.yml', {})
    took = time.process_time() - began
    assert len(settings.workers) == 50
    assert took < 0.3, f'{took:.3f} s: every save of the file waits for this; it should take 0.1 s'
