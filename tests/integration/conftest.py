"""Fixtures of the integration tests beside the servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervised import Supervised


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """`supervise({name: settings}, **policy)`: a running supervisor whose children all run."""
    made: list[Supervised] = []

    def start(workers: dict[str, dict[str, Any]], *, running: bool = True, **policy: float) -> Supervised:
        made.append(Supervised(tmp_path, workers, **policy))
        if running:
            made[-1].until_running()
        else:
            made[-1].until_ready()
        return made[-1]

    yield start
    for supervised in made:
        supervised.close()
