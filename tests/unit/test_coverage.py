"""Which audited routes an auditor's bindings see."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.common.settings import BindingSettings
from mikkoo.supervisor.coverage import Sight, sight, topic_matches

SEEN, UNSEEN, UNTOLD = Sight


@pytest.mark.parametrize(
    ('pattern', 'key', 'matches'),
    [
        ('a.b', 'a.b', True),
        ('a.b', 'a.c', False),
        ('a.*', 'a.b', True),
        ('a.*', 'a', False),
        ('a.*', 'a.b.c', False),
        ('*', '', False),
        ('*.*', 'a.', True),
        ('#', '', True),
        ('#', 'a.b.c', True),
        ('a.#', 'a', True),
        ('a.#', 'b', False),
        ('#.c', 'a.b.c', True),
        ('#.c', 'a.b', False),
        ('a.#.c', 'a.c', True),
        ('a.#.c', 'a.b.b.c', True),
        ('#.b.#', 'a.b.c', True),
        ('#.*', '', False),
        ('#.*', 'a.b', True),
        ('b.#.#', 'a', False),
        ('', '', True),
        ('', 'a', False),
    ],
)
def test_topic_patterns(pattern: str, key: str, matches: bool) -> None:
    assert topic_matches(pattern, key) is matches


WORDS = st.lists(st.sampled_from(['a', 'b', 'cc']), min_size=1, max_size=5)
PARTS = st.lists(st.sampled_from(['a', 'b', 'cc', '*', '#']), min_size=1, max_size=5)


@given(PARTS, WORDS)
def test_topic_patterns_are_as_regular_expressions(parts: list[str], words: list[str]) -> None:
    """Each word with a dot behind it, so that no word takes no dot either."""
    expression = ''.join({'*': '[^.]+[.]', '#': '([^.]+[.])*'}.get(part, f'{part}[.]') for part in parts)
    expected = re.fullmatch(expression, ''.join(f'{word}.' for word in words)) is not None
    assert topic_matches('.'.join(parts), '.'.join(words)) is expected


@pytest.mark.parametrize(
    ('exchange', 'kind', 'expected'),
    [
        ('bound', 'direct', SEEN),
        ('bound', 'topic', SEEN),
        ('bound', 'fanout', SEEN),
        ('bound', 'headers', UNTOLD),
        ('bound', 'x-consistent-hash', UNTOLD),
        ('bound', None, UNTOLD),
        ('other', 'direct', UNSEEN),
        ('other', 'fanout', UNSEEN),
        ('other', 'headers', UNSEEN),
        ('other', None, UNSEEN),
        ('', 'direct', UNSEEN),
    ],
)
def test_the_type_of_the_exchange_decides(exchange: str, kind: str | None, expected: Sight) -> None:
    assert sight(exchange, kind, 'a.b', [BindingSettings('bound', 'a.b')]) is expected


def test_a_wildcard_is_one_for_a_topic_exchange_only() -> None:
    bindings = [BindingSettings('e', 'x'), BindingSettings('e', 'a.#')]
    assert sight('e', 'topic', 'a.b', bindings) is SEEN
    assert sight('e', 'topic', 'b', bindings) is UNSEEN
    assert sight('e', 'direct', 'a.b', bindings) is UNSEEN
    assert sight('e', 'direct', 'a.#', bindings) is SEEN
    assert sight('e', 'fanout', 'b', bindings) is SEEN
