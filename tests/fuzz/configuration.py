"""Any text as a configuration: settings, or mistakes that stand in it; in bounded time and memory."""

from __future__ import annotations

import time

from mikkoo.common import config
from mikkoo.common.errors import ConfigurationError, Mistake

FILE = 'm.yml'
ENVIRONMENT = {'X': 'x', 'EMPTY': ''}
SLOWEST = 20.0  # seconds of CPU for the largest file that is read
LINE_ENDS = '\n\r\x85\u2028\u2029'  # of YAML 1.1
LONGEST_REPORT = 16 * 1024 * 1024  # characters
SEEDS = [
    b'Application:\n  workers: {w: {postgres_url: a=b, rabbitmq: {host: h, port: 1, ssl_options: true}}}\n',
    b'x-w: &w {postgres_url: "${X:-host=a}"}\nApplication: {workers: {a: *w, b: {<<: *w, queue: q}}}\n',
    b'Application: {workers: {w: {postgresql_url: "postgresql://u:p@h:1,i:2/d?service=s",\n'
    b'  rabbitmq_url: "amqps://u:p%20@h:1/v?heartbeat=5", retry_interval: 5 min, umask: 0o22}}}\n',
    b'Logging:\n  version: 1\n  formatters: {f: {format: "{message}", style: "{"}}\n'
    b'  handlers: {h: {class: logging.NullHandler, formatter: f, debug_only: yes}}\n'
    b'  loggers: {a.b: {level: INFO, handlers: [h]}}\n',
    b'%YAML 1.2\n---\n? a\n: - |\n  text\n  - >-\n   folded\n...\n',
    b'Application: {workers: {}, auditors: {a: {postgres_url: a=b, queue: q, bindings: [{exchange: e,\n'
    b' routing_key: k, arguments: {x-match: all, n: 1}}], action: mark}}}\n',
    b'Application: {sentry_dsn: [YOUR SENTRY DSN], workers: {"\\ud800": !!binary "a"}}\n',
]


def check(text: str) -> int:
    """The number of mistakes. Fails on any other exception, and on a mistake that is not in the text."""
    began = time.process_time()
    mistakes: tuple[Mistake, ...] = ()
    try:
        config.parse(text, FILE, ENVIRONMENT)
    except ConfigurationError as error:
        mistakes = error.mistakes
        assert mistakes
    assert time.process_time() - began < SLOWEST
    assert sum(len(str(mistake)) for mistake in mistakes) < LONGEST_REPORT
    lines = sum(map(text.count, LINE_ENDS)) + 1
    for mistake in mistakes:
        assert mistake.file == FILE
        assert mistake.allowed
        assert 0 <= mistake.line <= lines, str(mistake)
        str(mistake).encode()
    return len(mistakes)


def run(data: bytes) -> None:
    """For atheris."""
    check(data.decode('utf-8', 'replace'))
