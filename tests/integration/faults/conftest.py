"""Fixtures of the fault tests: the whole product under constant traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.faults.traffic import Traffic
from tests.integration.product import Product


@pytest.fixture
def traffic(
    product: Product, record_property: Callable[[str, object], None]
) -> Iterator[Callable[..., Traffic]]:
    """`traffic(rate=200.0, **settings of the worker)`: events flow; the daemon is yet to be started."""
    made: list[Traffic] = []

    def start(**options: Any) -> Traffic:
        made.append(Traffic(product, record_property, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()
