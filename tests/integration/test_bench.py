"""The benchmarks run, at a small size: what they measure is not asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

from bench.chaos import schedule
from bench.chaos_faults import KINDS

TOP = Path(__file__).parents[2]


def bench(module: str, *arguments: str, timeout: float = 180) -> str:
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments], cwd=TOP, capture_output=True, text=True, timeout=timeout
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


def test_chaos(tmp_path: Path) -> None:
    path, log = tmp_path / 'chaos.json', tmp_path / 'mikkoo.log'
    kinds = ('worker_killed', 'rabbitmq_reset', 'postgres_reset', 'worker_added')
    options = ('--seconds', '15', '--seed', '7', '--json', str(path), '--log', str(log), '--kinds', *kinds)
    assert 'repeats, of' in bench('bench.chaos', *options, timeout=600)
    report = json.loads(path.read_text())
    planned = islice(schedule(7, kinds), len(report['steps']))
    assert [tuple(step['step']['kinds']) for step in report['steps']] == [step.kinds for step in planned]
    assert report['steps'] and 'violation' not in report
    assert 'is RUNNING' in log.read_text()


def test_the_schedule_of_chaos_is_its_seed() -> None:
    kinds = list(KINDS)
    steps = list(islice(schedule(7, kinds), 500))
    assert steps == list(islice(schedule(7, kinds), 500)) != list(islice(schedule(8, kinds), 500))
    assert {kind for step in steps for kind in step.kinds} == set(kinds)
    for step in steps:
        places = [KINDS[kind].place for kind in step.kinds]
        assert len(set(places)) == len(places), 'no two faults of one place at once'


def test_connector(tmp_path: Path) -> None:
    path = tmp_path / 'rates.json'
    options = ('--no-peer', '--messages', '300', '--published', '100', '--runs', '1', '--json', str(path))
    assert 'times pika' in bench('bench.connector', *options)
    assert set(json.loads(path.read_text())) == {
        'consume mikkoo', 'consume pika', 'publish mikkoo', 'publish pika', 'publish many',
    }  # fmt: skip


def test_audit_table(tmp_path: Path) -> None:
    path = tmp_path / 'table.json'
    options = (
        '--sizes',
        '0',
        '2000',
        '--layouts',
        'shipped',
        'full index',
        '--rows',
        '1000',
        '--json',
        str(path),
    )
    assert '10,000 settlements a second' in bench('bench.audit_table', *options)
    runs = json.loads(path.read_text())['runs']
    assert [(run['layout'], run['action']) for run in runs[:4]] == [
        (layout, action) for layout in ('shipped', 'full index') for action in ('delete', 'mark')
    ]
    assert len(runs) == 8 and all(run['settles'] > 0 for run in runs)
