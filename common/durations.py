"""Durations as people write them: '30s', '5 min', '1.5 h'."""

from __future__ import annotations

import re

UNITS = {'ms': 0.001, 's': 1, 'sec': 1, 'min': 60, 'h': 3600, 'd': 86_400}  # seconds
DURATION = re.compile(r'([0-9]+(?:\.[0-9]+)?) ?(' + '|'.join(UNITS) + ')', re.ASCII)


def seconds(text: str) -> float | None:
    """The seconds of a text such as '30s'; None: it is no duration."""
    match = DURATION.fullmatch(text)
    return float(match[1]) * UNITS[match[2]] if match else None
