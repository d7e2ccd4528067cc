"""What the fault tests of RabbitMQ share: the way through a proxy, and what the worker has counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.integration.faults.traffic import EXCHANGE, POISON_EVERY, PRODUCE, QUEUE, Traffic
from tests.integration.product import Product
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

WINDOW = 1_000  # confirm_window: what a lost link repeats at most
BATCH = 4 * WINDOW  # events
SLOWLY = 50_000  # bytes a second each way: a batch takes half a minute
AT_ONCE = 3 * 5.0  # seconds until it flows again: the first attempt at the next link is 0.5 s later
REPORTED = 30.0  # seconds until a change is seen in a worker's report; one or two on an idle machine
LOOK = 0.1  # seconds between two looks at what has to stay as it is
WATERMARK = '1GB'  # vm_memory_high_watermark.absolute of the tests' servers


def through(proxy: Proxy, product: Product, **settings: Any) -> dict[str, Any]:
    """A worker's `rabbitmq` section, behind a proxy."""
    return {'host': '127.0.0.1', 'port': proxy.port, 'vhost': product.vhost, **settings}


def worker(product: Product) -> dict[str, Any]:
    """What `mikkood status` knows of the worker."""
    return product.children()[QUEUE]


def number(product: Product, name: str) -> float:
    """One of its counters, 0 where it has not counted."""
    return float(worker(product)['numbers'].get(name, 0))


def until_number(product: Product, name: str, value: float) -> None:
    """Until a counter has this value; the next look has to agree."""
    until(
        lambda: number(product, name) == value,
        REPORTED,
        lambda: f'{name} is {value:g}: {worker(product)}\n{product.logged()[-5000:]}',
    )


def until_shown(product: Product, state: str, *words: str, within: float = REPORTED) -> str:
    """Until the worker is in this state, with these words in the reason; the reason."""

    def shown() -> bool:
        child = worker(product)
        return child['state'] == state and all(word in child['reason'] for word in words)

    until(shown, within, lambda: f'{state} {words}: {worker(product)}\n{product.logged()[-5000:]}')
    return str(worker(product)['reason'])


def stays(seconds: float, condition: Callable[[], object], what: Callable[[], str]) -> None:
    """The condition holds at every look for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), what()
        time.sleep(LOOK)


def insert_batch(flow: Traffic) -> None:
    """Events of one transaction, which are in one batch; several windows of them."""
    flow.product.sql(PRODUCE, BATCH, QUEUE, EXCHANGE, POISON_EVERY)


@contextmanager
def under_load(flow: Traffic, proxy: Proxy) -> Iterator[None]:
    """A batch is on its way, slowly: what happens meanwhile meets messages in flight."""
    proxy.throttle(SLOWLY)
    insert_batch(flow)
    until(lambda: number(flow.product, 'in_flight') > WINDOW // 2, REPORTED, 'messages are in flight')
    try:
        yield
    finally:
        proxy.throttle(0)


def nobody_failed(product: Product) -> None:
    """No event was tried again or is marked as failing: the poison alone has failed, at once."""
    codes = product.sql('select distinct reason_code from mikkoo.dead_letter')
    assert codes in ([], [('untranslatable',)]), codes
    assert product.sql('select count(*) from mikkoo.failing_event') == [(0,)]
    until(
        lambda: number(product, 'failed') == number(product, 'dead'),
        REPORTED,
        lambda: f'only what is dead has failed: {worker(product)}',
    )
    assert not number(product, 'retried'), product.logged()


@contextmanager
def memory_alarm(rabbitmq: RabbitServer) -> Iterator[None]:
    """The node blocks whoever publishes."""
    rabbitmq.ctl('set_vm_memory_high_watermark', '0.00001')
    try:
        yield
    finally:
        rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', WATERMARK)


@contextmanager
def broker_user(product: Product) -> Iterator[str]:
    """A user `secret` of our own, who may do everything in the virtual host; its name."""
    name = f'user_{product.vhost}'
    product.rabbitmq.ctl('add_user', name, 'secret')
    try:
        product.rabbitmq.ctl('set_permissions', '-p', product.vhost, name, '.*', '.*', '.*')
        yield name
    finally:
        product.rabbitmq.ctl('delete_user', name)


def close_connections(product: Product) -> None:
    """As an operator would, by rabbitmqctl; ours as well."""
    product.rabbitmq.ctl('close_all_connections', '--vhost', product.vhost, 'closed by a test')
    product.reconnect()
