"""Whatever settings are written are read back the same; whatever noise is read raises our error alone."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mikkoo.common import config, config_logging
from mikkoo.common.errors import ConfigurationError
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

REFERENCE = (Path(__file__).parent / 'data' / 'reference.yml').read_text()

texts = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=20)
names = st.text(st.characters(exclude_categories=['Cs', 'Cc']), min_size=1, max_size=40)
awkward = st.sampled_from(
    ['yes', 'null', '~', '<<', '1', '0o7', '.inf', '${X}', '$$', 'a: b', '- a', ' a ', '#', "'"]
)
names = names | awkward
texts = texts | awkward
words = st.text(string.ascii_letters, min_size=1, max_size=8)
paths = words.map(lambda name: f'/etc/{name}')
ports = st.integers(1, 65535)
durations = st.floats(0.1, 86_400)

tls = st.builds(
    SslOptions,
    ca_certs=st.none() | paths,
    ca_path=st.none() | paths,
    ca_data=st.none() | texts,
    protocol=st.sampled_from([2, 3, 4, 5, 16]),
    certfile=paths,
    keyfile=st.none() | paths,
    password=st.none() | texts,
    ciphers=st.none() | texts,
    verify=st.booleans(),
)
brokers = st.builds(
    BrokerSettings,
    nodes=st.lists(st.tuples(words | st.just('::1'), ports), min_size=1, max_size=3, unique=True).map(tuple),
    vhost=names,
    username=texts,
    password=texts,
    ssl_options=st.none() | tls,
    heartbeat_interval=st.integers(0, 65535),
)
workers = st.builds(
    WorkerSettings,
    name=names,
    queue=names,
    postgres_url=st.tuples(words, texts).map(lambda parts: f'host={parts[0]} dbname={parts[1]}'),
    rabbitmq=brokers,
    confirm=st.booleans(),
    consumer_name=names,
    max_failures=st.integers(1, 32_767),
    retry_delay=durations,
    unregister=st.booleans(),
    wait_duration=durations,
    create_queue=st.booleans(),
    persistent=st.booleans(),
    confirm_window=st.integers(1, 65_535),
    confirm_timeout=durations,
    window_bytes=st.integers(64 * 1024, 2**31),
)
arguments = st.text(string.ascii_letters) | awkward | st.booleans() | st.integers(-(2**63), 2**63 - 1)
bindings = st.builds(
    BindingSettings,
    exchange=names,
    routing_key=texts,
    arguments=st.dictionaries(names, arguments, max_size=2),
)
auditors = st.builds(
    AuditorSettings,
    name=names.map('auditor {}'.format),
    queue=names,
    postgres_url=words.map('host={}'.format),
    bindings=st.lists(bindings, min_size=1, max_size=3).map(tuple),
    rabbitmq=brokers,
    queue_type=st.sampled_from(['quorum', 'classic']),
    grace=durations,
    keep=st.floats(1, 1e6),
    action=st.sampled_from(['delete', 'mark']),
    prefetch=st.integers(1, 65_535),
)
loggers = st.fixed_dictionaries(
    {},
    optional={
        'level': st.sampled_from(['INFO', 'ERROR', 35]),
        'handlers': st.just(['h']),
        'propagate': st.booleans(),
    },
)
handlers = st.dictionaries(
    st.sampled_from(['address', 'args']),
    texts | st.none() | st.floats(allow_nan=False) | st.lists(texts, max_size=2),
).map(lambda rest: {'class': 'logging.NullHandler', 'debug_only': True, **rest})


def logging_sections(names_: Any = names) -> Any:
    return st.fixed_dictionaries(
        {'version': st.just(1), 'handlers': st.fixed_dictionaries({'h': handlers})},
        optional={'loggers': st.dictionaries(names_, loggers, max_size=2), 'root': loggers},
    )


@st.composite
def all_settings(draw: Any) -> Settings:
    logging = draw(logging_sections())
    return Settings(
        workers=tuple(draw(st.lists(workers, max_size=3, unique_by=(lambda w: w.name, lambda w: w.queue)))),
        auditors=tuple(draw(st.lists(auditors, max_size=1))),
        telemetry=Telemetry(
            draw(st.builds(StatsdSettings, st.booleans(), words, ports, words)),
            draw(st.none() | st.just('https://key@sentry.example.com/1')),
            config_logging.levels(logging),
            draw(durations),
        ),
        daemon=draw(
            st.builds(
                DaemonSettings,
                st.none() | texts,
                st.none() | texts,
                st.none() | paths,
                st.none() | st.integers(0, 0o777),
            )
        ),
        logging=logging,
    )


slow = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@slow
@given(all_settings())
def test_settings_written_as_yaml_read_back_the_same(made: Settings) -> None:
    assert config.parse(config.dump(made), 'm.yml', {}) == made


def refuses_or_reads(text: str) -> None:
    try:
        config.parse(text, 'm.yml', {'X': 'x'})
    except ConfigurationError as error:
        assert error.mistakes
        assert all(mistake.allowed for mistake in error.mistakes)


@slow
@given(st.binary(max_size=300))
@example(b'\xff\xfe')
def test_noise_raises_our_error_alone(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / 'noise.yml'
    path.write_bytes(noise)
    with pytest.raises(ConfigurationError):
        config.load(path, {})
    assert path in config.sources(path, {})


signs = r""" :-?[]{},&*!|>%@`'"#~<$\ """
pieces = [
    '\n',
    '\t',
    '\r',
    '\n  ',
    ': ',
    '- ',
    '<<',
    'a',
    '1',
    '${',
    '$$',
    'é',
    '\0',
    '\n---\n',
    '\n...\n',
    '%YAML',
    '%TAG',
]
pieces += ['!!', '\x85', '\ufeff', '\ud800', '0x', '1e9', '.inf']
noise = st.lists(st.sampled_from([*signs, *pieces]), max_size=60).map(''.join)


@slow
@given(noise)
@example('%YAML 1.1.1\n--- a')
@example('%TAG ! !\n--- !a b')
@example('? !!binary ">-')
def test_yaml_like_noise_raises_our_error_alone(text: str) -> None:
    refuses_or_reads(text)


@slow
@given(st.data())
def test_a_damaged_file_raises_our_error_alone(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(REFERENCE)))
    end = data.draw(st.integers(begin, min(begin + 30, len(REFERENCE))))
    refuses_or_reads(REFERENCE[:begin] + data.draw(st.text(max_size=5)) + REFERENCE[end:])


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(
    ['workers', 'statsd', 'rabbitmq', 'host', 'ssl_options', 'postgres_url', 'rabbitmq_url']
)
keys |= st.sampled_from(
    ['root', 'handlers', 'class', 'level', 'format', 'formatters', 'sentry_dsn', 'retry_delay', '<<']
)


@slow
@given(st.recursive(trees, lambda inner: st.dictionaries(keys, inner, max_size=4), max_leaves=12), st.data())
def test_wrong_types_anywhere_raise_our_error_alone(tree: Any, data: st.DataObject) -> None:
    under = data.draw(
        st.sampled_from([['Application'], ['Application', 'workers', 'w'], ['Logging'], ['Daemon']])
    )
    for key in reversed(under):
        tree = {key: tree}
    refuses_or_reads(json.dumps(tree))
