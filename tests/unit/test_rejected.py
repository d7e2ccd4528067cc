from mikkoo.worker.flights import Flight
from mikkoo.worker.rejected import CALM, MOST_ROUNDS, Rejected
from tests.unit.test_flights import flight


def flights(count: int) -> list[Flight]:
    return [flight(number) for number in range(1, count + 1)]


def test_they_come_back_in_the_order_of_their_rejection_and_are_counted_in_bytes() -> None:
    rejected = Rejected()
    rejected.add(flights(3), 0.0)
    assert (len(rejected), rejected.bytes) == (3, 30)
    again, failed = rejected.take()
    assert [one.event.id for one in again] == [1, 2, 3] and failed == []
    assert (len(rejected), rejected.bytes) == (0, 0)


def test_delays_grow_while_rejections_go_on_and_are_short_after_a_calm() -> None:
    rejected = Rejected()
    delays, now = [], 0.0
    for _ in range(10):
        rejected.add(flights(1), now)
        delays.append(rejected.due - now)
        now = rejected.due
        rejected.take()
    assert delays[0] <= 0.1 and delays[-1] >= 2.5 and max(delays) <= 5.0
    now += CALM + 1
    rejected.add(flights(1), now)
    assert rejected.due - now <= 0.1


def rounds(passing: int, rejecting: int, count: int) -> tuple[int, int]:
    """Rounds in which so many pass and so many are rejected; (held, failed) after them."""
    rejected = Rejected()
    again, failed = flights(rejecting), []
    for _ in range(count):
        rejected.add(again, 0.0)
        rejected.passed(flights(passing))
        again, gone = rejected.take()
        failed += gone
    return len(again), len(failed)


def test_a_full_queue_is_nobodys_failure_however_long_it_lasts() -> None:
    assert rounds(passing=0, rejecting=5, count=1000) == (5, 0)


def test_a_full_queue_that_is_slowly_drained_is_nobodys_failure() -> None:
    assert rounds(passing=4, rejecting=5, count=1000) == (5, 0)


def test_a_message_that_is_rejected_while_most_others_pass_fails_in_the_end() -> None:
    assert rounds(passing=6, rejecting=5, count=MOST_ROUNDS - 1) == (5, 0)
    assert rounds(passing=6, rejecting=5, count=MOST_ROUNDS) == (0, 5)
