"""What every benchmark says at its end: its goals, and a JSON file that states the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.stage import Stage, stage
from tests.servers.process import raise_on_signals


@dataclass(frozen=True)
class Goal:
    """One of the goals of the project, and whether this run met it; None: a figure without a bound."""

    number: int
    text: str
    figure: str
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: ', met', False: ', missed', None: ''}[self.met]
        return f'goal {self.number}: {self.text}: {self.figure}{verdict}'


@dataclass(frozen=True)
class Report:
    """`figures` is what the JSON file holds beside the goals, the options and the machine."""

    figures: dict[str, Any]
    goals: list[Goal]


def program(
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    run: Callable[[Stage, argparse.Namespace], Report],
    tls: bool = False,
    **settings: str,
) -> None:
    """A benchmark's `main`: servers of its own (`settings`: of PostgreSQL), its run, its goals."""
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    parser.add_argument('--json', type=Path, help='write the figures here')
    options = parser.parse_args()
    raise_on_signals()
    with stage(tls, **settings) as made:
        report = run(made, options)
    finish(report, options)


def finish(report: Report, options: argparse.Namespace) -> None:
    """Print the goals and write the file."""
    print()
    for goal in report.goals:
        print(goal)
    if options.json:
        given = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
        }
        goals = [{**asdict(goal), 'line': str(goal)} for goal in report.goals]
        whole = {**machine(), 'options': given, **report.figures, 'goals': goals}
        options.json.write_text(json.dumps(whole, indent=1))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        'machine': platform.platform(),
        'cores': os.cpu_count(),
        'python': platform.python_version(),
    }
