"""One try of `mikkood check --connect`, and what the probes share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mikkoo.common.errors import DatabaseError, DatabaseLost, Exit

CONNECT_TIMEOUT = 10.0  # seconds for one server
STATEMENT_TIMEOUT = 30.0  # seconds
NO_PRIVILEGE = '42501'  # SQLSTATE insufficient_privilege


@dataclass(frozen=True, slots=True)
class Probe:
    """What one try found. `remedy`: what to do, '' where it is ok."""

    subject: str  # what was probed, as 'worker invoices'
    name: str
    outcome: Literal['ok', 'warn', 'failed']
    text: str
    remedy: str = ''


def verdict(probes: Iterable[Probe]) -> Exit:
    """The exit code: a warning is no failure."""
    return Exit.FAILURE if any(probe.outcome == 'failed' for probe in probes) else Exit.OK


def login_remedy(error: DatabaseError) -> str:
    if isinstance(error, DatabaseLost):
        return 'see that PostgreSQL runs and that postgres_url names its host and port'
    return 'see user, password and database in postgres_url, and pg_hba.conf'
