"""Documents: rule D1."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikkoo.connector import b64_to_dict, dict_to_b64

TEXTS = st.text('a"\'\\{}é\n ', max_size=8)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
DOCUMENTS = st.dictionaries(TEXTS, VALUES | st.lists(VALUES, max_size=3), max_size=4)


def encoded(text: str) -> bytes:
    return base64.b64encode(text.encode())


@given(DOCUMENTS, st.booleans())
def test_what_is_written_is_read(data: dict[str, Any], legacy: bool) -> None:
    written = dict_to_b64(data, legacy=legacy)
    assert isinstance(written, bytes)
    assert b64_to_dict(written) == data


@given(DOCUMENTS)
def test_legacy_is_what_older_peers_evaluate(data: dict[str, Any]) -> None:
    assert eval(json.loads(base64.b64decode(dict_to_b64(data, legacy=True)))) == data


def test_the_form_is_a_json_object() -> None:
    assert json.loads(base64.b64decode(dict_to_b64({'é': [1, None]}))) == {'é': [1, None]}
    assert b64_to_dict(dict_to_b64({'é': 'ü'}, 'latin-1'), 'latin-1') == {'é': 'ü'}


def test_legacy_holds_literals_only() -> None:
    assert b64_to_dict(dict_to_b64({'a': (1, b'x'), 2: {3}}, legacy=True)) == {'a': (1, b'x'), 2: {3}}
    for wrong in ({'a': object()}, {'a': float('nan')}):
        with pytest.raises(ValueError):
            dict_to_b64(wrong, legacy=True)


@pytest.mark.parametrize('data', [None, [], 'x', {'a': object()}, {'a': float('nan')}, {'a': '\ud800'}])
def test_what_cannot_be_written(data: Any) -> None:
    with pytest.raises(ValueError):
        dict_to_b64(data)


def test_nothing_is_evaluated(tmp_path: Path) -> None:
    """W1: the original runs what comes off the wire."""
    file = tmp_path / 'made'
    for attack in (
        f'open({str(file)!r}, "w")',
        f'[open({str(file)!r}, "w")]',
        f'{{"a": open({str(file)!r}, "w")}}',
    ):
        with pytest.raises(ValueError):
            b64_to_dict(encoded(json.dumps(attack)))
    assert not file.exists()


@pytest.mark.parametrize(
    'data',
    [
        b'', b'x', b'no base64!', encoded('{'), encoded('[1]'), encoded('1'), encoded('null'),
        encoded('"[1]"'), encoded('"a b"'), base64.b64encode(b'\xff\xfe'), encoded('"' + '(' * 100_000 + '"'),
        encoded('[' * 100_000), encoded('"' + '-' * 50_000 + '1"'),
    ],
)  # fmt: skip
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match='not a document'):
        b64_to_dict(data)


@given(st.binary())
def test_garbage_is_a_value_error(data: bytes) -> None:
    try:
        assert isinstance(b64_to_dict(data), dict)
    except ValueError:
        pass
