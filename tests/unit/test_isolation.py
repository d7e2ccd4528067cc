"""Whether a batch is relayed one event at a time, and what its killer is told to have done."""

import pytest

from mikkoo.common.pgq import Opening
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker import isolation
from mikkoo.worker.isolation import MOST_ENDS, Way
from mikkoo.worker.settling import SAVE_EVERY


@pytest.mark.parametrize(
    ('attempts', 'alone', 'survived', 'way'),
    [
        (0, False, False, Way.TOGETHER),  # openings are not counted here
        (1, False, False, Way.TOGETHER),
        (MOST_ENDS, False, False, Way.TOGETHER),
        (MOST_ENDS + 1, False, False, Way.ALONE),
        (MOST_ENDS + 9, False, False, Way.ALONE),
        (MOST_ENDS + 1, False, True, Way.ALONE),
        (2, True, False, Way.BURY),
        (MOST_ENDS + 2, True, False, Way.BURY),
        (MOST_ENDS + 1, True, True, Way.ALONE),
        (1, True, True, Way.ALONE),
    ],
)
def test_the_way_of_a_batch(attempts: int, alone: bool, survived: bool, way: Way) -> None:
    assert isolation.way(Opening(None, attempts, alone), survived) is way


def test_a_stretch_is_longer_than_what_was_under_way() -> None:
    window = WorkerSettings('w', 'q', 'url').confirm_window
    assert isolation.stretch(window) >= SAVE_EVERY + window
    assert isolation.stretch(10 * window) - isolation.stretch(window) == 9 * window


@pytest.mark.parametrize(('attempts', 'ends'), [(0, 1), (1, 1), (2, 1), (5, 4)])
def test_each_opening_but_the_last_has_ended_a_process(attempts: int, ends: int) -> None:
    opening = Opening(7, attempts, True)
    assert isolation.ends(opening) == ends
    assert (f'{ends} times running' in isolation.reason(opening)) == (ends > 1)
    assert isolation.reason(opening).endswith('while it relayed this event alone')
