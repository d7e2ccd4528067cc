from datetime import UTC, datetime

import pytest

from mikkoo.worker.event import Event
from mikkoo.worker.verdict import Failure, Kind, Verdict, attempts, describe, judge


def failure(retry: int | None, permanent: bool = False) -> Failure:
    event = Event(1, datetime.now(UTC), 1, retry, 'k', 'b', 'x', None, None, None)
    return Failure(event, Kind.RETURNED, 312, 'NO_ROUTE', permanent)


@pytest.mark.parametrize(
    ('retry', 'most', 'verdict'),
    [
        (None, 1, Verdict.DEAD),
        (None, 2, Verdict.RETRY),
        (1, 2, Verdict.DEAD),
        (None, 10, Verdict.RETRY),
        (8, 10, Verdict.RETRY),
        (9, 10, Verdict.DEAD),
        (50, 10, Verdict.DEAD),
    ],
)
def test_an_event_is_given_up_at_attempt_max_failures(retry: int | None, most: int, verdict: Verdict) -> None:
    assert judge(failure(retry), most) is verdict


def test_ev_retry_is_null_at_the_first_delivery() -> None:
    assert [attempts(failure(retry).event) for retry in (None, 1, 2)] == [1, 2, 3]


def test_what_no_retry_cures_is_given_up_at_once() -> None:
    assert judge(failure(None, permanent=True), 10) is Verdict.DEAD


def test_a_failure_is_told_in_a_line() -> None:
    assert describe(failure(None)) == 'returned 312: NO_ROUTE'
