"""What people read: the status table, probes, durations; plain where it is piped."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from mikkoo.common.errors import Exit
from mikkoo.supervisor import output
from mikkoo.supervisor.probe import Probe, verdict

CHILD: dict[str, Any] = {
    'name': 'invoices', 'kind': 'worker', 'queue': 'invoices', 'consumer': 'mikkoo', 'pid': 77,
    'state': 'RUNNING', 'reason': '', 'restarts': 0, 'last_exit': None,
    'since': 61.4, 'waits': 'a tick', 'beat_age': 0.1,
    'numbers': {'processed': 1234567, 'failed': 2, 'pending_events': 0, 'dead_letters': 3},
}  # fmt: skip
ANSWER: dict[str, Any] = {
    'state': 'running', 'pid': 42, 'version': '4.0.0', 'config': '/etc/mikkoo/mikkoo.yml', 'uptime': 7325,
    'last_reload': None, 'needs_restart': False, 'children': [CHILD],
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    output.status({**ANSWER, **changes})
    return capsys.readouterr().out


def test_a_running_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys).splitlines()
    assert lines[0] == 'mikkood 4.0.0: running (pid 42) for 2 h 2 min'
    assert lines[1] == 'configuration: /etc/mikkoo/mikkoo.yml'
    assert lines[2].split()[:5] == ['WORKER', 'QUEUE', 'STATE', 'PID', 'FOR']
    assert lines[3].split() == [
        'invoices', 'invoices', 'RUNNING', '77', '1', 'min', '1', 's', '1,234,567', '2', '0', '3', 'a', 'tick'
    ]  # fmt: skip
    assert len(lines) == 4


def test_auditors_have_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {'audit.received': 1000, 'audit.outstanding': 5, 'audit.late': 2, 'audit.differing': 1}
    auditor = {**CHILD, 'name': 'proof', 'kind': 'auditor', 'queue': 'mikkoo.audit.proof', 'consumer': None}
    lines = shown(capsys, children=[CHILD, {**auditor, 'numbers': numbers}]).splitlines()
    assert lines[4].split() == [
        'AUDITOR', 'QUEUE', 'STATE', 'PID', 'FOR', 'RECEIVED', 'OUTSTANDING', 'LATE', 'DIFFERING',
        'DUPLICATE', 'UNKNOWN', 'WAITS', 'FOR',
    ]  # fmt: skip
    assert lines[5].split()[:3] == ['proof', 'mikkoo.audit.proof', 'RUNNING']
    assert lines[5].split()[8:13] == ['1,000', '5', '2', '1', '-']
    assert 'WORKER' not in shown(capsys, children=[auditor])


def test_piped_output_has_no_colour_and_breaks_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = 'no route to the broker ' * 20
    out = shown(capsys, children=[{**CHILD, 'name': 'x' * 150, 'reason': long}])
    assert '\x1b' not in out
    assert len(out.splitlines()) == 4
    assert all(line == line.rstrip() for line in out.splitlines())
    assert long.strip() in out


def test_brackets_are_text_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert '[red]q[/red]' in shown(capsys, children=[{**CHILD, 'queue': '[red]q[/red]'}])


def test_a_failed_reload_is_shown_with_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    mistake = '/etc/m.yml:3:5: found x; y is allowed'
    failed = {'at': 0.0, 'ok': False, 'mistakes': [mistake]}
    out = shown(capsys, last_reload=failed)
    assert 'failed, the old settings stay' in out
    assert mistake in out


def test_lost_log_records_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'log records are lost: disk full' in shown(capsys, log_failure='disk full')


def test_needs_restart(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'needs restart: the Daemon section' in shown(capsys, needs_restart=True)


def test_not_running(capsys: pytest.CaptureFixture[str]) -> None:
    output.status({'state': 'not running'})
    assert capsys.readouterr().out == 'mikkood: not running\n'


def test_a_child_that_never_reported(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(
        capsys, children=[{**CHILD, 'pid': None, 'state': 'FATAL', 'numbers': {}, 'reason': 'no login\nmore'}]
    )
    assert out.splitlines()[3].split() == [
        'invoices', 'invoices', 'FATAL', '-', '1', 'min', '1', 's', '-', '-', '-', '-', 'no', 'login'
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0, '0 s'), (-3, '0 s'), (59.9, '59 s'), (60, '1 min 0 s'), (3600, '1 h 0 min'), (90061, '1 d 1 h')],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


PROBES = [
    Probe('worker a', 'database login', 'ok', 'as mikkoo'),
    Probe('worker a', 'queue', 'failed', 'there is no queue a', "select pgq.create_queue('a')"),
    Probe('worker b', 'ticking', 'warn', 'the last tick is 5 min old', 'start pgqd'),
]


def test_probes(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(output.probes(PROBES)) == Exit.FAILURE
    assert capsys.readouterr().out.splitlines() == [
        'worker a',
        '  ✓ database login: as mikkoo',
        '  ✗ queue: there is no queue a',
        "    to do: select pgq.create_queue('a')",
        'worker b',
        '  ! ticking: the last tick is 5 min old',
        '    to do: start pgqd',
    ]


def test_warnings_are_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(output.probes(PROBES[::2])) == Exit.OK


def test_probes_where_only_ascii_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii'))
    output.probes(PROBES)
    sys.stdout.flush()
    assert raw.getvalue().decode('ascii').splitlines()[1:3] == [
        '  ok database login: as mikkoo',
        '  FAILED queue: there is no queue a',
    ]
