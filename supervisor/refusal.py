"""The one exception of the command line: a command that was understood and cannot be carried out."""

from __future__ import annotations

from mikkoo.common.errors import Exit, MikkooError


class Refusal(MikkooError):
    """`reason` is one clear line for standard error; `exit` the command's exit code."""

    def __init__(self, reason: str, exit: Exit = Exit.FAILURE) -> None:
        super().__init__(reason)
        self.exit = exit
