"""The benchmarks run, at a small size: what they measure is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]


def bench(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments], cwd=TOP, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_relay(tmp_path: Path) -> None:
    path = tmp_path / 'runs.json'
    options = ('--no-peer', '--unconfirmed', '--events', '500', '--runs', '1', '--json', str(path))
    assert 'msg/s' in bench('bench.relay', *options)
    runs = json.loads(path.read_text())['runs']
    assert [(run['events'], run['confirm']) for run in runs] == [(500, True), (500, False), (500, True)]


def test_translate() -> None:
    assert 'encode' in bench('bench.translate', '1000')
