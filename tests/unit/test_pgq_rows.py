"""What common.pgq does without a server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mikkoo.common import pgq

ROW = (7, datetime(2026, 1, 1, tzinfo=UTC), 1234, None, 'key', 'body', 'ex', None, '{}', None, None)


def test_a_lock_key_is_the_same_in_every_process_and_release() -> None:
    assert pgq.lock_key('orders', 'mikkoo') == -2322818383842861167


@pytest.mark.parametrize(('queue', 'name'), [('orders', 'other'), ('other', 'mikkoo'), ('ordersm', 'ikkoo')])
def test_another_consumer_has_another_key(queue: str, name: str) -> None:
    key = pgq.lock_key(queue, name)
    assert key != pgq.lock_key('orders', 'mikkoo')
    assert -(2**63) <= key < 2**63


@pytest.mark.parametrize(
    ('before', 'counted', 'after'),
    [
        (None, True, 1),
        (0, True, 1),
        (1, True, 2),
        (9, True, 10),
        (None, False, None),
        (0, False, 0),
        (9, False, 9),
    ],
)
def test_a_retry_is_counted_unless_it_is_put_back(
    before: int | None, counted: bool, after: int | None
) -> None:
    row = (*ROW[:3], before, *ROW[4:])
    again = pgq._again(pgq.Retry(row, 1.0, counted))
    assert again == (7, ROW[1], after, 'key', 'body', 'ex', None, '{}', None)


def test_the_weight_of_a_row() -> None:
    assert pgq._weight(ROW) == len('keybodyex{}')
    assert pgq._weight(ROW[:10]) == len('keybodyex{}')  # as an Event
    assert pgq._weight((*ROW[:10], 5_000_000)) == float('inf')
