"""What the commands print for people: tables by rich, plain where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mikkoo.common.pgq_dead_letters import DeadLetter, WholeDeadLetter
    from mikkoo.supervisor.probe import Probe

PIPED_WIDTH = 1000  # columns: a line is never broken for a program that reads it

STATE_STYLES = {
    'RUNNING': 'green', 'STANDBY': 'cyan', 'STARTING': 'yellow', 'STOPPING': 'yellow',
    'PAUSED': 'yellow', 'BACKOFF': 'red', 'FATAL': 'bold red', 'STOPPED': 'dim',
}  # fmt: skip
MARKS = {'ok': ('✓', 'ok', 'green'), 'warn': ('!', 'warning', 'yellow'), 'failed': ('✗', 'FAILED', 'red')}
COUNTS = ('processed', 'failed', 'pending_events', 'dead_letters')
COLUMNS = (
    ('WORKER', 'left'), ('QUEUE', 'left'), ('STATE', 'left'), ('PID', 'right'), ('FOR', 'right'),
    ('PROCESSED', 'right'), ('FAILED', 'right'), ('PENDING', 'right'), ('DEAD', 'right'),
    ('WAITS FOR', 'left'),
)  # fmt: skip
AUDITOR_COUNTS = (
    'audit.received', 'audit.outstanding', 'audit.late', 'audit.differing', 'audit.duplicate',
    'audit.unknown',
)  # fmt: skip
AUDITOR_COLUMNS = (
    ('AUDITOR', 'left'), *COLUMNS[1:5],
    ('RECEIVED', 'right'), ('OUTSTANDING', 'right'), ('LATE', 'right'), ('DIFFERING', 'right'),
    ('DUPLICATE', 'right'), ('UNKNOWN', 'right'), ('WAITS FOR', 'left'),
)  # fmt: skip
DEAD_LETTER_COLUMNS = (
    ('ID', 'right'), ('QUEUE', 'left'), ('EVENT', 'right'), ('EXCHANGE', 'left'), ('ROUTING KEY', 'left'),
    ('TRIED', 'right'), ('DEAD FOR', 'right'), ('CODE', 'left'), ('REASON', 'left'),
)  # fmt: skip


def status(answer: Mapping[str, Any]) -> None:
    """Print the answer of `mikkood status`."""
    console = _console()
    for line in headlines(answer):
        console.print(line, soft_wrap=True)
    children = answer.get('children') or ()
    for kind, columns, counts in (
        ('worker', COLUMNS, COUNTS),
        ('auditor', AUDITOR_COLUMNS, AUDITOR_COUNTS),
    ):
        rows = [_row(child, counts) for child in children if child.get('kind', 'worker') == kind]
        if rows:
            _print_table(console, _table(columns, rows))
    if children:
        return
    if answer.get('state') == 'running' and 'children' in answer:
        console.print('no workers', soft_wrap=True)


def probes(results: Iterable[Probe]) -> list[Probe]:
    """Print each probe as it is done; all of them."""
    console = _console()
    done: list[Probe] = []
    for probe in results:
        if not done or done[-1].subject != probe.subject:
            console.print(Text(probe.subject, 'bold'), soft_wrap=True)
        symbol, word, style = MARKS[probe.outcome]
        mark = word if console.options.ascii_only else symbol
        line = Text.assemble('  ', (mark, style), f' {probe.name}: {probe.text}')
        console.print(line, soft_wrap=True)
        if probe.remedy:
            console.print(Text(f'    to do: {probe.remedy}'), soft_wrap=True)
        done.append(probe)
    return done


def dead_letters(rows: Sequence[tuple[str, DeadLetter]], total: int) -> None:
    """Print a table of dead letters, each with its database, and how many more there are."""
    console = _console()
    where = ''
    for database, group in groupby(rows, lambda row: row[0]):
        if database != where:
            console.print(Text(database, 'bold'), soft_wrap=True)
            where = database
        _print_table(console, _table(DEAD_LETTER_COLUMNS, [_dead_letter_row(letter) for _, letter in group]))
    if not total:
        console.print('no dead letters', soft_wrap=True)
    elif more := total - len(rows):
        console.print(f'and {more:,} more', soft_wrap=True)


def dead_letter(database: str, letter: WholeDeadLetter) -> None:
    """Print all of a dead letter, its payload last and on lines of its own."""
    console = _console()
    console.print(Text(f'dead letter {letter.id} of {database}', 'bold'), soft_wrap=True)
    for field in fields(letter):
        value = getattr(letter, field.name)
        if field.name not in ('id', 'age', 'payload'):
            said = 'NULL' if value is None else printable(str(value))
            console.print(Text(f'  {field.name:16} {said}'), soft_wrap=True)
    if letter.payload is not None:
        console.print(Text('  payload'), soft_wrap=True)
        console.print(Text(printable(letter.payload, also='\n\t')), soft_wrap=True)


def line(text: str, style: str = '') -> None:
    """Print a line, in a pipe of any length."""
    _console().print(Text(text, style), soft_wrap=True)


def table(columns: Sequence[tuple[str, Any]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. `columns`: titles, and 'left' or 'right'."""
    _print_table(_console(), _table(columns, [[Text(printable(cell)) for cell in row] for row in rows]))


