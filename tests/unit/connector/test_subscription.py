"""When the acks of a run of messages leave: together, soon, and before the link is left."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

import pytest

from mikkoo.common.amqp_mailbox import Mailbox, Raw
from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.errors import BrokerLost
from mikkoo.connector.subscription import Subscription


class Link:
    """A link's place: what is sent is the (tag, multiple) of acks, `soon` what it was asked to call."""

    place = 'here'

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.acks: list[tuple[int, bool]] = []
        self.soon: list[Callable[[], None]] = []
        self.alive = True

    def open_mailbox(self) -> tuple[int, Mailbox]:
        return 1, self.mailbox

    def raise_if_lost(self) -> None:
        if not self.alive:
            raise BrokerLost('gone')

    def send(self, mailbox: Mailbox, data: bytes) -> None:
        self.raise_if_lost()
        tag, flags = struct.unpack_from('>QB', data, 11)
        self.acks.append((tag, flags == 1))

    def call_soon(self, act: Callable[[], None]) -> None:
        self.raise_if_lost()
        self.soon.append(act)


@pytest.fixture
def link() -> Link:
    return Link()


def subscribed(link: Link, messages: int, prefetch: int = 40) -> Subscription:
    for tag in range(1, messages + 1):
        method = struct.pack('>HHB1sQB', 60, 60, 1, b'c', tag, 0) + b'\0\1q'
        link.mailbox.deliveries.put(Raw(method, struct.pack('>HHQH', 60, 0, 1, 0), b'x'))

    def declare(*_: Any) -> None:
        raise AssertionError('nothing is declared here')

    return Subscription(cast(SharedLink, link), 'q', prefetch, declare)


def handle_one(subscription: Subscription) -> None:
    delivery = subscription.next(0)
    assert delivery is not None
    subscription.channel.basic_ack(delivery.method.delivery_tag)


def test_acks_wait_while_messages_do_and_the_link_is_asked_once(link: Link) -> None:
    subscription = subscribed(link, 30)
    for _ in range(9):
        handle_one(subscription)
    assert (link.acks, len(link.soon)) == ([], 1)
    handle_one(subscription)
    assert link.acks == [(10, True)]
    handle_one(subscription)
    link.soon.pop()()
    assert link.acks == [(10, True), (11, False)]
    handle_one(subscription)
    assert len(link.soon) == 1, 'what is owed after a flush is flushed again'


def test_the_ack_of_the_last_that_waits_leaves_at_once(link: Link) -> None:
    subscription = subscribed(link, 2)
    handle_one(subscription)
    handle_one(subscription)
    assert link.acks == [(2, True)]


@pytest.mark.parametrize('prefetch', [1, 7])
def test_with_few_in_hand_no_ack_waits(link: Link, prefetch: int) -> None:
    subscription = subscribed(link, 3, prefetch)
    handle_one(subscription)
    assert link.acks == [(1, False)] and not link.soon


@pytest.mark.parametrize('before', [0, 1])  # 1: the link was asked to flush already
def test_an_ack_that_would_wait_hears_of_a_lost_link(link: Link, before: int) -> None:
    subscription = subscribed(link, 4)
    for _ in range(before):
        handle_one(subscription)
    delivery = subscription.next(0)
    assert delivery is not None
    link.alive = False
    with pytest.raises(BrokerLost):
        subscription.hand.ack(delivery.method.delivery_tag)
    assert subscription.hand.holds(delivery.method.delivery_tag)


def test_what_is_owed_leaves_before_the_link_is_closed(link: Link) -> None:
    subscription = subscribed(link, 5)
    handle_one(subscription)
    subscription.leave()
    handle_one(subscription)
    assert link.acks == [(1, False), (2, False)]


def test_a_link_that_is_lost_meanwhile_hides_nothing(link: Link) -> None:
    """A callback's SystemExit ends the consumer; BrokerLost in its place would have it connect again."""
    subscription = subscribed(link, 5)
    handle_one(subscription)
    link.alive = False
    with pytest.raises(SystemExit):
        try:
            raise SystemExit
        finally:
            subscription.leave()
