"""The tests that docs/guarantees.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
NAMED = re.compile(r'`(test_\w+)::(test_\w+)`')


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall((TOP / 'docs' / 'guarantees.md').read_text())
    assert len(named) > 40
    for file, function in named:
        found = [
            path for path in (TOP / 'tests').rglob(f'{file}.py') if f'def {function}(' in path.read_text()
        ]
        assert found, f'{file}::{function}'