def printable(text: str, also: str = '') -> str:
    """A text of others for a terminal: what could move its cursor, or worse, is shown by its escape."""
    return ''.join(
        char if char.isprintable() or char in also else char.encode('unicode_escape').decode()
        for char in text
    )


def headlines(answer: Mapping[str, Any]) -> list[Text]:
    """The lines above the table of workers."""
    state = str(answer['state'])
    pid = f' (pid {answer["pid"]})' if answer.get('pid') else ''
    lines = [
        Text.assemble('mikkood', f' {answer["version"]}' if 'version' in answer else '', ': ', state, pid)
    ]
    if answer.get('foreground'):
        lines[0].append(' in the foreground')
    if 'uptime' in answer:
        lines[0].append(f' for {duration(answer["uptime"])}')
    if answer.get('pidfile'):
        lines.append(Text(f'it left {answer["pidfile"]}; the next start takes it over'))
    if 'config' in answer:
        lines.append(Text(f'configuration: {answer["config"]}'))
    if answer.get('error'):
        lines.append(Text(str(answer['error']), 'red'))
    if answer.get('log_failure'):
        lines.append(Text(f'log records are lost: {answer["log_failure"]}', 'red'))
    if answer.get('needs_restart'):
        lines.append(Text('needs restart: the Daemon section has changed (mikkood restart)', 'yellow'))
    return lines + _last_reload(answer.get('last_reload') or {})


def changes(answer: Mapping[str, Any]) -> str:
    """What a reload did, in words."""
    said = [
        f'{verb} {", ".join(answer[key])}'
        for key, verb in (('started', 'started'), ('restarted', 'restarted'), ('retired', 'retired'))
        if answer.get(key)
    ]
    if answer.get('told'):
        said.append('told the workers their new logging and metrics settings')
    if answer.get('needs_restart'):
        said.append('the Daemon section has changed and needs `mikkood restart`')
    return 'reloaded: ' + ('; '.join(said) or 'nothing has changed')


def duration(seconds: float) -> str:
    """Seconds in at most two units: '12 s', '3 min 5 s', '2 h 0 min', '4 d 7 h'."""
    whole = max(0, int(seconds))
    for size, unit, smaller, small_unit in (
        (86400, 'd', 3600, 'h'),
        (3600, 'h', 60, 'min'),
        (60, 'min', 1, 's'),
    ):
        if whole >= size:
            return f'{whole // size} {unit} {whole % size // smaller} {small_unit}'
    return f'{whole} s'


def moment(at: float) -> str:
    """Unix seconds as local time with its offset."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(' ', 'seconds')


def _last_reload(reload: Mapping[str, Any]) -> list[Text]:
    if not reload or reload.get('ok', True):
        return []
    when = f'the reload at {moment(reload["at"])} failed, the old settings stay:'
    return [Text(when, 'bold red'), *(Text(f'  {mistake}', 'red') for mistake in reload.get('mistakes', ()))]


def _row(child: Mapping[str, Any], counts: Sequence[str]) -> Sequence[Text]:
    numbers = child.get('numbers') or {}
    state = str(child['state'])
    waits = child.get('reason') or child.get('waits') or ''
    return [
        Text(str(child['name'])),
        Text(str(child.get('queue') or '')),
        Text(state, STATE_STYLES.get(state, '')),
        Text(str(child.get('pid') or '-')),
        Text(duration(child['since'])),
        *(Text(_count(numbers.get(key))) for key in counts),
        Text(str(waits).splitlines()[0] if waits else ''),
    ]


def _dead_letter_row(letter: DeadLetter) -> Sequence[Text]:
    return [
        Text(str(letter.id)),
        Text(printable(letter.queue)),
        Text(str(letter.event_id)),
        Text(printable(letter.exchange or '') or '-'),
        Text(printable(letter.routing_key or '') or '-'),
        Text(str(letter.attempts)),
        Text(duration(letter.age)),
        Text(letter.reason_code),
        Text(printable(letter.reason)),
    ]


def _count(number: object) -> str:
    return f'{number:,}' if isinstance(number, int) else '-'


def _table(columns: Sequence[tuple[str, Any]], rows: Iterable[Sequence[Text]]) -> Table:
    """No frame: it reads as well in a pipe, and cuts as well with awk."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify in columns:
        table.add_column(title, justify=justify, overflow='fold', no_wrap=title != columns[-1][0])
    for row in rows:
        table.add_row(*row)
    return table


def _print_table(console: Console, table: Table) -> None:
    """In a pipe without the blanks that fill the last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if terminal else PIPED_WIDTH)
