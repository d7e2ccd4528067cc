"""The programs in examples/ run as they are, and docs/connector.md shows them as they are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mikkoo.connector import MQConnector, b64_to_dict
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.product import Product
from tests.servers.waiting import until

TOP = Path(__file__).parents[3]
EXAMPLES = TOP / 'examples'


@contextmanager
def running(name: str, folder: Path, vhost: str, **config: Any) -> Iterator[subprocess.Popen[str]]:
    """An example in a process of its own; only its virtual host is another. Ends by SIGTERM, with 0."""
    text, count = re.subn(r"vhost = '.*'", f'vhost = {vhost!r}', (EXAMPLES / name).read_text())
    assert count == 1
    program, file = folder / name, folder / 'mq_config.json'
    program.write_text(text)
    file.write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, str(program)],
        env={**os.environ, 'NEON_MQ_CONFIG_PATH': str(file)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=PATIENCE)
        assert (process.returncode, words) == (0, '')
    finally:
        process.kill()
        process.communicate()


def users(name: str) -> dict[str, Any]:
    return {name: {'username': 'guest', 'password': 'guest'}}


def test_a_service_that_answers_requests(stage: Stage, tmp_path: Path) -> None:
    place = {'server': stage.rabbitmq.host, 'port': stage.rabbitmq.port}
    with running('answering.py', tmp_path, stage.vhost, users=users('calculator'), **place):
        until(lambda: stage.exists('sums'), PATIENCE, 'it is ready')
        with stage.connection() as connection:
            connection.channel().queue_declare('mine')
            request = {'numbers': [1, 2, 39], 'reply_queue': 'mine'}
            asked = MQConnector.emit_mq_message(connection, 'sums', request, expiration=60_000)
            [(_, properties, body)] = stage.take('mine', 1)
    assert b64_to_dict(body) == {'message_id': asked, 'sum': 42}
    assert properties.expiration == '1000'


def test_asking_as_documented(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TOP / 'docs' / 'connector.md').read_text()
    [block] = [block for block in re.findall(r'```python\n(.*?)```', text, re.S) if 'def ask' in block]
    place = {'server': stage.rabbitmq.host, 'port': stage.rabbitmq.port}
    everybody = {**users('calculator'), **users('shop')}
    with running('answering.py', tmp_path, stage.vhost, users=everybody, **place):
        monkeypatch.setenv('NEON_MQ_CONFIG_PATH', str(tmp_path / 'mq_config.json'))
        names: dict[str, Any] = {}
        exec(block.replace('/calculator', stage.vhost), names)
        until(lambda: stage.exists('sums'), PATIENCE, 'it is ready')
        assert names['ask']([40, 2]) == 42


def test_a_service_that_consumes_relayed_events(product: Product, tmp_path: Path) -> None:
    """Through the whole of Mikkoo; the same event published twice by a producer has its effect once."""
    product.sql('create table public.booking (article text, amount integer)')
    product.create_queue('orders')
    product.arrivals('orders')
    product.worker('orders')
    product.run()
    place = {'server': product.rabbitmq.host, 'port': product.rabbitmq.port}
    folder = tmp_path / 'service'
    folder.mkdir()
    given = {'users': users('warehouse'), 'postgres_url': product.database.url, **place}
    with running('relayed_events.py', folder, product.vhost, **given):
        order = '{"article": "nut", "amount": %s}'
        insert = "select mikkoo.insert_event('orders', '', 'orders', %s, null, %s, null)"
        for number in (1, 1, 2):
            product.sql(insert, order % number, json.dumps({'message_id': f'order-{number}'}))
        product.sql("select mikkoo.insert_event('orders', '', 'orders', %s, null)", order % 3)
        product.until_settled()
        booked = 'select article, amount from public.booking order by amount'
        until(lambda: len(product.sql(booked)) == 3, PATIENCE, lambda: str(product.sql(booked)))
        until(lambda: product.queued('orders') == 0, PATIENCE, 'no message is left')
    assert product.sql(booked) == [('nut', 1), ('nut', 2), ('nut', 3)]


@pytest.mark.parametrize('name', sorted(path.name for path in EXAMPLES.glob('*.py')))
def test_the_documentation_shows_the_examples_as_they_are(name: str) -> None:
    blocks = re.findall(r'```python\n(.*?)```', (TOP / 'docs' / 'connector.md').read_text(), re.S)
    code = (EXAMPLES / name).read_text().split('"""', 2)[2].strip()
    assert code in [block.strip() for block in blocks]


def test_a_service_has_twenty_lines() -> None:
    code = (EXAMPLES / 'answering.py').read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_every_python_block_of_the_documentation_compiles() -> None:
    for block in re.findall(r'```python\n(.*?)```', (TOP / 'docs' / 'connector.md').read_text(), re.S):
        compile(block, 'docs/connector.md', 'exec')
