"""Rows of PgQ with anything in their columns: a message that AMQP carries as it is, or EventError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mikkoo.worker.properties import RULES
from tests.fuzz.events import SEEDS, SEPARATOR, check, row_of, run

fuzz = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(st.characters(exclude_categories=['Cs']), max_size=300)
edges = st.sampled_from(['', '\0', 'x' * 255, 'é' * 128, '\U0001f407' * 64, '\ud800', '\u2028', "'; --"])
integers = st.sampled_from([0, -1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 2**70])
leaves = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | integers | st.floats() | texts | edges
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | edges, inner, max_size=4)
)
names = st.sampled_from([*RULES, 'headers', 'nonsense'])
likely = st.sampled_from(
    [1, '2', 5, 5.0, 255, '60000', 1449600290, 'text', 'guest', {}, {'CC': ['a']}, '{"a": 1}']
)
short = st.text(st.characters(exclude_categories=['Cs']), max_size=60)
good = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e300, 1e300) | short,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(short, inner, max_size=4),
)
columns = st.none() | texts | edges
properties = st.dictionaries(names, likely | values, max_size=5)
headers = st.dictionaries(st.sampled_from(['CC', 'BCC', 'origin', 'txid', 'a']) | texts, values, max_size=5)


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@fuzz
@given(st.tuples(*[columns] * 4, columns | properties.map(written), columns | headers.map(written)))
def test_any_row(row: tuple[str | None, ...]) -> None:
    check(row_of(list(row)))


@fuzz
@given(st.dictionaries(names, likely, max_size=2), st.dictionaries(short, good, max_size=5))
@example({}, {'nul': 'a\0b', 'minus': -0.0, 'whole': 1.0, 'limit': -(2**63), 'flags': [True, False, None]})
def test_rows_near_good_ones(given_properties: dict[str, Any], given_headers: dict[str, Any]) -> None:
    check(
        row_of(['key', 'body', 'exchange', 'text/plain', written(given_properties), written(given_headers)]),
        4096,
    )


@pytest.mark.parametrize('bracket', ['[]', ['{"k":', '}']])
@pytest.mark.parametrize('levels', [62, 63, 64, 500, 1000, 1022, 1023, 1024, 100_000])
@pytest.mark.parametrize('column', ['extra3', 'extra3 text', 'extra4'])
def test_deep_headers(bracket: str, levels: int, column: str) -> None:
    """Not under hypothesis, which raises the limit of recursion."""
    opened, closed = bracket
    deep = '{"h":' + opened * levels + '1' + closed * levels + '}'
    given_properties = {'extra3': f'{{"headers": {deep}}}', 'extra3 text': json.dumps({'headers': deep})}
    row = row_of(['key', 'body', 'exchange', None, given_properties.get(column), deep])
    assert check(row) == (levels < 64)


@pytest.mark.parametrize('seed', SEEDS)
def test_the_seeds_become_messages(seed: bytes) -> None:
    assert check(row_of([part.decode() for part in seed.split(SEPARATOR)]))


@fuzz
@given(st.sampled_from(SEEDS), st.data())
def test_damaged_rows(seed: bytes, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(begin, min(begin + 6, len(seed))))
    damage = data.draw(st.binary(max_size=6))
    assume(damage != seed[begin:end])
    run(seed[:begin] + damage + seed[end:])
