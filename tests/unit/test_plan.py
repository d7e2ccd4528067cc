"""The difference of two configurations."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from mikkoo.common.settings import (
    AuditorSettings,
    BindingSettings,
    DaemonSettings,
    Settings,
    StatsdSettings,
    Telemetry,
    WorkerSettings,
)
from mikkoo.supervisor.plan import Plan, consumer, diff, without_password


def worker(name: str, **changes: object) -> WorkerSettings:
    settings = WorkerSettings(name=name, queue=name, postgres_url='postgresql://app:secret@db:5432/shop')
    return replace(settings, **changes)  # type: ignore[arg-type]


A, B, C = worker('a'), worker('b'), worker('c')


def test_only_what_changed_is_touched() -> None:
    changed = replace(B, max_failures=3)
    plan = diff(Settings(workers=(A, B, C)), Settings(workers=(changed, A, worker('d'))))
    assert plan == Plan(start=(worker('d'),), restart=(changed,), retire=(C,), leave=(C,), keep=('a',))


def auditor(name: str, **changes: object) -> AuditorSettings:
    settings = AuditorSettings(name, f'mikkoo.audit.{name}', 'postgresql://db/shop', (BindingSettings('e'),))
    return replace(settings, **changes)  # type: ignore[arg-type]


def test_auditors_are_touched_as_workers_are() -> None:
    new = replace(auditor('y'), keep=9.0)
    plan = diff(
        Settings(workers=(A,), auditors=(auditor('x'), auditor('y'), auditor('z'))),
        Settings(workers=(A,), auditors=(auditor('w'), new, auditor('z'))),
    )
    assert plan == Plan(start=(auditor('w'),), restart=(new,), retire=(auditor('x'),), keep=('a', 'z'))


def test_a_worker_that_becomes_an_auditor_goes_and_comes() -> None:
    plan = diff(Settings(workers=(A,)), Settings(auditors=(auditor('a'),)))
    assert plan == Plan(start=(auditor('a'),), retire=(A,), leave=(A,))


def test_the_same_is_nothing_to_do() -> None:
    plan = diff(Settings(workers=(A, B)), Settings(workers=(B, A), warnings=('x',)))
    assert plan == Plan(keep=('b', 'a'))


@pytest.mark.parametrize('field', [field.name for field in fields(WorkerSettings) if field.name != 'name'])
def test_every_setting_of_a_worker_restarts_it(field: str) -> None:
    value = getattr(A, field)
    other = (
        not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else 'other'
    )
    plan = diff(Settings(workers=(A,)), Settings(workers=(replace(A, **{field: other}),)))
    assert [w.name for w in plan.restart] == ['a']
    assert not plan.keep


def test_telemetry_is_told_and_restarts_nobody() -> None:
    new = Settings(workers=(A,), telemetry=Telemetry(statsd=StatsdSettings(enabled=True)))
    assert diff(Settings(workers=(A,)), new) == Plan(keep=('a',), tell=True)


def test_logging_is_the_supervisors_own() -> None:
    assert diff(Settings(), Settings(logging={'version': 1})) == Plan(log=True)


def test_the_daemon_section_needs_a_restart() -> None:
    assert diff(Settings(), Settings(daemon=DaemonSettings(user='x'))) == Plan(needs_restart=True)


@pytest.mark.parametrize(
    ('new', 'left'),
    [
        (worker('a', postgres_url='postgresql://other:changed@db:5432/shop'), False),
        (worker('a', consumer_name='another'), True),
        (worker('a', queue='another'), True),
        (worker('a', postgres_url='postgresql://app:secret@db:5432/other'), True),
        (worker('renamed', queue='a'), False),
    ],
)
def test_a_consumer_is_left_only_if_nobody_continues_it(new: WorkerSettings, left: bool) -> None:
    plan = diff(Settings(workers=(A,)), Settings(workers=(new,)))
    assert plan.leave == ((A,) if left else ())


def test_a_consumer_in_a_key_value_string() -> None:
    one = worker('a', postgres_url="host=db dbname=shop user=app password='a b'")
    two = worker('a', postgres_url='host=db dbname=shop user=other password=x')
    assert consumer(one) == consumer(two)
    assert consumer(one) != consumer(worker('a', postgres_url='host=db dbname=other'))


@pytest.mark.parametrize(
    ('url', 'shown'),
    [
        ('postgresql://app:s:ec@ret@db:5432/shop', 'postgresql://app@db:5432/shop'),
        ('postgresql://db/shop', 'postgresql://db/shop'),
        (
            'postgresql://h1:1,h2:2/shop?password=x&sslmode=require',
            'postgresql://h1:1,h2:2/shop?sslmode=require',
        ),
        ("host=db password='s e\\'c' dbname=shop", 'host=db dbname=shop'),
        ('password = s dbname=shop sslpassword=t', 'dbname=shop'),
        ('password=s ecret dbname=shop', 'dbname=shop'),
        ("dbname=shop password='s ecret", 'dbname=shop'),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
