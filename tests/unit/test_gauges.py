"""When PostgreSQL is asked for gauges."""

from __future__ import annotations

from typing import Any, cast

from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Consumer, Pending
from mikkoo.common.settings import StatsdSettings
from mikkoo.worker.gauges import BURIED_INTERVAL, DEAD_LETTERS_INTERVAL, PENDING_INTERVAL, Gauges


class Answers:
    """A consumer that counts how often it is asked."""

    def __init__(self, dead: int | None = 0) -> None:
        self.dead = dead
        self.asked = {'pending': 0, 'dead': 0}

    def pending(self) -> Pending:
        self.asked['pending'] += 1
        return Pending(7, 1.5, 0.5, None)

    def dead_letters(self) -> int | None:
        self.asked['dead'] += 1
        return self.dead


class Looked:
    def __init__(self, dead: int | None = 0) -> None:
        self.now = 1000.0
        self.answers = Answers(dead)
        self.metrics = Metrics(StatsdSettings(), 'worker.test')
        self.gauges = Gauges(self.metrics, lambda: self.now)

    def look(self, later: float = 0.0) -> dict[str, Any]:
        self.now += later
        self.gauges.look(cast(Consumer, self.answers))
        return self.metrics.totals()


def test_each_is_asked_for_in_its_time() -> None:
    looked = Looked(3)
    totals = looked.look()
    assert (totals['pending_events'], totals['lag'], totals['dead_letters']) == (7, 1.5, 3)
    looked.answers.dead = 4
    assert looked.look(PENDING_INTERVAL)['dead_letters'] == 3
    assert looked.answers.asked == {'pending': 2, 'dead': 1}
    assert looked.look(DEAD_LETTERS_INTERVAL)['dead_letters'] == 4


def test_our_own_dead_letters_are_counted_soon_and_a_flood_of_them_seldom() -> None:
    looked = Looked()
    looked.look()
    for _ in range(100):  # ten a second
        looked.gauges.buried()
        looked.look(0.1)
    assert looked.answers.asked['dead'] == 1 + round(100 * 0.1 / BURIED_INTERVAL)
    looked.look(BURIED_INTERVAL)
    quiet = looked.answers.asked['dead']
    looked.look(BURIED_INTERVAL)
    assert looked.answers.asked['dead'] == quiet


def test_the_first_of_ours_is_counted_at_once() -> None:
    looked = Looked()
    looked.look()
    looked.look(2 * BURIED_INTERVAL)
    looked.answers.dead = 1
    looked.gauges.buried()
    assert looked.look()['dead_letters'] == 1


def test_where_none_are_kept_there_is_no_gauge() -> None:
    assert 'dead_letters' not in Looked(None).look()
