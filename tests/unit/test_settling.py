"""What is told of an event that ended its process: counted, logged and reported as other dead letters are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from mikkoo.common import reports
from mikkoo.common.metrics import Metrics
from mikkoo.common.pgq import Batch, Consumer, Opening
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import StatsdSettings, WorkerSettings
from mikkoo.worker.settling import Settling

NOW = datetime(2026, 11, 22, tzinfo=UTC)
BATCH = Batch(3, 8, 7, NOW, NOW)
OPENING = Opening(41, 5, True)


class Burier:
    """A consumer whose batch has one event behind the last, or none."""

    keeps = True

    def __init__(self, buried: tuple[int, int] | None) -> None:
        self._buried = buried
        self.asked: list[Any] = []

    def bury_next(self, *asked: Any) -> tuple[int, int] | None:
        self.asked.append(asked)
        return self._buried


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


def settling(burier: Burier, metrics: Metrics, pulse: Pulse) -> Settling:
    settings = WorkerSettings('w', 'orders', 'postgresql://h/d')
    return Settling(cast(Consumer, burier), BATCH, settings, metrics, pulse)


def test_an_event_that_ended_its_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pulse: Pulse
) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(reports, 'message', lambda *words, **more: told.append((*words, more)))
    burier, metrics = Burier((42, 4)), Metrics(StatsdSettings(), 'worker.w')
    made = settling(burier, metrics, pulse)
    with caplog.at_level(logging.ERROR):
        assert made.bury_killer(OPENING) == 42
    reason = 'the process ended 4 times running, the last time while it relayed this event alone'
    assert burier.asked == [(BATCH, 41, 4, 'kills_worker', reason)]
    assert (metrics.totals()['dead'], metrics.totals()['failed'], made.buried) == (1, 1, 1)
    [record] = caplog.records
    assert 'event 42' in record.getMessage() and 'kills_worker' in record.getMessage()
    more = {'count': 1, 'event_id': 42, 'attempts': 4, 'reason': reason}
    assert told == [('queue orders: events are dead letters: kills_worker', 'error', more)]


def test_where_no_event_is_left_nothing_is_told(caplog: pytest.LogCaptureFixture, pulse: Pulse) -> None:
    metrics = Metrics(StatsdSettings(), 'worker.w')
    made = settling(Burier(None), metrics, pulse)
    assert made.bury_killer(OPENING) is None
    assert (metrics.totals()['dead'], made.buried, caplog.records) == (0, 0, [])
