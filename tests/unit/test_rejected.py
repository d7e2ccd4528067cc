from mikkoo.worker.event import Message
from mikkoo.worker.flights import Flight
from mikkoo.worker.rejected import CALM, MOST_ROUNDS, Rejected
from mikkoo.worker.routes import FULL_AFTER, PutBack, Routes
from tests.unit.test_flights import flight


def routes(several: bool = False, may: bool = True) -> Routes:
    made = Routes(1.0, lambda event: may)
    if several:
        made.see(Message('exchange', 'key', {}, b''))
        made.see(Message('another', 'key', {}, b''))
    return made


def flights(count: int) -> list[Flight]:
    return [flight(number) for number in range(1, count + 1)]


def test_they_come_back_in_the_order_of_their_rejection_and_are_counted_in_bytes() -> None:
    rejected = Rejected(routes())
    rejected.add(flights(3), 0.0)
    assert (len(rejected), rejected.bytes) == (3, 30)
    again, failed = rejected.take(0.0)
    assert [one.event.id for one in again] == [1, 2, 3] and failed == []
    assert (len(rejected), rejected.bytes) == (0, 0)


def test_delays_grow_while_rejections_go_on_and_are_short_after_a_calm() -> None:
    rejected = Rejected(routes())
    delays, now = [], 0.0
    for _ in range(10):
        rejected.add(flights(1), now)
        delays.append(rejected.due - now)
        now = rejected.due
        rejected.take(now)
    assert delays[0] <= 0.1 and delays[-1] >= 2.5 and max(delays) <= 5.0
    now += CALM + 1
    rejected.add(flights(1), now)
    assert rejected.due - now <= 0.1


def rounds(passing: int, rejecting: int, count: int) -> tuple[int, int]:
    """Rounds in which so many pass and so many are rejected; (held, failed) after them."""
    rejected = Rejected(routes())
    again, failed = flights(rejecting), []
    for _ in range(count):
        rejected.add(again, 0.0)
        rejected.passed(flights(passing), 0.0)
        again, gone = rejected.take(0.0)
        failed += gone
    return len(again), len(failed)


def test_a_full_queue_is_nobodys_failure_however_long_it_lasts() -> None:
    assert rounds(passing=0, rejecting=5, count=1000) == (5, 0)


def test_a_full_queue_that_is_slowly_drained_is_nobodys_failure() -> None:
    assert rounds(passing=4, rejecting=5, count=1000) == (5, 0)


def test_a_message_that_is_rejected_while_most_others_pass_fails_in_the_end() -> None:
    assert rounds(passing=6, rejecting=5, count=MOST_ROUNDS - 1) == (5, 0)
    assert rounds(passing=6, rejecting=5, count=MOST_ROUNDS) == (0, 5)


def test_what_a_full_route_rejects_is_put_back_if_there_are_others() -> None:
    rejected = Rejected(routes(several=True))
    rejected.add(flights(2), 0.0)
    assert rejected.due < FULL_AFTER
    again, _ = rejected.take(FULL_AFTER - 0.1)
    rejected.add(again, FULL_AFTER - 0.1)
    assert rejected.due <= FULL_AFTER and rejected.take_put_back() == []
    assert rejected.take(FULL_AFTER) == ([], [])
    assert [one.event.id for one in rejected.take_put_back()] == [1, 2]
    rejected.add(flights(1), FULL_AFTER + 1)
    assert len(rejected) == 0 and rejected.bytes == 0, 'at once, while it is full'
    assert [one.delay for one in rejected.take_put_back()] == [FULL_AFTER + 1]
    assert rejected.take_put_back() == []


def held(made: Routes) -> tuple[list[Flight], list[PutBack]]:
    """What is sent again, and what is put back, after a minute of rejections."""
    rejected = Rejected(made)
    again = flights(3)
    for now in range(60):
        rejected.add(again, now)
        again, _ = rejected.take(now)
    return again, rejected.take_put_back()


def test_nothing_is_put_back_where_there_is_one_route_or_no_way_to_do_it() -> None:
    for made in (routes(), routes(several=True, may=False)):
        again, put_back = held(made)
        assert [one.event.id for one in again] == [1, 2, 3] and put_back == []


def test_rounds_are_not_made_in_a_rush_while_nothing_may_be_put_back() -> None:
    rejected = Rejected(routes(several=True, may=False))
    now, rounds = 0.0, 0
    while now < 60:
        rejected.add(flights(1), now)
        rejected.take(rejected.due)
        now, rounds = rejected.due, rounds + 1
    assert rounds < 40


def test_a_message_to_blame_is_not_put_back() -> None:
    """Others to its exchange pass all the time, so that its route is not full."""
    rejected = Rejected(routes(several=True))
    again, failed, now = flights(5), [], 0.0
    while again:
        rejected.add(again, now)
        for step in range(10):
            rejected.passed(flights(1), now + step / 10)
        now += 1
        again, failed = rejected.take(now)
    assert now == MOST_ROUNDS and len(failed) == 5 and rejected.take_put_back() == []
