"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')


def until(
    condition: Callable[[], T],
    timeout: float = 10.0,
    what: str | Callable[[], str] = 'the condition',
    interval: float = 0.02,
) -> T:
    """Poll `condition` until it is true and return its value; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            text = what() if callable(what) else what
            raise AssertionError(f'not within {timeout:g} s: {text}')
        time.sleep(interval)
    return value
