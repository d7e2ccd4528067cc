"""What is wrong in a configuration file: each mistake with its line, column and key, and no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mikkoo.common import config
from mikkoo.common.errors import ConfigurationError, Mistake

EVERYTHING_WRONG = Path(__file__).parent / 'data' / 'everything_wrong.yml'
SECRET = 'hunter2'


def mistakes(text: str, environ: dict[str, str] | None = None) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigurationError) as caught:
        config.parse(text, 'm.yml', environ or {})
    return caught.value.mistakes


def test_all_mistakes_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigurationError) as caught:
        config.load(EVERYTHING_WRONG, {})
    wrong = [
        (number, line.split('# ')[1])
        for number, line in enumerate(EVERYTHING_WRONG.read_text().splitlines(), 1)
        if '# ' in line
    ]
    assert [(mistake.line, mistake.key) for mistake in caught.value.mistakes] == wrong
    assert SECRET not in str(caught.value)
    assert all(line.startswith(f'{EVERYTHING_WRONG}:') for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        (
            'confrim: true',
            'm.yml:5:7: Application.workers.w.confrim: found an unknown key; did you mean confirm? known',
        ),
        ('confirm: "yes"', "m.yml:5:16: Application.workers.w.confirm: found 'yes'; expected true or false"),
        ('confirm: 1', 'm.yml:5:16: Application.workers.w.confirm: found 1; expected true or false'),
        (
            'max_failures: true',
            'm.yml:5:21: Application.workers.w.max_failures: found true; expected a whole number',
        ),
        (
            'max_failures: 1.5',
            'm.yml:5:21: Application.workers.w.max_failures: found 1.5; expected a whole number from 1',
        ),
        (
            'max_failures: "5"',
            "m.yml:5:21: Application.workers.w.max_failures: found '5'; expected a whole number",
        ),
        (
            'wait_duration: 0',
            'm.yml:5:22: Application.workers.w.wait_duration: found 0; expected a number of seconds',
        ),
        (
            'wait_duration: .nan',
            'm.yml:5:22: Application.workers.w.wait_duration: found .nan; expected a number of',
        ),
        (
            'retry_delay: [1]',
            'm.yml:5:7: Application.workers.w.retry_delay: found a list; expected a number of seconds',
        ),
        (
            'consumer_name: ""',
            "m.yml:5:22: Application.workers.w.consumer_name: found ''; expected a name of 1 to 255",
        ),
        ('queue: {}', 'm.yml:5:7: Application.workers.w.queue: found a mapping; expected a name'),
        (
            'rabbitmq: {port: 0}',
            'm.yml:5:24: Application.workers.w.rabbitmq.port: found 0; expected a whole number',
        ),
        (
            'rabbitmq: {host: []}',
            "m.yml:5:18: Application.workers.w.rabbitmq.host: found a list; expected a host, 'h",
        ),
        (
            'rabbitmq: {host: "a:b"}',
            "m.yml:5:24: Application.workers.w.rabbitmq.host: found 'a:b'; expected a host,",
        ),
        (
            'rabbitmq: {host: a, hosts: [b]}',
            'm.yml:5:27: Application.workers.w.rabbitmq.hosts: found a value that diff',
        ),
        (
            'rabbitmq: {ssl_options: {protocol: 1}}',
            'm.yml:5:42: Application.workers.w.rabbitmq.ssl_options.protocol: ',
        ),
        (
            'rabbitmq: {ssl_options: 7}',
            'm.yml:5:31: Application.workers.w.rabbitmq.ssl_options: found a single value',
        ),
        (
            'postgresql_url: postgresql://x/y',
            'm.yml:5:7: Application.workers.w.postgresql_url: found a value that diff',
        ),
        (
            'queue: ${NOPE}',
            'm.yml:5:14: Application.workers.w.queue: the environment has no variable NOPE; ${NOPE:-def',
        ),
        (
            'queue: ${NOPE',
            'm.yml:5:14: Application.workers.w.queue: ${ without its }; a literal ${ is written $${',
        ),
        ('queue: ${1}', 'm.yml:5:14: Application.workers.w.queue: ${...} holds no name of a variable'),
        ('queue: ${file:}', 'm.yml:5:14: Application.workers.w.queue: ${file:...} holds no path'),
        ('queue: ${file:/dev/zero}', 'm.yml:5:14: Application.workers.w.queue: /dev/zero is no regular file'),
        (
            'queue: ${file:/no/such}',
            'm.yml:5:14: Application.workers.w.queue: /no/such cannot be read: No such file',
        ),
        ('queue: !x y', 'm.yml:5:14: Application.workers.w.queue: found a tag (!...); no tags'),
        ('<<: 5', 'm.yml:5:11: Application.workers.w.<<: a mapping, or a list of mappings, to merge in'),
    ],
)
def test_one_mistake(line: str, expected: str) -> None:
    text = f'Application:\n  workers:\n    w:\n      postgres_url: postgresql://h/d\n      {line}\n'
    (mistake,) = mistakes(text)
    assert str(mistake).startswith(expected)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', 'm.yml:1:1: found an empty file; a mapping with Application'),
        ('- a', 'm.yml:1:1: found a list; a mapping'),
        ('Daemon: {}', 'm.yml:1:1: Application: is required'),
        ('Application: {}', 'm.yml:1:1: Application.workers: is required'),
        ('Application: {workers: }', 'm.yml:1:15: Application.workers: is required'),
        ('Application: {workers: {w: }}', 'm.yml:1:25: Application.workers.w.postgres_url: is required'),
        (
            'application: {}\nApplication: {workers: {}}',
            'm.yml:1:1: application: found an unknown key; did you mean App',
        ),
        (
            'Application: {workers: {"a\\nb": {postgres_url: a=b}}}',
            "m.yml:1:25: Application.workers.'a\\nb': found the na",
        ),
        (
            'Application: {workers: {}}\nDaemon: {umask: 8}',
            'm.yml:2:17: Daemon.umask: found 8; expected octal digits up',
        ),
        (
            'Application: {workers: {}}\nApplication: {}',
            'm.yml:2:1: Application: found the key again; given once: it',
        ),
        ('a: [', "m.yml:1:5: not YAML: expected the node content, but found '<stream end>'"),
        ('a: [b', "m.yml:1:6: not YAML: expected , or ], but got '<stream end>'"),
        ('!a !a', "m.yml:1:4: not YAML: expected '<document start>', but found <tag>"),
        ('a:\n\tb: 1', "m.yml:2:1: not YAML: found character '...' that cannot start any token; tabs cannot"),
        ('a: b: c', 'm.yml:1:5: not YAML: mapping values are not allowed here'),
        ('a: *b', 'm.yml:1:4: not YAML: no anchor has the name of this alias'),
        ('a: 1\n---\nb: 1', 'm.yml:2:1: not YAML: a second document begins here'),
        ('a: x\0', 'm.yml:1:5: not YAML: the character U+0000 may not stand in it'),
        ('a: &a [*a]', 'm.yml:1:4: a[0]: found an alias inside itself'),
        ('[' * 40 + ']' * 40, 'm.yml:1:1: found a list'),
        ('a: ' + '[' * 40 + ']' * 40, 'm.yml:1:35: a[0][0]'),
        ('[' * 100_000, 'm.yml: not usable: nested too deeply'),
        ('? [a]\n: b\nApplication: {workers: {}}', 'm.yml:1:3: found no name; a key is a name'),
    ],
)
def test_a_file_that_is_no_configuration(text: str, expected: str) -> None:
    assert str(mistakes(text)[0]).startswith(expected)


def test_aliases_cannot_blow_up() -> None:
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 9)]
    (mistake,) = mistakes('\n'.join(lines))
    assert 'aliases counted each time' in str(mistake)


def test_a_mistake_behind_an_anchor_is_told_once() -> None:
    text = 'x-w: &w {postgres_url: a=b, confirm: 3}\nApplication: {workers: {a: *w, b: {<<: *w}, c: *w}}'
    found = [str(mistake) for mistake in mistakes(text)]
    assert found[0] == 'm.yml:1:38: Application.workers.a.confirm: found 3; expected true or false'
    assert not any('confirm' in text for text in found[1:])


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('postgresql://localhost/d', 'postgres://u:p@127.0.0.1:5432/d'),
        ('postgresql://H:1/d', 'host=h port=1 dbname=d user=x'),
        ('postgresql:///d?host=h&port=1', 'postgresql://h:1/d'),
        ('postgresql://a,b/d', 'postgresql://a:5432,b:5432/d'),
        ('service=s', 'service=s user=y'),
    ],
)
def test_two_workers_may_not_share_a_consumer(first: str, second: str) -> None:
    text = """
