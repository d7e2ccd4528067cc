"""`mikkood dead-letters`: what the relay gave up is listed, shown, put back or discarded.

Everything is looked at before anything is changed: an id that is not there, a consumer that is gone or a
missing right refuses the whole command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mikkoo.common import config
from mikkoo.common.errors import DatabaseError, Exit
from mikkoo.common.pgq_dead_letters import DeadLetter, DeadLetters, Done, Filter
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.supervisor import output, question
from mikkoo.supervisor.lifecycle import plural
from mikkoo.supervisor.places import configuration_path
from mikkoo.supervisor.refusal import Refusal

PREVIEW = 10  # dead letters that are shown before the question
DONE = {'retry': 'put back', 'discard': 'discarded'}
QUESTIONS = {'retry': 'Put them back?', 'discard': 'Discard them?'}

Verb = Literal['retry', 'discard']


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is to be changed in one database."""

    letters: DeadLetters
    ids: list[int]


@contextmanager
def opened(
    configuration: str | None, worker: str | None, which: Filter
) -> Iterator[tuple[list[DeadLetters], Filter]]:
    """The databases of the configuration, each once; with `worker` only its own, and its own dead letters.

    Raises ConfigurationError, DatabaseError, Refusal.
    """
    workers = _workers(configuration, worker)
    if worker is not None:
        which = replace(which, queue=workers[0].queue, consumer=workers[0].consumer_name)
    with ExitStack() as stack:
        pulse = stack.enter_context(closing(Pulse()))
        databases: dict[tuple[str, str], DeadLetters] = {}
        for url in dict.fromkeys(settings.postgres_url for settings in workers):
            session = Session.connect(url, pulse, application_name='mikkood dead-letters')
            stack.enter_context(closing(session))
            letters = DeadLetters(session)
            letters.require()
            databases.setdefault(letters.identity(), letters)
        yield list(databases.values()), which


def list_(databases: Sequence[DeadLetters], which: Filter, limit: int, *, as_json: bool) -> int:
    total = 0
    rows: list[tuple[str, DeadLetter]] = []
    for letters in databases:
        total += letters.count(which)
        rows += [(letters.where, found) for found in letters.find(which, limit - len(rows))]
    if as_json:
        found = [{'database': where, **asdict(letter)} for where, letter in rows]
        print(json.dumps({'total': total, 'dead_letters': found}, indent=2))
    else:
        output.dead_letters(rows, total)
    return Exit.OK


def show(databases: Sequence[DeadLetters], which: Filter, *, as_json: bool) -> int:
    [chosen] = _choose(databases, which)
    found = chosen.letters.whole(replace(which, ids=tuple(chosen.ids)))
    if not found:
        raise Refusal(f'dead letter {chosen.ids[0]} was retried or discarded at this moment')
    if as_json:
        print(json.dumps({'database': chosen.letters.where, **asdict(found[0])}, indent=2))
    else:
        output.dead_letter(chosen.letters.where, found[0])
    return Exit.OK


def change(verb: Verb, databases: Sequence[DeadLetters], which: Filter, *, ask: bool) -> int:
    """Retry or discard. Raises Refusal where nothing was done, or less than was chosen."""
    chosen = _choose(databases, which)
    total = sum(len(one.ids) for one in chosen)
    if not total:
        print('no dead letter matches')
        return Exit.OK
    if verb == 'retry':
        _refuse_obstacles(chosen)
    _preview(chosen, total)
    if ask and total > 1 and not question.agreed(QUESTIONS[verb]):
        print('nothing was done')
        return Exit.FAILURE
    done = [_apply(verb, one) for one in chosen]
    if left := _left(total, done):
        raise Refusal(left)
    return Exit.OK


def _workers(configuration: str | None, name: str | None) -> list[WorkerSettings]:
    path = configuration_path(configuration)
    workers = config.load(path).workers
    chosen = [worker for worker in workers if name in (None, worker.name)]
    if not chosen:
        known = ', '.join(worker.name for worker in workers) or 'none'
        raise Refusal(f'{path} has no worker{f" {name!r}" if name else ""} (it has: {known})')
    return chosen


def _choose(databases: Sequence[DeadLetters], which: Filter) -> list[Chosen]:
    """What matches, by database. Raises Refusal unless each id that is given is there exactly once."""
    chosen = [Chosen(letters, ids) for letters in databases if (ids := letters.ids(which))]
    found = [number for one in chosen for number in one.ids]
    for number in which.ids or ():
        places = [one.letters.where for one in chosen if number in one.ids]
        if len(places) > 1:
            raise Refusal(f'there is a dead letter {number} in {" and in ".join(places)}: give --worker')
    if missing := sorted(set(which.ids or ()).difference(found)):
        numbers = ', '.join(map(str, missing))
        matching = ' that matches' if replace(which, ids=None) != Filter() else ''
        where = ', '.join(letters.where for letters in databases)
        raise Refusal(f'there is no dead letter {numbers}{matching} in {where}')
    return chosen


def _refuse_obstacles(chosen: Sequence[Chosen]) -> None:
    found = [f'{one.letters.where}: {text}' for one in chosen for text in one.letters.obstacles(one.ids)]
    if found:
        raise Refusal('\n'.join([*found, 'nothing was done']))


def _preview(chosen: Sequence[Chosen], total: int) -> None:
    rows = [
        (one.letters.where, letter)
        for one in chosen
        for letter in one.letters.find(Filter(ids=tuple(one.ids)), PREVIEW)
    ]
    output.dead_letters(rows[:PREVIEW], total)


def _left(total: int, done: Sequence[Done]) -> str:
    """Why not all that was chosen was done; '' if it was."""
    blocked = [str(number) for step in done for number in step.blocked]
    gone = total - len(blocked) - sum(step.count for step in done)
    reasons = []
    if blocked:
        reasons.append(
            f'not put back: {", ".join(blocked)}: an event of the same id is in the retry queue of the '
            'consumer already; try again when it has been delivered'
        )
    if gone:
        reasons.append(f'{gone:,} of {total:,} were gone: retried or discarded by somebody else')
    return '\n'.join(reasons)


def _apply(verb: Verb, chosen: Chosen) -> Done:
    """Change one database; what was done is said even where an error ends it."""
    count = 0
    blocked: list[int] = []
    letters = chosen.letters
    try:
        for step in (letters.retry if verb == 'retry' else letters.discard)(chosen.ids):
            count += step.count
            blocked += step.blocked
    finally:
        print(f'{letters.where}: {DONE[verb]} {count:,} {plural("dead letter", count)}')
    if count and verb == 'retry':
        _move(letters)
    return Done(count, tuple(blocked))


def _move(letters: DeadLetters) -> None:
    """They are PgQ's again by now: what fails here only takes longer."""
    try:
        moved, why = letters.move_retries(), 'this user may not call mikkoo.move_retries'
    except DatabaseError as error:
        moved, why = None, str(error)
    if moved is None:
        print(f'mikkood: they reach their queue when the relay or pgqd moves them: {why}', file=sys.stderr)
