from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.errors import BrokerLost
from mikkoo.worker.event import Event, Message
from mikkoo.worker.flights import Flight, Flights


def event(number: int) -> Event:
    return Event(number, datetime.now(UTC), 1, None, 'key', 'body', 'exchange', None, None, None)


def flight(number: int, key: str = 'key', size: int = 10, **properties: Any) -> Flight:
    return Flight(event(number), Message('exchange', key, properties, b'body'), size)


def ids(flights: list[Flight]) -> list[int]:
    return [one.event.id for one in flights]


def filled(count: int) -> Flights:
    flights = Flights()
    for number in range(1, count + 1):
        assert flights.add(flight(number)) == number
    return flights


def test_multiple_takes_all_up_to_the_tag_in_publish_order() -> None:
    flights = filled(5)
    assert ids(flights.take(3, multiple=True)) == [1, 2, 3]
    assert (len(flights), flights.bytes) == (2, 20)


def test_single_acks_out_of_order_then_multiple() -> None:
    flights = filled(5)
    assert ids(flights.take(2, multiple=False)) == [2]
    assert ids(flights.take(4, multiple=True)) == [1, 3, 4]
    assert ids(flights.outstanding()) == [5]


def test_tag_zero_with_multiple_means_all() -> None:
    flights = filled(3)
    assert ids(flights.take(0, multiple=True)) == [1, 2, 3]


def test_a_tag_that_was_judged_takes_nothing() -> None:
    flights = filled(2)
    assert flights.take(1, multiple=False) and flights.take(1, multiple=False) == []


@pytest.mark.parametrize('multiple', [False, True])
def test_a_tag_that_was_not_sent_is_a_loss(multiple: bool) -> None:
    """Else acks without end for nothing would pass for progress, and one beyond the last for all."""
    flights = filled(2)
    with pytest.raises(BrokerLost, match='answered message 3 where 2 were sent'):
        flights.take(3, multiple)
    assert len(flights) == 2


def test_a_return_marks_the_oldest_equal_message_only_once_each() -> None:
    flights = Flights()
    for number in (1, 2, 3):
        flights.add(flight(number, key='lost' if number > 1 else 'good', type='t'))
    back = (312, 'NO_ROUTE', 'exchange', 'lost', {'type': 't'}, b'body')
    assert flights.mark_returned(*back)
    assert [one.returned is not None for one in flights.outstanding()] == [False, True, False]
    assert flights.mark_returned(*back)
    assert not flights.mark_returned(*back), 'a third Return has no third message'


def test_a_return_tells_messages_apart_by_their_properties() -> None:
    flights = Flights()
    flights.add(flight(1, headers={'to': 'a'}))
    flights.add(flight(2, headers={'to': 'b'}))
    assert flights.mark_returned(312, 'NO_ROUTE', 'exchange', 'key', {'headers': {'to': 'b'}}, b'body')
    assert [one.returned for one in flights.outstanding()] == [None, (312, 'NO_ROUTE')]


def test_a_return_comes_without_the_bcc_header() -> None:
    flights = Flights()
    flights.add(flight(1, headers={'BCC': ['x'], 'to': 'a'}))
    flights.add(flight(2, headers={'BCC': ['x'], 'to': 'b'}))
    flights.add(flight(3, headers={'BCC': ['x']}))
    assert flights.mark_returned(312, 'NO_ROUTE', 'exchange', 'key', {'headers': {'to': 'b'}}, b'body')
    assert flights.mark_returned(312, 'NO_ROUTE', 'exchange', 'key', {}, b'body')
    assert [one.returned is not None for one in flights.outstanding()] == [False, True, True]


def test_a_return_to_which_the_broker_has_added_is_known_by_its_message_id() -> None:
    """As interceptors of RabbitMQ's do: the time or the node in a header."""
    flights = Flights()
    for number in (1, 2):
        flights.add(flight(number, message_id=f'm{number}', headers={'to': 'a'}))
    back = {'message_id': 'm2', 'headers': {'to': 'a', 'timestamp_in_ms': 1}}
    assert flights.mark_returned(312, 'NO_ROUTE', 'exchange', 'key', back, b'body')
    assert [one.returned is not None for one in flights.outstanding()] == [False, True]
    assert not flights.mark_returned(312, 'NO_ROUTE', 'exchange', 'key', back, b'body')


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans())), st.integers(0, 30))
def test_whatever_is_taken_every_flight_is_taken_once_and_bytes_add_up(
    acks: list[tuple[int, bool]], count: int
) -> None:
    flights = filled(count)
    taken: list[int] = []
    for tag, multiple in acks:
        taken += ids(flights.take(min(tag, count), multiple))
    left = ids(flights.outstanding())
    assert sorted(taken + left) == list(range(1, count + 1))
    assert flights.bytes == 10 * len(left) and len(flights) == len(left)
