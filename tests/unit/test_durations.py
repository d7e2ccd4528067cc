"""Durations as people write them."""

from __future__ import annotations

import pytest

from mikkoo.common.durations import seconds


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('30s', 30), ('5 min', 300), ('2 h', 7200), ('7d', 604800), ('500 ms', 0.5), ('1.5h', 5400), ('0s', 0)],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize('text', ['', '5', 's', '-5s', '5  s', '5 weeks', '1e3s', ' 5s', '٥s', '5s\n'])
def test_what_is_none(text: str) -> None:
    assert seconds(text) is None
