"""A process beside the benchmark, with an interpreter of its own: bench.ceiling or bench.consumer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TOP = Path(__file__).parents[1]


class Helper:
    """`python -m MODULE ARGUMENTS`: says `ready`, may wait for a line, and ends with a JSON object."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._name = module
        command = [sys.executable, '-m', module, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def until_ready(self) -> None:
        """RuntimeError if it ends instead; its reason is on standard error."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != 'ready\n':
            raise RuntimeError(f'{self._name} ended with {self._process.wait()}')

    def result(self, timeout: float) -> dict[str, Any]:
        """What it prints at its end, at most so many seconds from now."""
        output, _ = self._process.communicate(timeout=timeout)
        if self._process.returncode:
            raise RuntimeError(f'{self._name} ended with {self._process.returncode}')
        found: dict[str, Any] = json.loads(output)
        return found

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write('\n')
        self._process.stdin.flush()
