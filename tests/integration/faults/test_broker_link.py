"""The way to RabbitMQ is cut, stalled, half-closed, throttled: nothing is lost, nobody has failed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.integration.faults.broker import (
    AT_ONCE,
    REPORTED,
    WINDOW,
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
from tests.integration.faults.traffic import EXCHANGE, QUEUE, Traffic
from tests.integration.product import Product
from tests.servers.proxy import Proxy, Side
from tests.servers.waiting import until

TIMEOUT = 2.0  # confirm_timeout, where it has to end a link
STALLED = 5.0  # seconds
THROTTLED = 15.0  # seconds
SLOW = 20_000  # bytes a second, each way
LARGE = 400_000  # bytes of a message that is on the way for 20 s
NEVER = 10**9  # no event is poison
LARGE_TIMEOUT = 8.0  # confirm_timeout, which is less; more than the buffers of a proxy hide

CUTS: dict[str, Callable[[Proxy], None]] = {
    'reset': lambda proxy: proxy.cut(),
    'end of stream': lambda proxy: proxy.cut(reset=False),
    'half-closed towards us': lambda proxy: proxy.half_close('client'),
    'half-closed towards RabbitMQ': lambda proxy: proxy.half_close('server'),
}


@pytest.mark.parametrize('fault', CUTS)
def test_a_cut_connection_is_made_again(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy, fault: str
) -> None:
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    for cuts in (1, 2, 3):
        with under_load(flow, to_broker):
            CUTS[fault](to_broker)
        flow.flows_again(fault, time.time(), AT_ONCE)
        until_number(product, 'amqp.lost', cuts)
    until_number(product, 'amqp.connected', 4)
    assert to_broker.connections == 4
    flow.finish(repeats=3 * WINDOW)
    nobody_failed(product)


# Bytes until the cut: some of them are in the middle of a frame, wherever the first one began.
@pytest.mark.parametrize(
    ('towards', 'counts'), [('server', (20_001, 20_100, 50_007)), ('client', (1_001, 1_010, 1_019))]
)
def test_cut_in_the_middle_of_a_frame(
    product: Product,
    traffic: Callable[..., Traffic],
    to_broker: Proxy,
    towards: Side,
    counts: tuple[int, ...],
) -> None:
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    for cuts, count in enumerate(counts, 1):
        to_broker.cut_after(count, towards)
        insert_batch(flow)
        until(lambda: product.logged().count('RabbitMQ is out') == cuts, REPORTED, product.logged)  # noqa: B023
        flow.flows_again(f'cut in a frame towards the {towards}', time.time(), AT_ONCE)
    assert to_broker.connections == 1 + len(counts)
    flow.finish(repeats=len(counts) * WINDOW)
    nobody_failed(product)


def test_cut_between_publish_and_confirm(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy
) -> None:
    """A whole window was stored and never confirmed: exactly that is repeated."""
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    flow.producer.pause()
    product.until_settled()
    to_broker.hold('client')
    seen = flow.recorder.latest()
    insert_batch(flow)
    flow.producer.resume()
    until_number(product, 'in_flight', WINDOW)
    until(
        lambda: sum(n > seen for n in flow.recorder.counts()) == WINDOW, 30, 'the window arrives, unconfirmed'
    )
    to_broker.cut()
    flow.flows_again('cut between publish and confirm', time.time(), AT_ONCE)
    tally = flow.finish(repeats=WINDOW)
    assert tally.repeats == WINDOW
    nobody_failed(product)


def test_stalled_for_a_while(product: Product, traffic: Callable[..., Traffic], to_broker: Proxy) -> None:
    """Shorter than confirm_timeout: the link outlives it, and nothing is repeated."""
    flow = traffic(rabbitmq=through(to_broker, product))
    product.run()
    flow.flows()
    to_broker.stall()
    until(lambda: 'confirms' in worker(product)['waits'], 30, lambda: f'it waits: {worker(product)}')
    stays(STALLED, lambda: not number(product, 'amqp.lost'), product.logged)
    to_broker.resume()
    flow.flows_again('stalled for a while', time.time(), AT_ONCE)
    assert to_broker.connections == 1
    flow.finish(repeats=0)
    nobody_failed(product)


@pytest.mark.parametrize(
    ('settings', 'heartbeat', 'reason'),
    [
        ({'confirm_timeout': TIMEOUT}, 0, 'no confirm for 2 s'),
        ({}, 1, '2 heartbeats missed'),
    ],
)
def test_stalled_for_good(
    product: Product,
    traffic: Callable[..., Traffic],
    to_broker: Proxy,
    settings: dict[str, float],
    heartbeat: int,
    reason: str,
) -> None:
    """The connection never moves again, and nobody is told: its own deadline ends it."""
    flow = traffic(rabbitmq=through(to_broker, product, heartbeat_interval=heartbeat), **settings)
    product.run()
    flow.flows()
    to_broker.hold()
    flow.flows_again(f'stalled for good, {reason}', time.time(), 3 * TIMEOUT + AT_ONCE)
    product.until_logged(reason)
    assert to_broker.connections == 2
    flow.finish(repeats=WINDOW)
    nobody_failed(product)


def test_stalled_until_the_link_is_given_up(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy
) -> None:
    """New connections stall, too. What the old one held reaches RabbitMQ in the end, and is repeated."""
    flow = traffic(rabbitmq=through(to_broker, product), confirm_timeout=TIMEOUT)
    product.run()
    flow.flows()
    to_broker.stall()
    until_shown(product, 'PAUSED', 'no confirm for 2 s')
    stays(STALLED, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    to_broker.resume()
    flow.flows_again('stalled until the link was given up', time.time(), AT_ONCE)
    assert to_broker.connections <= 3
    flow.finish(repeats=WINDOW)
    nobody_failed(product)


def test_throttled(product: Product, traffic: Callable[..., Traffic], to_broker: Proxy) -> None:
    """Events go on arriving, on the one link, however little of the backlog that is."""
    rabbitmq = through(to_broker, product, heartbeat_interval=1)
    flow = traffic(rate=500, rabbitmq=rabbitmq, confirm_timeout=TIMEOUT)
    product.run()
    flow.flows()
    to_broker.throttle(SLOW)
    end = time.monotonic() + THROTTLED
    while time.monotonic() < end:
        seen = flow.recorder.latest()
        until(lambda: flow.recorder.latest() > seen, AT_ONCE, f'an event behind {seen} arrives')  # noqa: B023
        assert not number(product, 'amqp.lost'), product.logged()
    assert number(product, 'pending_events') + number(product, 'in_flight') > 0, 'it was slow'
    to_broker.throttle(0)
    flow.flows_again('throttled to 20 kB/s', time.time(), AT_ONCE)
    assert to_broker.connections == 1
    flow.finish(repeats=0)
    nobody_failed(product)


def test_throttled_with_a_message_that_takes_longer_than_confirm_timeout(
    product: Product, traffic: Callable[..., Traffic], to_broker: Proxy
) -> None:
    """While its bytes move the link is not given up: else it would be sent again and again for ever."""
    flow = traffic(
        rate=20, poison_every=NEVER, rabbitmq=through(to_broker, product), confirm_timeout=LARGE_TIMEOUT
    )
    product.run()
    flow.flows()
    to_broker.throttle(SLOW)
    [(large,)] = product.sql(
        """with made as (insert into produced default values returning n)
           select n from made, pgq.insert_event(%s, 'good.large',
               format('{"n": %%s, "pad": "%%s"}', n, repeat('x', %s)), %s, 'application/json', null, null)""",
        QUEUE, LARGE, EXCHANGE,
    )  # fmt: skip
    until(lambda: flow.recorder.counts()[large], 6 * LARGE / SLOW, product.logged)
    to_broker.throttle(0)
    flow.flows_again('throttled, a message of 400 kB', time.time(), AT_ONCE)
    assert to_broker.connections == 1
    flow.finish(repeats=0)
