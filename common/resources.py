"""The files that ship with Mikkoo: at the same relative place in the source tree and when installed."""

from __future__ import annotations

from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def schema_sql() -> str:
    """The text of mikkoo.sql."""
    return (TOP / 'mikkoo.sql').read_text(encoding='utf-8')


def example_configuration() -> str:
    """The text of the example configuration, etc/mikkoo.yml."""
    return example_configuration_path().read_text(encoding='utf-8')


def example_configuration_path() -> Path:
    """Where the example configuration lies."""
    return TOP / 'etc' / 'mikkoo.yml'
