"""`mikkood unregister`: it throws events away, so it asks first, and refuses while a relay is at work."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from mikkoo.common import config, pgq
from mikkoo.common.errors import DatabaseError, Exit
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from mikkoo.supervisor import question
from mikkoo.supervisor.places import configuration_path
from mikkoo.supervisor.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Target:
    """Which consumer is to go."""

    queue: str
    consumer: str
    postgres_url: str


def choose(
    configuration: str | None, name: str | None, queue: str | None, consumer: str | None, url: str | None
) -> Target:
    """By the name of a worker in the configuration, or by all the rest. Raises Refusal for a mixture."""
    if name is None and queue and consumer and url:
        return Target(queue, consumer, url)
    if name is None or queue or consumer or url:
        raise Refusal('give either NAME or all of --queue, --consumer and --postgres-url', Exit.USAGE)
    path = configuration_path(configuration)
    workers = {worker.name: worker for worker in config.load(path).workers}
    worker = workers.get(name)
    if worker is None:
        known = ', '.join(workers) or 'none'
        raise Refusal(
            f'{path} has no worker {name!r} (it has: {known}); '
            'for one that was removed give --queue, --consumer and --postgres-url'
        )
    return Target(worker.queue, worker.consumer_name, worker.postgres_url)


def unregister(target: Target, *, ask: bool) -> int:
    """Unregister a consumer: what it has not read is lost to it. Raises Refusal, DatabaseError."""
    with closing(Pulse()) as pulse:
        session = Session.connect(target.postgres_url, pulse, application_name='mikkood unregister')
        with closing(session):
            _require_queue(session, target.queue)
            consumer = pgq.Consumer(session, target.queue, target.consumer)
            if not consumer.own():
                raise Refusal(
                    f'a relay is at work for {_phrase(target)} (server process {consumer.owner()}): '
                    'remove its worker from the configuration, or stop mikkood, first'
                )
            if ask and not _agreed(target, consumer):
                print('nothing was done')
                return Exit.FAILURE
            found = consumer.unregister()
    print(f'{_phrase(target)} {"is unregistered" if found else "was not registered"}')
    return Exit.OK


def _require_queue(session: Session, queue: str) -> None:
    if not pgq.queue_exists(session, queue):
        nearest = pgq.nearest_queue(session, queue)
        raise Refusal(f'no queue {queue!r}' + (f'; did you mean {nearest!r}?' if nearest else ''))


def _agreed(target: Target, consumer: pgq.Consumer) -> bool:
    """Ask, naming what will be lost; where it is not registered nothing is. Nobody to ask counts as no."""
    try:
        pending = consumer.pending()
    except DatabaseError as error:
        if error.sqlstate != '42704':
            raise
        return True
    print(
        f'{_phrase(target)}, last read {pending.seen:.0f} s ago: {pending.events:,} events or so wait, its '
        'retries aside; they are all lost to it, and so is all that is inserted until it registers again.'
    )
    return question.agreed('Unregister?')


def _phrase(target: Target) -> str:
    return f'consumer {target.consumer!r} of queue {target.queue!r}'
