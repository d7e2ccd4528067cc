from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.backoff import Backoff


def test_delays_double_up_to_the_most_and_begin_again() -> None:
    backoff = Backoff(first=1, most=10, chance=lambda: 1.0)
    assert [backoff.next() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert backoff.attempts == 6
    backoff.reset()
    assert backoff.next() == 1


@given(st.floats(0, 1), st.integers(0, 2000))
def test_jitter_keeps_to_the_upper_half(chance: float, attempts: int) -> None:
    backoff = Backoff(first=0.5, most=30, chance=lambda: chance)
    backoff.attempts = attempts
    full = min(30, 0.5 * 2 ** min(attempts, 64))
    assert full / 2 <= backoff.next() <= full
