"""What `mikkood audit` says: the answer of `report` for programs, and both answers for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from mikkoo.common.audit_report import Group, Report
from mikkoo.common.audit_trace import Copy, Record, Trace
from mikkoo.common.settings import AuditorSettings
from mikkoo.supervisor import output
from mikkoo.supervisor.output import duration, printable

COUNTS = ('recorded', 'received', 'outstanding', 'late', 'differing', 'duplicate', 'expired')
COLUMNS = (
    ('QUEUE', 'left'), ('EXCHANGE', 'left'), *((name.upper(), 'right') for name in COUNTS),
    ('MEAN', 'right'), ('LONGEST', 'right'), ('AUDITOR', 'left'),
)  # fmt: skip
DEFAULT_EXCHANGE = '(default)'
NO_EVENT_ID = 'unknown: nothing tells its event id'
WIDTH = 15  # columns of a name in `show`

Scope = tuple[str | None, str | None, datetime | float | None]
Audited = tuple[str, Sequence[AuditorSettings], Report]


def answer(databases: Sequence[Audited], failures: Sequence[str], scope: Scope) -> dict[str, Any]:
    """The documented answer of `audit report --json`."""
    groups = [group for _, _, report in databases for group in report.groups]
    queue, exchange, since = scope
    waiting = [
        (report.oldest.age, {'database': where, **asdict(report.oldest)})
        for where, _, report in databases
        if report.oldest is not None
    ]
    return {
        'clean': not failures and all(group.clean for group in groups),
        'queue': queue,
        'exchange': exchange,
        'since': since.isoformat() if isinstance(since, datetime) else since,
        'auditors': [_auditor(where, one) for where, auditors, _ in databases for one in auditors],
        'totals': {
            **_numbers(groups),
            'unknown': sum(report.unknown for _, _, report in databases),
            'unidentified': sum(report.unidentified for _, _, report in databases),
        },
        'groups': [
            _group(where, auditors, group) for where, auditors, report in databases for group in report.groups
        ],
        'oldest_outstanding': max(waiting, key=lambda one: one[0])[1] if waiting else None,
        'late': [{'database': where, **asdict(one)} for where, _, found in databases for one in found.late],
        'differing': [
            {'database': where, **asdict(one)} for where, _, found in databases for one in found.differing
        ],
        'failures': list(failures),
    }


def report(answer: Mapping[str, Any]) -> None:
    """Print an answer: the verdict first, as monitoring shows the first line alone."""
    output.line(verdict(answer), 'green' if answer['clean'] else 'bold red')
    for failure in answer['failures']:
        output.line(f'not asked: {failure}', 'red')
    for one in answer['auditors']:
        output.line(
            f'{one["database"]}: auditor {one["name"]} of {", ".join(map(printable, one["exchanges"]))}, '
            f'grace {one["grace"]:g} s'
        )
    if not answer['auditors']:
        output.line('nobody audits: the configuration has no auditor', 'yellow')
    if answer['groups']:
        output.table(COLUMNS, [_row(group) for group in answer['groups']])
    totals = answer['totals']
    if totals['unknown'] or totals['unidentified']:
        output.line(
            f'without a record: {totals["unknown"]:,} with an unknown message_id, '
            f'{totals["unidentified"]:,} with none'
        )
    if oldest := answer['oldest_outstanding']:
        output.line(f'oldest outstanding: {_waiting(oldest)}')
    _named('late', totals['late'], [_waiting(one) for one in answer['late']])
    _named('differing', totals['differing'], [_differing(one) for one in answer['differing']])


def verdict(answer: Mapping[str, Any]) -> str:
    """One line."""
    totals = answer['totals']
    said = ', '.join(f'{totals[name]:,} {name}' for name in COUNTS if totals[name] or name in COUNTS[:3])
    if answer['clean']:
        return f'audit clean: {said}'
    unclean = any(totals[name] for name in ('late', 'differing', 'expired'))
    return f'audit {"NOT CLEAN" if unclean else "UNKNOWN"}: {said}'


def trace(where: str, message_id: str, found: Trace) -> None:
    """Print all that is stored of one event; what is not is called so."""
    output.line(f'message {message_id} in {where}', 'bold')
    searched = bool(found.records or found.dead_letters)
    for record in found.records:
        _record(record)
    if not found.records:
        _say('record', 'not recorded: never made, or deleted on arrival or by age')
        _say('receipt', 'not recorded')
    _list('difference', 'none', (
        f'{", ".join(one.fields)}: seen {one.seen_at} by auditor {one.auditor}, exchange '
        f'{one.exchange or DEFAULT_EXCHANGE}, key {one.routing_key}, content_type {one.content_type}, '
        f'{one.body_size:,} bytes, SHA-256 {one.body_sha256}'
        for one in found.differences
    ))  # fmt: skip
    _list('retry queue', 'not there' if searched else NO_EVENT_ID, (
        f'event {one.event_id} of {one.queue} for consumer {one.consumer}, attempt {one.attempt}, '
        f'due {one.due}'
        for one in found.retries
    ))  # fmt: skip
    _list('dead letter', 'none', (
        f'{one.id}: consumer {one.consumer} of {one.queue}, {one.reason_code}: {one.reason} '
        f'(tried {one.attempts}, {one.dead_at})'
        for one in found.dead_letters
    ))  # fmt: skip
    gone = 'PgQ has the event no more' if searched else NO_EVENT_ID
    _list('batch', gone, map(place, found.copies))


def place(copy: Copy) -> str:
    """Which batch holds an event, and how far the consumers are."""
    said = f'event {copy.event_id} of {copy.queue}'
    if copy.consumer is not None:
        said += f', again for consumer {copy.consumer}'
    if copy.until is None:
        said += f': no tick yet (the last is {copy.after})'
    elif copy.after is None:
        said += f': up to tick {copy.until}, the first that PgQ still has'
    else:
        said += f': behind tick {copy.after}, up to tick {copy.until}'
    readers = [
        f'consumer {one.consumer}: {one.state}' + (f' {one.batch}' if one.batch is not None else '')
        for one in copy.readers
    ]
    return '; '.join([said, *(readers or ['no consumer is registered'])])


def _record(record: Record) -> None:
    for field in fields(record):
        if field.name not in ('age', 'received_at', 'payload'):
            value = getattr(record, field.name)
            name = 'record' if field.name == 'event_id' else ''
            _say(name, f'{field.name} {"NULL" if value is None else value}')
    payload = 'NULL' if record.payload is None else f'of {len(record.payload.encode()):,} bytes'
    _say('', f'payload {payload}')
    if record.payload:
        output.line(printable(record.payload, also='\n\t'))
    age = duration(record.age) if record.age >= 60 else f'{record.age:.3f} s'
    if record.received_at is None:
        _say('receipt', f'not recorded: outstanding for {age}')
    else:
        _say('receipt', f'{record.received_at}, after {age}')


def _say(name: str, text: str) -> None:
    output.line(f'  {name:{WIDTH}} {printable(text)}')


def _list(name: str, nothing: str, found: Iterable[str]) -> None:
    for text in list(found) or [nothing]:
        _say(name, text)


def _numbers(groups: Sequence[Group]) -> dict[str, Any]:
    counts: dict[str, Any] = {name: sum(getattr(group, name) for group in groups) for name in COUNTS}
    longest = [group.latency_max for group in groups if group.latency_max is not None]
    total = sum(group.latency_total for group in groups)
    mean = total / counts['received'] if counts['received'] else None
    return {**counts, 'latency_mean': mean, 'latency_max': max(longest, default=None)}


def _group(where: str, auditors: Sequence[AuditorSettings], group: Group) -> dict[str, Any]:
    bound = {one.name for one in auditors if group.exchange in one.exchanges}
    return {
        'database': where,
        'queue': group.queue,
        'exchange': group.exchange,
        'auditors': sorted(bound.union(group.auditors)),
        **_numbers([group]),
    }


def _auditor(where: str, auditor: AuditorSettings) -> dict[str, Any]:
    return {
        'database': where,
        'name': auditor.name,
        'exchanges': list(auditor.exchanges),
        'grace': auditor.grace,
        'action': auditor.action,
    }


def _row(group: Mapping[str, Any]) -> list[str]:
    latencies = [group['latency_mean'], group['latency_max']]
    return [
        group['queue'],
        group['exchange'] or DEFAULT_EXCHANGE,
        *(f'{group[name]:,}' for name in COUNTS),
        *('-' if seconds is None else f'{seconds:.3f} s' for seconds in latencies),
        ', '.join(group['auditors']) or 'nobody',
    ]


def _named(what: str, total: int, lines: Sequence[str]) -> None:
    if lines:
        output.line(f'{what}:')
    for text in lines:
        output.line(f'  {text}')
    if lines and total > len(lines):
        output.line(f'  and {total - len(lines):,} more: --all')


def _waiting(one: Mapping[str, Any]) -> str:
    return f'{_message(one)}, published {one["published_at"]}, {duration(one["age"])} ago'


def _differing(one: Mapping[str, Any]) -> str:
    return f'{_message(one)}, {", ".join(one["fields"])}, seen {one["seen_at"]} by auditor {one["auditor"]}'


def _message(one: Mapping[str, Any]) -> str:
    exchange = printable(one['exchange']) or DEFAULT_EXCHANGE
    return f'{one["message_id"]} of queue {printable(one["queue"])}, exchange {exchange}'