Application:
  workers:
    a: {postgres_url: "%s", queue: q}
    q: {postgres_url: "%s"}
"""
    (mistake,) = mistakes(text % (first, second))
    assert str(mistake).startswith(
        'm.yml:5:5: Application.workers.q: found the same database, queue and consumer_name as worker a'
    )
    settings = config.parse(
        (text % (first, second)).replace('queue: q', 'queue: q, consumer_name: c'), 'm.yml', {}
    )
    assert len(settings.workers) == 2


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('', ': Application.auditors.a.bindings: is required: What is audited: a list of bindings'),
        ('bindings: []', 'bindings: found a list; expected a list with at least one item'),
        ('bindings: {exchange: e}', 'bindings: found a mapping; expected a list with at least one item'),
        ('bindings: [{}]', 'bindings[0].exchange: is required: Exchange whose messages are audited'),
        (
            "bindings: [{exchange: ''}]",
            "bindings[0].exchange: found ''; expected the name of an exchange, 1 to 255 bytes; the default",
        ),
        (
            'bindings: [{exchange: e, routing-key: k}]',
            'bindings[0].routing-key: found an unknown key; did you mean routing_key? known here: exchange,',
        ),
        (
            'bindings: [{exchange: e, arguments: {a: [1]}}]',
            'bindings[0].arguments: found a mapping; expected a mapping of names to texts, numbers, tr',
        ),
        (
            'bindings: [{exchange: e, arguments: {a: 9223372036854775808}}]',
            'bindings[0].arguments: found a mapping; expected a mapping of names',
        ),
        (
            'bindings: [{exchange: e, arguments: 3}]',
            'bindings[0].arguments: found 3; expected a mapping of na',
        ),
        ('action: keep', "action: found 'keep'; expected delete or mark"),
        ('queue_type: stream', "queue_type: found 'stream'; expected quorum or classic"),
        ('keep: 0', 'keep: found 0; expected a number of seconds from 1 to'),
        (
            'confirm: true',
            'confirm: found an unknown key; known here: postgres_url, rabbitmq, bindings, queue',
        ),
        ('rabbitmq: {host: a, hosts: [b]}', 'rabbitmq.hosts: found a value that differs from host'),
    ],
)
def test_a_mistake_in_an_auditor(line: str, expected: str) -> None:
    given = '' if line.startswith('bindings') or not line else '      bindings: [{exchange: e}]\n'
    text = 'Application:\n  workers: {}\n  auditors:\n    a:\n      postgres_url: postgresql://h/d\n'
    (mistake,) = mistakes(f'{text}{given}      {line}\n')
    assert expected in str(mistake)


def test_an_auditor_may_not_have_the_name_of_a_worker() -> None:
    text = """
