"""The answer of `audit report`, what people read of it, and how far an event is said to be."""

from __future__ import annotations

from typing import Any

import pytest

from mikkoo.common.audit_report import Group, Report, Scope, Waiting
from mikkoo.common.audit_trace import Copy, Reader
from mikkoo.common.settings import AuditorSettings, BindingSettings
from mikkoo.supervisor import audit_output
from mikkoo.supervisor.audit_output import answer, place, verdict

SHOP = AuditorSettings('shop', 'mikkoo.audit.shop', 'postgresql://x', (BindingSettings('ex'),))
GROUP = Group(
    'invoices', 'ex', ('former',), received=1000, outstanding=3, late=2, differing=1, duplicate=4,
    expired=5, latency_total=50.0, latency_max=2.5,
)  # fmt: skip
OLD = Waiting('id-1', 'invoices', 'ex', 'key', '2026-11-22T10:00:00+00:00', 90.0)
OLDER = Waiting('id-2', 'orders', '', 'key', '2026-11-22T09:00:00+00:00', 3690.0)
WHOLE = (None, None, None)


def made(*reports: Report, failures: tuple[str, ...] = ()) -> dict[str, Any]:
    return answer([(f'h/{n}', [SHOP], report) for n, report in enumerate(reports)], failures, WHOLE)


def test_what_was_recorded_is_added_up() -> None:
    assert (GROUP.recorded, GROUP.latency_mean, GROUP.clean) == (1008, 0.05, False)
    assert Group('q', 'e').latency_mean is None


@pytest.mark.parametrize('name', ['late', 'differing', 'expired'])
def test_what_is_not_clean(name: str) -> None:
    assert not Group('q', 'e', **{name: 1}).clean
    assert Group('q', 'e', received=9, outstanding=9, duplicate=9).clean


def test_the_answer_of_two_databases() -> None:
    made_of = made(
        Report((GROUP,), unknown=1, oldest=OLD, late=(OLD,)),
        Report((Group('orders', '', received=1000, latency_total=150.0, latency_max=9.0),), 2, 3, OLDER),
    )
    assert made_of['totals'] == {
        'recorded': 2008, 'received': 2000, 'outstanding': 3, 'late': 2, 'differing': 1, 'duplicate': 4,
        'expired': 5, 'unknown': 3, 'unidentified': 3, 'latency_mean': 0.1, 'latency_max': 9.0,
    }  # fmt: skip
    assert made_of['oldest_outstanding']['message_id'] == 'id-2'
    assert made_of['oldest_outstanding']['database'] == 'h/1'
    assert [group['auditors'] for group in made_of['groups']] == [['former', 'shop'], []]
    assert [one['message_id'] for one in made_of['late']] == ['id-1']
    assert made_of['clean'] is False


def test_the_first_line_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    clean = made(Report((Group('q', 'ex', received=1, outstanding=1),)))
    assert verdict(clean) == 'audit clean: 2 recorded, 1 received, 1 outstanding'
    assert verdict(made(failures=('h: gone',))).startswith('audit UNKNOWN: 0 recorded')
    unclean = made(Report((GROUP,), oldest=OLD, late=(OLD,)), failures=('h: gone',))
    audit_output.report(unclean)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        'audit NOT CLEAN: 1,008 recorded, 1,000 received, 3 outstanding, 2 late, 1 differing, 4 duplicate, '
        '5 expired'
    )
    assert lines[1:3] == ['not asked: h: gone', 'h/0: auditor shop of ex, grace 60 s']
    assert lines[4].split() == [
        'invoices', 'ex', '1,008', '1,000', '3', '2', '1', '4', '5', '0.050', 's', '2.500', 's', 'former,',
        'shop',
    ]  # fmt: skip
    oldest = 'id-1 of queue invoices, exchange ex, published 2026-11-22T10:00:00+00:00, 1 min 30 s ago'
    assert lines[5:] == [f'oldest outstanding: {oldest}', 'late:', f'  {oldest}', '  and 1 more: --all']


def test_nobody_audits(capsys: pytest.CaptureFixture[str]) -> None:
    audit_output.report(answer([('h', [], Report((Group('q', ''),)))], [], WHOLE))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == 'nobody audits: the configuration has no auditor'
    assert lines[3].split()[1] == '(default)' and lines[3].split()[-1] == 'nobody'


PASSED, COMING = Reader('one', 'passed', None), Reader('two', 'to come', None)


@pytest.mark.parametrize(
    ('consumer', 'after', 'until', 'readers', 'said'),
    [
        (None, 3, 4, (PASSED, COMING),
         ': behind tick 3, up to tick 4; consumer one: passed; consumer two: to come'),
        (None, 3, None, (), ': no tick yet (the last is 3); no consumer is registered'),
        (None, None, 4, (PASSED,), ': up to tick 4, the first that PgQ still has; consumer one: passed'),
        ('one', 3, 4, (Reader('one', 'in its batch', 7),),
         ', again for consumer one: behind tick 3, up to tick 4; consumer one: in its batch 7'),
    ],
)  # fmt: skip
def test_where_an_event_is(
    consumer: str | None, after: int | None, until: int | None, readers: tuple[Reader, ...], said: str
) -> None:
    copy = Copy('q', 42, consumer, 'now', 1, 0, after, until, readers)
    assert place(copy) == f'event 42 of q{said}'


def test_the_conditions_of_a_scope() -> None:
    assert Scope().where('exchange', 'hour') == ('true', [])
    condition, args = Scope('q', '', 5.0).where('place', 'seen_at')
    assert condition == 'true and queue = %s and place = %s and seen_at >= %s'
    assert args == ['q', '', 5.0]
