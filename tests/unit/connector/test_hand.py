"""Messages in hand: each is settled once, and only what the callback has seen."""

from __future__ import annotations

import struct
import sys
import threading

import pytest

from mikkoo.common.errors import BrokerLost
from mikkoo.connector.hand import Hand

ACK, NACK = 80, 120


class Wire:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int, int]] = []
        self.lost = False

    def __call__(self, frame: bytes) -> None:
        if self.lost:
            raise BrokerLost('gone')
        kind, channel, size, class_id, method, tag, flags, end = struct.unpack('>BHIHHQBB', frame)
        assert (kind, channel, size, class_id, end) == (1, 7, 13, 60, 0xCE)
        self.sent.append((method, tag, flags))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def hand(wire: Wire) -> Hand:
    made = Hand(7, wire)
    for tag in (1, 2, 3, 4):
        made.take(tag)
    return made


def test_each_tag_is_settled_once(hand: Hand, wire: Wire) -> None:
    assert hand.ack(2)
    assert not hand.ack(2)
    assert not hand.nack(2, False, True)
    assert not hand.ack(9)
    assert not hand.ack(0)
    assert hand.nack(3, False, True)
    assert hand.nack(4, False, False)
    assert wire.sent == [(ACK, 2, 0), (NACK, 3, 2), (NACK, 4, 0)]
    assert (len(hand), hand.holds(1), hand.holds(2)) == (1, True, False)


@pytest.mark.parametrize(('tag', 'last', 'left'), [(0, 4, 0), (2, 2, 2), (9, 4, 0)])
def test_multiple_ends_at_what_was_seen(hand: Hand, wire: Wire, tag: int, last: int, left: int) -> None:
    assert hand.ack(tag, True)
    assert wire.sent == [(ACK, last, 1)]
    assert len(hand) == left
    assert not hand.ack(tag if tag else last, True)
    assert len(wire.sent) == 1


def test_multiple_nack(hand: Hand, wire: Wire) -> None:
    hand.ack(1)
    assert hand.nack(3, True, True)
    assert wire.sent == [(ACK, 1, 0), (NACK, 3, 3)]
    assert not hand.nack(1, True, True)


def test_what_could_not_be_sent_is_still_in_hand(hand: Hand, wire: Wire) -> None:
    wire.lost = True
    for settle in (lambda: hand.ack(1), lambda: hand.ack(0, True), lambda: hand.nack(1, False, True)):
        with pytest.raises(BrokerLost):
            settle()
    assert len(hand) == 4
    assert not hand.ack(9), 'nothing of ours, nothing to send'


def test_one_thread_settles_many_while_another_takes(wire: Wire) -> None:
    """A consumer's thread goes on taking; a look through all that is in hand must not trip over it."""
    made, count = Hand(7, wire), 20_000
    taker = threading.Thread(target=lambda: [made.take(tag) for tag in range(1, count + 1)])
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        taker.start()
        while taker.is_alive():
            made.ack(1, True)  # looks through all
    finally:
        sys.setswitchinterval(interval)
        taker.join()
    assert made.ack(0, True)
    assert wire.sent == [(ACK, 1, 1), (ACK, count, 1)]
    assert len(made) == 0
