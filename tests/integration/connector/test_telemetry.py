"""Metrics and reports of a service, where its configuration asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mikkoo.common import reports
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector
from tests.servers.sentry import SentryServer
from tests.servers.statsd import StatsdServer
from tests.servers.waiting import until


@pytest.fixture
def no_reports() -> Iterator[None]:
    yield
    reports.configure(None)


def failing(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    if body == b'bad':
        raise RuntimeError('poison')


def test_metrics_leave_while_the_consumer_is_idle(stage: Stage) -> None:
    with StatsdServer() as server:
        statsd = {'enabled': True, 'host': '127.0.0.1', 'port': server.port, 'prefix': 'shop'}
        service = stage.service(statsd=statsd)
        service.register_consumer('in.put', None, 'q', failing, Collector(), max_attempts=2)
        stage.fill('q', b'good', b'bad')
        assert service.run_consumers(timeout=PATIENCE)
        stage.settled('q')
        wanted = {'subscribed': 1, 'handled': 1, 'callback_failed': 2, 'dead_lettered': 1}

        def arrived() -> bool:
            text = ' '.join(packet.decode() for packet in server.packets)
            return all(
                f'shop.connector.test_in_put.{name}:{count}|c' in text for name, count in wanted.items()
            )

        until(arrived, PATIENCE, lambda: str(server.packets))
        counted = service.consumers['in.put'].counted
        assert {name: counted[name] for name in wanted} == wanted


def test_a_dead_letter_is_reported(stage: Stage, no_reports: None) -> None:
    with SentryServer() as server:
        service = stage.service(sentry_dsn=server.dsn)
        service.register_consumer('a', None, 'q', failing, Collector(), max_attempts=1)
        stage.fill('q', b'bad')
        assert service.run_consumers(timeout=PATIENCE)
        stage.settled('q')
        until(lambda: server.events, PATIENCE, 'a report')
        service.stop()
        [event] = server.events
        assert event['tags'] == {'process': 'connector', 'worker': 'test'}
        assert event['contexts']['mikkoo']['dead_letter_queue'] == 'q.dead'
        assert event['exception']['values'][0]['type'] == 'RuntimeError'
