"""RabbitMQ stops, closes connections or dies under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.faults.broker import (
    AT_ONCE,
    WINDOW,
    close_connections,
    nobody_failed,
    through,
    under_load,
    until_number,
    until_shown,
)
from tests.integration.faults.traffic import CONSUMED_AT_ONCE, Traffic
from tests.integration.product import Product
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer

LONGEST_DELAY = 30.0  # seconds between two attempts in a long outage

FAULTS = {
    'stop_app': (RabbitServer.stop_app, RabbitServer.start_app),
    'kill -9': (RabbitServer.kill, RabbitServer.start),
}


@pytest.fixture(scope='module')
def rabbitmq() -> Iterator[RabbitServer]:
    """A node of our own: these tests are not good for it."""
    with RabbitServer() as server:
        yield server


def test_connections_closed_by_an_operator(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy
) -> None:
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    for closed in (1, 2, 3):
        with under_load(flow, to_broker):
            close_connections(product)
        flow.flows_again('close_all_connections', time.time(), AT_ONCE)
        until_number(product, 'amqp.lost', closed)
    assert 'CONNECTION_FORCED' in product.until_logged('RabbitMQ is out')
    until_number(product, 'amqp.connected', 4)
    flow.finish(repeats=3 * WINDOW)
    nobody_failed(product)


@pytest.mark.parametrize('fault', FAULTS)
def test_the_broker_is_gone_and_comes_back(
    product: Product,
    traffic: Callable[..., Traffic],
    rabbitmq: RabbitServer,
    to_broker: Proxy,
    fault: str,
) -> None:
    """The queue is durable and the messages persistent: what was confirmed outlives even the kill."""
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    ends, comes_back = FAULTS[fault]
    with under_load(flow, to_broker):
        down = time.time()
        ends(rabbitmq)
    until_shown(product, 'PAUSED', 'RabbitMQ')
    comes_back(rabbitmq)
    over = time.time()
    product.reconnect()
    # The delay between attempts doubles: it is no longer than the outage was, nor than the longest.
    flow.flows_again(f'{fault}, after {over - down:.0f} s', over, 3 * min(LONGEST_DELAY, over - down + 2))
    until_number(product, 'amqp.lost', 1)
    until_number(product, 'amqp.connected', 2)
    flow.finish(repeats=WINDOW + CONSUMED_AT_ONCE)
    nobody_failed(product)
