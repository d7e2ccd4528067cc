"""A worker that crashes with its passwords in hand tells them to nobody, and no process wears one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.product import ARRIVAL, STOP, Product
from tests.integration.readable import Program
from tests.servers.sentry import SentryServer
from tests.servers.waiting import until

MARK = 'Zebra9Secret'  # a part of every password here
CLUMSY = """
from mikkoo.worker.relay import Relay

def fail(self, *arguments):
    settings = arguments[0] if arguments else self._settings
    url, password = settings.postgres_url, settings.rabbitmq.password
    raise RuntimeError(f'cannot use {{url}}, password={{password!r}}') from ValueError(repr(settings))

Relay.{method} = fail
"""


@pytest.mark.parametrize('method', ['__init__', 'run'])
def test_a_worker_that_crashes_tells_no_password(product: Product, tmp_path: Path, method: str) -> None:
    """With an exception whose text and local variables hold them, while it is made and while it works."""
    (tmp_path / 'clumsy').mkdir()
    (tmp_path / 'clumsy' / 'sitecustomize.py').write_text(CLUMSY.format(method=method))
    product.program = Program(product.program.script, {'PYTHONPATH': str(tmp_path / 'clumsy')})
    user, _, address = product.database.relay_url.partition('://')[2].partition('@')
    product.worker('alpha', postgres_url=f'postgresql://{user}:{MARK}%40x@{address}')
    product.workers['alpha']['rabbitmq'] |= {'username': 'guest', 'password': f'{MARK} y'}
    with SentryServer() as sentry:
        product.application['sentry_dsn'] = sentry.dsn.replace('publickey', f'publickey{MARK}')
        product.save()
        process = product.foreground()
        until(lambda: product.children()['alpha']['failures'] > 1, ARRIVAL, 'it has crashed twice')
        said = {'status': product('status').stdout, 'status --json': product('status', '--json').stdout}
        for pid in product.processes():
            said[f'process {pid}'] = worn(pid)
        assert product('stop').returncode == 0
        said['stdout'], said['stderr'] = process.communicate(timeout=STOP)
        said['log'] = product.logged()
        said['sentry'] = json.dumps(sentry.events)
    told = said['stderr'] if method == '__init__' else said['sentry']
    assert 'cannot use postgresql://' in told
    shown = {what: [line for line in text.splitlines() if MARK in line] for what, text in said.items()}
    assert not any(shown.values()), {what: lines for what, lines in shown.items() if lines}


def worn(pid: int) -> str:
    """What everybody, and its own user, may see of a process: name, command line, environment."""
    files = [Path(f'/proc/{pid}') / name for name in ('comm', 'cmdline', 'environ')]
    try:
        return '\n'.join(file.read_bytes().replace(b'\0', b'\n').decode() for file in files)
    except OSError:
        return ''  # it ended meanwhile
