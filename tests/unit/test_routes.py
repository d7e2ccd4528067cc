from __future__ import annotations

import pytest

from mikkoo.worker.event import Message
from mikkoo.worker.flights import Flight
from mikkoo.worker.routes import (
    CALM,
    FORGOTTEN,
    FULL_AFTER,
    MOST_DELAY,
    PERIOD,
    Routes,
    names,
    route_of,
)
from tests.unit.test_flights import event


def flight(exchange: str, key: str = 'key', number: int = 1) -> Flight:
    return Flight(event(number), Message(exchange, key, {}, b''), 10)


A, B = flight('a'), flight('b')


def routes(least_delay: float = 1.0) -> Routes:
    made = Routes(least_delay, lambda event: True)
    made.see(A.message)
    made.see(B.message)
    return made


def rejecting(made: Routes, start: float, stop: float) -> Routes:
    """A is rejected each second."""
    now = start
    while now <= stop:
        made.rejected(A.message, now)
        now += 1
    return made


@pytest.mark.parametrize(
    ('first', 'second', 'several'),
    [
        (('a', 'x'), ('a', 'y'), False),
        (('a', 'x'), ('b', 'x'), True),
        (('', 'x'), ('', 'x'), False),
        (('', 'x'), ('', 'y'), True),
        (('', 'x'), ('a', 'x'), True),
    ],
)
def test_a_route_is_an_exchange_or_a_queue(
    first: tuple[str, str], second: tuple[str, str], several: bool
) -> None:
    made = Routes(1.0, lambda event: True)
    for exchange, key in (first, second):
        made.see(Message(exchange, key, {}, b''))
    assert made.several is several


def test_a_route_that_rejects_for_five_seconds_is_full_and_others_are_not() -> None:
    made = rejecting(routes(), 0, FULL_AFTER - 1)
    assert made.put_back(A, FULL_AFTER - 0.1) is None and made.full(FULL_AFTER - 0.1) == []
    put_back = made.put_back(A, FULL_AFTER)
    assert put_back is not None and put_back.event == A.event
    assert made.full(FULL_AFTER) == [('a', '')] and made.put_back(B, FULL_AFTER) is None


@pytest.mark.parametrize(
    ('least', 'full_for', 'delay'), [(1.0, 5, 5.0), (10.0, 5, 10.0), (1.0, 60, 60.0), (1.0, 900, MOST_DELAY)]
)
def test_delays_grow_with_the_time_that_nothing_was_taken(least: float, full_for: int, delay: float) -> None:
    put_back = rejecting(routes(least), 0, full_for).put_back(A, full_for)
    assert put_back is not None and put_back.delay == delay


def test_a_slow_consumer_does_not_make_a_full_queue_a_free_one() -> None:
    """One confirm a second among two rejections a second."""
    made = routes()
    for now in range(60):
        made.rejected(A.message, now)
        made.rejected(A.message, now + 0.3)
        made.passed([A], now + 0.5)
    put_back = made.put_back(A, 60)
    assert put_back is not None and put_back.delay == 1.0, 'soon again: there is room now and then'


def test_a_route_that_takes_most_is_not_full() -> None:
    made = routes()
    for now in range(60):
        made.rejected(A.message, now)
        made.passed([A, A], now + 0.5)
    assert made.put_back(A, 60) is None


def test_a_confirm_after_a_calm_ends_it() -> None:
    made = rejecting(routes(), 0, 20)
    made.passed([B], 20 + CALM)
    assert made.full(20 + CALM) == [('a', '')], 'of another route'
    made.passed([A], 20 + CALM)
    assert made.full(20 + CALM) == []
    made.rejected(A.message, 40)
    assert made.put_back(A, 40 + FULL_AFTER - 0.1) is None, 'begins anew'


def test_it_is_over_soon_when_the_queue_takes_messages_again() -> None:
    made = rejecting(routes(), 0, 20)
    now = 20.5
    while now <= 20 + 2 * PERIOD + 1:
        made.passed([A], now)
        now += 0.5
    made.rejected(A.message, now)
    assert made.put_back(A, now) is None


def test_an_old_rejection_is_forgotten() -> None:
    made = rejecting(routes(), 0, 20)
    made.rejected(A.message, 20 + FORGOTTEN + 1)
    assert made.put_back(A, 20 + FORGOTTEN + 1) is None
    made = rejecting(routes(), 0, 20)
    assert made.full(19 + FORGOTTEN) == [('a', '')] and made.full(21 + FORGOTTEN) == []


def test_names_of_routes() -> None:
    assert route_of(Message('', 'q', {}, b'')) == ('', 'q')
    assert names([('a', ''), ('', 'q')]) == "exchange 'a', queue 'q'"
    assert names([(text, '') for text in 'abcde']).endswith("exchange 'c' and 2 more")


def test_a_route_that_took_messages_last_is_not_full_however_long_nothing_comes() -> None:
    made = rejecting(routes(), 0, 1)
    made.passed([A], 2.0)
    assert made.full(8.0) == [('a', '')], 'not yet calm'
    assert made.full(500.0) == []
    made.rejected(A.message, 500.0)
    assert made.put_back(A, 500.0) is None, 'one rejection makes no full queue'


def test_routes_that_are_never_heard_of_again_are_forgotten() -> None:
    made = routes()
    for number in range(100):
        made.rejected(Message('', f'queue {number}', {}, b''), 0.0)
    made.rejected(A.message, FORGOTTEN + 1)
    assert len(made._rejecting) == 1
