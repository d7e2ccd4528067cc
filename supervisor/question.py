"""A question on the terminal before something is lost for good."""

from __future__ import annotations

import sys

from mikkoo.common.errors import Exit
from mikkoo.supervisor.refusal import Refusal


def agreed(question: str) -> bool:
    """Ask; Enter and Ctrl-D are no. Raises Refusal where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise Refusal('standard input is no terminal to ask on: give --yes', Exit.USAGE)
    try:
        return input(f'{question} [y/N] ').strip().lower() in ('y', 'yes')
    except EOFError:  # Ctrl-D
        return False
