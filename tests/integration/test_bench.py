"""The benchmarks run, at a small size: what they measure is not asserted."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.chaos import schedule
from bench.chaos_faults import KINDS
from bench.consumer import Deliveries
from bench.load import CEILING, OURS
from bench.plot import BOTTOM, LEFT, RIGHT, SVG, TOP

REPOSITORY = Path(__file__).parents[2]


def bench(module: str, *arguments: str, timeout: float = 180) -> str:
    done = subprocess.run(
        [sys.executable, '-m', module, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def small(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """What a benchmark of the goals prints, and its figures."""
    path = folder / 'figures.json'
    printed = bench('bench.goals', '--small', '--only', name, '--json', str(path))
    figures: dict[str, Any] = json.loads(path.read_text())[name]
    for goal in figures['goals']:
        assert printed.count(goal['line']) == 2, 'by the benchmark, and at the end'
    assert figures['cores'] == os.cpu_count()
    return printed, figures


def loads(figures: dict[str, Any], *keys: str) -> list[tuple[Any, ...]]:
    """Of each run, its side and these keys of its load. Every run has figures."""
    for run in figures['runs']:
        assert min(run[key] for key in ('seconds', 'rate', 'mb', 'peak')) > 0
    return [(run['side'], *(run['load'][key] for key in keys)) for run in figures['runs']]


def test_relay(tmp_path: Path) -> None:
    path = tmp_path / 'runs.json'
    pins = (True, False) if len(os.sched_getaffinity(0)) > 1 else (False,)
    options = ['--no-peer', '--unconfirmed', '--events', '500', '--runs', '1', '--json', str(path)]
    printed = bench('bench.relay', *options, *['--pin'] * (len(pins) - 1))
    figures = json.loads(path.read_text())
    assert loads(figures, 'events', 'confirm') == len(pins) * [
        (OURS, 500, True), (OURS, 500, False), (CEILING, 500, True),
    ]  # fmt: skip
    assert [run['pinned'] for run in figures['runs']] == [pin for pin in pins for _ in range(3)]
    assert [goal['number'] for goal in figures['goals']] == [1, 2]
    assert all(goal['line'] in printed for goal in figures['goals'])


def test_memory(tmp_path: Path) -> None:
    _, figures = small('memory', tmp_path)
    assert loads(figures, 'events', 'size') == [(OURS, 2000, 200), (OURS, 20, 1_000_000)]
    assert {goal['number'] for goal in figures['goals']} == {3}


def test_latency(tmp_path: Path) -> None:
    _, figures = small('latency', tmp_path)
    found = figures['distributions, ms']
    assert len(found) == 4
    for kind in ('ticks every 50 ms', 'pgqd at its defaults'):
        whole, part = found[f'commit to delivery, {kind}'], found[f'tick to delivery, {kind}']
        assert len(whole) == len(part) == 1001
        assert whole == sorted(whole) and part == sorted(part) and part[0] > 0
        assert all(longer >= shorter for longer, shorter in zip(whole, part, strict=True))
    assert len(figures['goals']) == 4


def test_fleet(tmp_path: Path) -> None:
    _, figures = small('fleet', tmp_path)
    assert figures['workers'] == 2
    assert [goal['number'] for goal in figures['goals']] == [5, 5, 6, 6, 6]


def test_flat(tmp_path: Path) -> None:
    _, figures = small('flat', tmp_path)
    assert len(figures['rates']) == 2 and figures['peak'] > 0
    assert figures['ratio'] == min(figures['rates']) / max(figures['rates'])


def test_bodies(tmp_path: Path) -> None:
    _, figures = small('bodies', tmp_path)
    classic = ['bench.key']
    expected = [
        (1000, 1000, classic, True, False),
        (10, 100_000, classic, True, False),
        (300, 200, classic, True, False),
        (300, 200, classic, False, False),
        (300, 200, ['bench.quorum'], True, False),
        (300, 200, classic, True, True),
    ]
    wanted = [(side, *load) for load in expected for side in (OURS, CEILING)]
    assert loads(figures, 'events', 'size', 'routes', 'confirm', 'tls') == wanted
    assert len(figures['table']) == len(expected)


def test_queues(tmp_path: Path) -> None:
    _, figures = small('queues', tmp_path)
    one, two = ['bench.0'], ['bench.0', 'bench.1']
    assert loads(figures, 'routes') == [(OURS, one), (CEILING, one), (OURS, two), (CEILING, two)]


def test_plots(tmp_path: Path) -> None:
    """Every point lies within the axes, in its order."""
    rows = {'a': (1000, 20.0, 30.0), 'b': (100_000, 90.0, 900.0), 'c': (1000, 1.0, 2.0)}
    table = {name: dict(zip(('size', 'MB/s', 'bare MB/s'), row, strict=True)) for name, row in rows.items()}
    distributions = {name: [1.5, 2.0, 40.0] for name in 'wxyz'}
    figures = {'bodies': {'table': table}, 'latency': {'distributions, ms': distributions}}
    path = tmp_path / 'figures.json'
    path.write_text(json.dumps(figures))
    bench('bench.plot', str(path), str(tmp_path))
    for name, count, each in ('rate-by-size', 2, 2), ('latency', 4, 3):
        svg = ElementTree.parse(tmp_path / f'{name}.svg').getroot()
        lines = [line.attrib['points'].split() for line in svg.iter(f'{{{SVG}}}polyline')]
        points = [[tuple(map(float, point.split(','))) for point in line] for line in lines]
        assert [len(line) for line in points] == [each] * count
        assert all(LEFT <= across <= RIGHT and TOP <= up <= BOTTOM for line in points for across, up in line)
        assert all(line == sorted(line, key=lambda point: (point[0], -point[1])) for line in points)
    words = [element.text for element in svg.iter(f'{{{SVG}}}text')]
    assert {'Latency', 'milliseconds', '100', 'w', 'z'} <= set(words)


def test_a_consumer_takes_the_stream_however_it_is_cut() -> None:
    def piece(kind: int, payload: bytes) -> bytes:
        return struct.pack('>BHI', kind, 1, len(payload)) + payload + b'\xce'

    def message(*bodies: bytes) -> bytes:
        size = struct.pack('>HHQH', 60, 0, sum(map(len, bodies)), 0)
        deliver = piece(1, struct.pack('>HH', 60, 60) + b'\x05bench' + bytes(12))
        return deliver + piece(2, size) + b''.join(piece(3, body) for body in bodies)

    stream = message(b'one') + message() + message(b'in ', b'two') + piece(1, struct.pack('>HH', 60, 31))
    for cut in range(1, len(stream)):
        heard = Deliveries(keep=True)
        rest = heard.hear(stream[:cut])
        assert not heard.ended
        assert heard.hear(rest + stream[cut:]) == b''
        assert (heard.count, heard.ended) == (3, True)
        assert heard.bodies == [b'one', b'', b'in two']


def test_translate() -> None:
    assert 'encode' in bench('bench.translate', '1000')


def test_chaos(tmp_path: Path) -> None:
    path, log = tmp_path / 'chaos.json', tmp_path / 'mikkoo.log'
    kinds = ('worker_killed', 'auditor_killed', 'rabbitmq_reset', 'postgres_reset', 'worker_added')
    options = ('--seconds', '15', '--seed', '7', '--json', str(path), '--log', str(log), '--kinds', *kinds)
    said = bench('bench.chaos', *options, timeout=600)
    assert 'repeats, of' in said and '\naudit clean: ' in said
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


def test_audit(tmp_path: Path) -> None:
    printed, figures = small('audit', tmp_path)
    whats = ('plain', 'relay alone', 'auditor alone', 'relay, together', 'auditor, together')
    runs = figures['runs']
    assert [(run['action'], run['what']) for run in runs] == [
        (action, what) for action in ('delete', 'mark') for what in whats
    ]
    assert all(run['rate'] > 0 and run['cpu'] > 0 for run in runs)
    assert {run['events'] for run in runs} == {500}
    assert len(figures['goals']) == 5 and printed.count('keeps up') == 8


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
