"""What RabbitMQ knows is changed under load: exchange, queue, permissions, virtual host, password."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.faults.broker import (
    WINDOW,
    broker_user,
    close_connections,
    insert_batch,
    nobody_failed,
    number,
    stays,
    through,
    under_load,
    until_number,
    until_shown,
    worker,
)
from tests.integration.faults.traffic import ARRIVALS, EXCHANGE, QUEUE, Traffic
from tests.integration.product import SAVE, START, Product
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

PATIENT = (
    100  # max_failures: what RabbitMQ refuses is that event's failure, and the fault outlasts ten of them
)
HELD = 3 * 10.0  # seconds until it flows again, behind what was inserted meanwhile; retry_delay is 1 s
GONE = 5.0  # seconds that a fault lasts
DELAYED = 3 * 10.0  # seconds until the next attempt after an outage of so long
FULL = 60.0  # seconds
LENGTH = 500  # messages that the queue takes


@pytest.fixture
def login(product: Product, to_broker: Proxy) -> Iterator[dict[str, str]]:
    """A worker's `rabbitmq` section with a user of our own."""
    with broker_user(product) as name:
        yield through(to_broker, product, username=name, password='secret')


def tried_again(product: Product) -> None:
    until(lambda: number(product, 'retried') > 0, START, lambda: f'events are tried again: {worker(product)}')


def test_an_exchange_deleted_and_made_again(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy
) -> None:
    """Its events are tried again; what the closed channel left unconfirmed is repeated."""
    flow = traffic(max_failures=PATIENT, rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    with under_load(flow, to_broker):
        product.channel.exchange_delete(EXCHANGE)
    tried_again(product)
    stays(GONE, lambda: worker(product)['state'] == 'RUNNING', product.logged)
    product.arrivals(ARRIVALS, EXCHANGE, 'good.#')
    flow.flows_again('exchange deleted and made again', time.time(), HELD)
    assert 'NOT_FOUND' in product.until_logged('refused 404')
    flow.finish(repeats=WINDOW)
    assert not number(product, 'amqp.lost')


def test_write_permission_taken_away_and_given_back(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy, login: dict[str, str]
) -> None:
    """RabbitMQ tells at the next channel: it remembers for each what was allowed."""
    flow = traffic(max_failures=PATIENT, rabbitmq=login)
    product.run()
    flow.flows()
    permit = ('set_permissions', '-p', product.vhost, login['username'], '.*')
    product.rabbitmq.ctl(*permit, '^$', '.*')
    with under_load(flow, to_broker):
        close_connections(product)
    assert 'ACCESS_REFUSED' in product.until_logged('refused 403')
    stays(GONE, lambda: worker(product)['state'] == 'RUNNING', product.logged)
    product.rabbitmq.ctl(*permit, '.*', '.*')
    flow.flows_again('write permission given back', time.time(), HELD)
    flow.finish(repeats=2 * WINDOW)


def test_all_permissions_taken_away_and_given_back(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy, login: dict[str, str]
) -> None:
    """The virtual host is closed to the user: an outage, nobody's failure."""
    flow = traffic(rabbitmq=login)
    product.run()
    flow.flows()
    product.rabbitmq.ctl('clear_permissions', '-p', product.vhost, login['username'])
    with under_load(flow, to_broker):
        close_connections(product)
    until_shown(product, 'PAUSED', 'access to vhost', 'refused')
    stays(GONE, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    product.rabbitmq.ctl('set_permissions', '-p', product.vhost, login['username'], '.*', '.*', '.*')
    flow.flows_again('all permissions given back', time.time(), DELAYED)
    until_number(product, 'amqp.connected', 2)
    flow.finish(repeats=WINDOW)
    nobody_failed(product)


def test_a_virtual_host_deleted_and_made_again(product: Product, traffic: Callable[..., Traffic]) -> None:
    """Its queues go with it, so they are empty then; what is inserted meanwhile waits."""
    flow = traffic(max_failures=PATIENT)  # the exchange is made a moment after its virtual host
    product.run()
    flow.flows()
    flow.producer.pause()
    product.until_settled()
    until(lambda: product.queued(ARRIVALS) == 0, START, 'the recorder has taken everything')
    product.rabbitmq.delete_vhost(product.vhost)
    flow.producer.resume()
    until_shown(product, 'PAUSED', product.vhost, 'not found')
    stays(GONE, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    product.rabbitmq.add_vhost(product.vhost)
    product.reconnect()
    product.arrivals(ARRIVALS, EXCHANGE, 'good.#')
    flow.flows_again('virtual host made again', time.time(), DELAYED)
    flow.finish(repeats=0)


def test_a_changed_password(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy, login: dict[str, str]
) -> None:
    """Until the file is edited it is an outage; the edit, in the running daemon, ends it."""
    flow = traffic(rabbitmq=login)
    product.run()
    flow.flows()
    product.rabbitmq.ctl('change_password', login['username'], 'changed')
    with under_load(flow, to_broker):
        close_connections(product)
    until_shown(product, 'PAUSED', 'ACCESS_REFUSED')
    stays(GONE, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    product.workers[QUEUE]['rabbitmq'] = {**login, 'password': 'changed'}
    product.save()
    flow.flows_again('password changed, from the edit on', time.time(), SAVE + HELD)
    assert worker(product)['restarts'] == 1
    flow.finish(repeats=WINDOW)
    nobody_failed(product)


def test_a_full_queue(product: Product, traffic: Callable[..., Traffic]) -> None:
    """What it rejects (overflow: reject-publish) is sent again for as long as it takes, and not counted."""
    flow = traffic()
    policy = f'{{"max-length": {LENGTH}, "overflow": "reject-publish"}}'
    product.rabbitmq.ctl('set_policy', '-p', product.vhost, 'full', f'^{ARRIVALS}$', policy)
    product.run()
    flow.flows()
    flow.recorder.pause()
    insert_batch(flow)
    until_shown(product, 'PAUSED', 'a queue is full', within=START)
    stays(FULL, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    flow.recorder.resume()
    flow.flows_again('a queue full for a minute', time.time(), FULL)
    assert number(product, 'nacked') > LENGTH and not number(product, 'amqp.lost')
    flow.finish(repeats=0)
    nobody_failed(product)