Application:
  workers:
    a: {postgres_url: "postgresql://h/d"}
  auditors:
    a: {postgres_url: "postgresql://h/d", bindings: [{exchange: e}]}
"""
    (mistake,) = mistakes(text)
    assert str(mistake) == (
        'm.yml:6:5: Application.auditors.a: found the name of a worker; a name that no worker has'
    )


def test_two_auditors_may_not_share_records() -> None:
    text = """
Application:
  workers: {}
  auditors:
    a: {postgres_url: "postgresql://h/d", bindings: [{exchange: e}, {exchange: f}]}
    b: {postgres_url: "host=h dbname=d", bindings: [{exchange: g}, {exchange: f, routing_key: x}]}
"""
    (mistake,) = mistakes(text)
    assert str(mistake).startswith(
        "m.yml:6:5: Application.auditors.b: found the same database and exchange 'f' as auditor a"
    )
    other = text.replace('dbname=d', 'dbname=other')
    assert len(config.parse(other, 'm.yml', {}).auditors) == 2


@pytest.mark.parametrize('other', ['postgresql://h:2/d', 'postgresql://h/e', 'postgresql://i/d', 'service=x'])
def test_other_databases_may_have_a_queue_of_the_same_name(other: str) -> None:
    first = '{postgres_url: "postgresql://h/d", queue: q}'
    text = f'Application: {{workers: {{a: {first}, q: {{postgres_url: "{other}"}}}}}}'
    assert len(config.parse(text, 'm.yml', {}).workers) == 2


@pytest.mark.parametrize(
    'line',
    [
        'postgres_url: mysql://root:hunter2@h/d',
        'postgres_url: "postgresql://u:hunter2@h:x/d"',
        'postgres_url: postgresql://[hunter2',
        'postgres_url: postgresql://u:p@hunter2@h/d',
        'postgres_url: postgresql://u:hunter2%@h/d',
        'postgres_url: [hunter2]',
        'rabbitmq: amqp://u:hunter2@h',
        'rabbitmq: hunter2',
        'rabbitmq: {password: [hunter2]}',
        'rabbitmq: {pasword: hunter2}',
        'rabbitmq: {host: "u:hunter2@h"}',
        'rabbitmq: {port: "${SECRET}"}',
        'rabbitmq: {port: "${NOPE:-hunter2}"}',
        'rabbitmq: {password: *hunter2}',
        'rabbitmq: {password: !hunter2 x}',
        'rabbitmq: {password: "hunter2}',
        'rabbitmq: {password: {hunter2: x}}',
        'rabbitmq: {ssl_options: hunter2}',
        'rabbitmq: {vhost: "${file:secret}", port: "${file:secret}"}',
        'rabbitmq_url: http://u:hunter2@h',
        'password: hunter2: x',
        'password: %hunter2',
        'password: @hunter2',
        'password: `hunter2',
        "password: 'hunter2",
    ],
)
def test_no_secret_in_a_mistake(line: str, tmp_path: Path) -> None:
    (tmp_path / 'secret').write_text(SECRET)
    path = tmp_path / 'mikkoo.yml'
    path.write_text(f'Application:\n  sentry_dsn: {SECRET}\n  workers:\n    w:\n      {line}\n')
    with pytest.raises(ConfigurationError) as caught:
        config.load(path, {'SECRET': SECRET})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.mistakes)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def mistake(path: Path) -> str:
        with pytest.raises(ConfigurationError) as caught:
            config.load(path, {})
        return str(caught.value).removeprefix(f'{path}:')

    assert mistake(tmp_path / 'absent.yml') == ' cannot be read: No such file or directory'
    assert mistake(tmp_path) == ' is no regular file'
    os.mkfifo(tmp_path / 'fifo')
    assert mistake(tmp_path / 'fifo') == ' is no regular file'
    (tmp_path / 'latin.yml').write_bytes('a: 1\nb: é'.encode('latin-1'))
    assert mistake(tmp_path / 'latin.yml') == '2:4: is not UTF-8'
    (tmp_path / 'large.yml').write_bytes(b'#' * (config.LARGEST_FILE + 1))
    assert mistake(tmp_path / 'large.yml') == ' is larger than 524288 bytes'


@pytest.mark.parametrize(
    ('section', 'expected'),
    [
        ('version: 2', '3:12: Logging.version: found 2; expected 1'),
        ('formaters: {}', '3:3: Logging.formaters: found an unknown key; did you mean formatters?'),
        (
            'handlers: {a: {level: INFO}}',
            '3:14: Logging.handlers.a: found a mapping; expected a mapping with the hand',
        ),
        (
            'handlers: {a: {class: logging.Handlr}}',
            "3:25: Logging.handlers.a.class: found 'logging.Handlr'; expected",
        ),
        (
            'handlers: {a: {class: logging.Filter}}',
            "3:25: Logging.handlers.a.class: found 'logging.Filter'; expected",
        ),
        (
            'handlers: {a: {class: x.Y, formatter: z}}',
            "3:41: Logging.handlers.a.formatter: found 'z'; expected the na",
        ),
        (
            'handlers: {a: {class: x.Y, level: INF}}',
            "3:37: Logging.handlers.a.level: found 'INF'; expected a level: CR",
        ),
        (
            'handlers: {a: {class: x.Y, debug_only: 1}}',
            '3:42: Logging.handlers.a.debug_only: found 1; expected true or',
        ),
        (
            'loggers: {a: {handlers: [b]}}',
            "3:28: Logging.loggers.a.handlers[0]: found 'b'; expected the name of one of",
        ),
        (
            'loggers: {a: {handlers: b}}',
            "3:27: Logging.loggers.a.handlers: found 'b'; expected a list of handlers",
        ),
        ('loggers: {a: INFO}', "3:16: Logging.loggers.a: found 'INFO'; expected a mapping"),
        (
            'loggers: {a: {propagate: 0}}',
            '3:28: Logging.loggers.a.propagate: found 0; expected true or false',
        ),
        ('root: INFO', "3:9: Logging.root: found 'INFO'; expected a mapping with handlers, level"),
        ('root: {level: true}', '3:17: Logging.root.level: found true; expected a level'),
        (
            'formatters: {a: {format: x}}',
            "3:28: Logging.formatters.a.format: found 'x'; expected a format of log rec",
        ),
        (
            'formatters: {a: {style: "!"}}',
            "3:27: Logging.formatters.a.style: found '!'; expected '%', '{' or '$'",
        ),
        ('filters: []', '3:3: Logging.filters: found a list; expected a mapping of names'),
        ('incremental: true', '3:16: Logging.incremental: found true; expected false'),
    ],
)
def test_mistakes_in_logging(section: str, expected: str) -> None:
    (mistake,) = mistakes(f'Application: {{workers: {{}}}}\nLogging:\n  {section}\n')
    assert str(mistake).startswith(f'm.yml:{expected}')


def test_logging_that_is_no_mapping() -> None:
    (mistake,) = mistakes('Application: {workers: {}}\nLogging: INFO')
    assert str(mistake).startswith(
        "m.yml:2:10: Logging: found 'INFO'; expected a mapping, as logging.config.dictConfig"
    )
