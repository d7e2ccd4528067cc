"""Looking for what is late, where the look itself fails."""

from __future__ import annotations

import pytest

from mikkoo.auditor.lateness import SHARE, Lateness
from mikkoo.common.errors import DatabaseError
from mikkoo.common.metrics import Metrics
from mikkoo.common.settings import AuditorSettings, BindingSettings, StatsdSettings


class Refusing:
    """Records that cannot be counted; the refusal takes 3 s."""

    def __init__(self) -> None:
        self.time = 100.0

    def clock(self) -> float:
        return self.time

    def outstanding(self, exchanges: object, grace: float) -> None:
        self.time += 3.0
        raise DatabaseError('too many', '57014')


def test_a_look_that_fails_is_due_as_late_as_any_other() -> None:
    """Due at once it would be all that an auditor does: look, fail, connect again."""
    records = Refusing()
    settings = AuditorSettings('proof', 'q', 'postgresql://', (BindingSettings('a'),))
    lateness = Lateness(settings, Metrics(StatsdSettings(), 'a'), lambda: 10.0, records.clock)
    with pytest.raises(DatabaseError):
        lateness.look(records)  # type: ignore[arg-type]
    assert lateness.due == 103.0 + SHARE * 3.0
