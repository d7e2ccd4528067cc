"""Pure: two configurations to what has to be done about the difference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from mikkoo.common.settings import ProcessSettings, Settings, WorkerSettings

_VALUE = r"\s*=\s*('(?:[^'\\]|\\.)*'|\S*)"  # of a libpq key=value string
_PAIR = re.compile(rf'\b(\w+){_VALUE}')
_PERSONAL = re.compile(rf'\b(user|passfile|(ssl)?password){_VALUE}')


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reload does. `start` and `restart` hold the new settings, `retire` the old ones.

    `leave`: old settings whose consumer nobody in the new configuration continues; it is unregistered if so
    configured, and its owner is retired or restarted.
    """

    start: tuple[ProcessSettings, ...] = ()
    restart: tuple[ProcessSettings, ...] = ()
    retire: tuple[ProcessSettings, ...] = ()
    leave: tuple[WorkerSettings, ...] = ()
    keep: tuple[str, ...] = ()
    tell: bool = False
    log: bool = False  # the Logging section changed: the supervisor alone has handlers
    needs_restart: bool = False  # the Daemon section changed, which only a new start can follow


def diff(old: Settings, new: Settings) -> Plan:
    """What leads from `old` to `new`. Only a process whose own settings changed is touched.

    A worker that becomes an auditor of the same name is retired, and the auditor started.
    """
    before = {(process.kind, process.name): process for process in old.processes}
    after = {(process.kind, process.name): process for process in new.processes}
    continued = {consumer(worker) for worker in new.workers}
    return Plan(
        start=tuple(process for key, process in after.items() if key not in before),
        restart=tuple(p for key, p in after.items() if key in before and p != before[key]),
        retire=tuple(process for key, process in before.items() if key not in after),
        leave=tuple(worker for worker in old.workers if consumer(worker) not in continued),
        keep=tuple(process.name for key, process in after.items() if process == before.get(key)),
        tell=old.telemetry != new.telemetry,
        log=old.logging != new.logging,
        needs_restart=old.daemon != new.daemon,
    )


def consumer(worker: WorkerSettings) -> tuple[str, str, str]:
    """Whose events a worker relays: (database, queue, consumer). A new user or password changes nothing."""
    url = urlsplit(worker.postgres_url)
    if url.scheme:
        query = sorted(pair for pair in parse_qsl(url.query) if pair[0] in ('host', 'port', 'dbname'))
        database = f'{url.netloc.rpartition("@")[2]}{url.path}?{urlencode(query)}'
    else:
        database = ' '.join(_PERSONAL.sub('', worker.postgres_url).split())
    return database, worker.queue, worker.consumer_name


def without_password(url: str) -> str:
    """A libpq URL, or key=value string, that may be shown."""
    parts = urlsplit(url)
    if not parts.scheme:
        # Not what is left without the password: that may be a part of one that lacks its quotes.
        return ' '.join(pair[0] for pair in _PAIR.finditer(url) if 'password' not in pair[1])
    user, at, host = parts.netloc.rpartition('@')
    query = [(name, value) for name, value in parse_qsl(parts.query) if 'password' not in name]
    return parts._replace(netloc=user.partition(':')[0] + at + host, query=urlencode(query)).geturl()
