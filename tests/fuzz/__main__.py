"""`python -m tests.fuzz NAME [options of libFuzzer] [corpus]`: one of the harnesses under atheris."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
from pathlib import Path

import atheris

NAMES = ('configuration', 'events', 'frames')


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f'python -m tests.fuzz {"|".join(NAMES)} [options of libFuzzer] [corpus]')
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=['mikkoo', 'pamqp', 'ruamel']):
        harness = importlib.import_module(f'tests.fuzz.{name}')
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(harness.SEEDS):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, folder], harness.run)
        atheris.Fuzz()


main()
