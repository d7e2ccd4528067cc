"""Messages in hand: each is settled once, and only what the callback has seen."""

from __future__ import annotations

import struct
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


class Broker:
    """The other end: applies what is sent, and refuses an unknown tag as RabbitMQ does."""

    def __init__(self, count: int) -> None:
        self.unsettled = set(range(1, count + 1))
        self.verdicts: dict[int, int] = {}

    def __call__(self, frame: bytes) -> None:
        method, tag, flags = struct.unpack_from('>HQB', frame, 9)
        told = {one for one in self.unsettled if one <= tag} if flags & 1 else {tag} & self.unsettled
        assert told, f'unknown delivery tag {tag}'
        self.unsettled -= told
        self.verdicts |= dict.fromkeys(told, method)


def test_acks_in_order_leave_together(wire: Wire) -> None:
    waiting = True
    hand = Hand(7, wire, 3, lambda: waiting)
    for tag in range(1, 9):
        hand.take(tag)
    assert hand.ack(1) and hand.ack(2)
    assert (wire.sent, len(hand), hand.holds(1)) == ([], 6, False)
    assert not hand.ack(2)
    assert hand.ack(3)
    assert wire.sent == [(ACK, 3, 1)], 'as many as may be owed'
    hand.ack(4)
    waiting = False
    hand.ack(5)
    assert wire.sent[1:] == [(ACK, 5, 1)], 'no other message waits'
    waiting = True
    hand.ack(6)
    hand.flush()
    hand.flush()
    assert wire.sent[2:] == [(ACK, 6, 0)]
    hand.ack(8)
    assert wire.sent[3:] == [(ACK, 8, 0)], 'an older one is in hand: it speaks for itself alone'


def test_who_leaves_owes_nothing(wire: Wire) -> None:
    """Other threads settle while the consumer ends: what waited would go behind the channel's end."""
    hand = Hand(7, wire, 5, lambda: True)
    for tag in (1, 2, 3):
        hand.take(tag)
    hand.ack(1)
    hand.leave()
    assert wire.sent == [(ACK, 1, 0)]
    hand.ack(2)
    assert wire.sent == [(ACK, 1, 0), (ACK, 2, 0)]


def test_what_was_released_is_released_once(hand: Hand, wire: Wire) -> None:
    hand.hold(1)
    assert hand.ack(1)
    hand.release(1)
    hand.release(1)
    assert wire.sent == [(ACK, 1, 0)]


@pytest.mark.parametrize('settle', ['ack', 'nack'])
def test_what_is_owed_goes_before_what_speaks_for_many(wire: Wire, settle: str) -> None:
    hand = Hand(7, wire, 5, lambda: True)
    for tag in (1, 2, 3):
        hand.take(tag)
    hand.ack(1)
    assert hand.ack(0, True) if settle == 'ack' else hand.nack(0, True, True)
    hand.flush()
    assert wire.sent == [(ACK, 1, 0), (ACK, 3, 1) if settle == 'ack' else (NACK, 3, 3)]


@given(st.data(), st.integers(1, 5))
def test_what_is_said_of_each_message_is_what_the_broker_hears(data: st.DataObject, together: int) -> None:
    count = 8
    broker, said, taken = Broker(count), dict[int, int](), 0
    hand = Hand(7, broker, together, lambda: True)
    for _ in range(data.draw(st.integers(5, 25))):
        step = data.draw(
            st.sampled_from(['take', 'take', 'ack', 'ack', 'many', 'nack', 'refuse', 'held', 'flush'])
        )
        seen = [tag for tag in range(1, taken + 1) if tag not in said]
        tag = data.draw(st.sampled_from(seen[:2] or [0]) | st.integers(0, count))
        if step == 'take' and taken < count:
            taken += 1
            hand.take(taken)
        elif step in ('ack', 'nack'):
            told = hand.ack(tag) if step == 'ack' else hand.nack(tag, False, True)
            assert told == (tag in seen)
            said |= {tag: ACK if step == 'ack' else NACK} if told else {}
        elif step in ('many', 'refuse'):
            hand.ack(tag, True) if step == 'many' else hand.nack(tag, True, False)
            reached = [one for one in seen if not tag or one <= tag]
            said |= dict.fromkeys(reached, ACK if step == 'many' else NACK)
        elif step == 'held' and seen:
            hand.hold(seen[-1])
            hand.ack(seen[-1])
            assert seen[-1] in broker.unsettled
            hand.release(seen[-1])
            said[seen[-1]] = ACK
        elif step == 'flush':
            hand.flush()
            assert broker.verdicts == said
        assert broker.verdicts.items() <= said.items(), 'nothing is settled that nobody settled'
    hand.flush()
    assert broker.verdicts == said


def test_others_settle_while_the_consumer_takes() -> None:
    count, failures = 1_000, list[BaseException]()
    hand = Hand(7, lambda frame: None, 3, lambda: True)
    begun = threading.Event()

    def settle() -> None:
        begun.set()
        try:
            for tag in range(1, 200):
                hand.nack(tag, True, False)
        except RuntimeError as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for tag in range(1, count):
            hand.take(tag)
        other = threading.Thread(target=settle)
        other.start()
        begun.wait()
        for tag in range(count, 20 * count):
            hand.take(tag)
        other.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []
    assert len(hand) == 20 * count - 200


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
