"""One child: its settings and life, its process and pipe while it lives, and how it is shown."""

from __future__ import annotations

import logging
from typing import Any

from mikkoo.common import reports
from mikkoo.common.pipe import Message, Pipe
from mikkoo.common.settings import ProcessSettings, Telemetry
from mikkoo.supervisor.spawn import SpawnProcess
from mikkoo.supervisor.states import Life, State, describe

Key = tuple[str, str, int]  # kind, name, instance

logger = logging.getLogger('mikkoo.supervisor')


class Child:
    """One key's settings and life; while it lives, its process and pipe as well."""

    def __init__(self, key: Key, settings: ProcessSettings, life: Life) -> None:
        self.key = key
        self.settings = settings
        self.life = life
        self.process: SpawnProcess | None = None
        self.pipe: Pipe | None = None
        self.told: Telemetry | None = None  # the settings that it has
        self.waits = ''
        self.why = ''  # it gave as the cause of its death
        self.numbers: Message = {}

    @property
    def name(self) -> str:
        return self.key[1]

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def status(self, now: float) -> dict[str, Any]:
        """What `mikkood status` shows. `since` and `beat_age`: seconds in this state, and without a beat."""
        life = self.life
        return {
            'name': self.name,
            'kind': self.key[0],
            'queue': self.settings.queue,
            'consumer': getattr(self.settings, 'consumer_name', None),
            'pid': self.pid,
            'state': life.state.value,
            'reason': life.reason,
            'since': round(now - life.since, 3),
            'restarts': life.restarts,
            'failures': life.failures,
            'last_exit': None if life.last_exit is None else describe(life.last_exit),
            'waits': self.waits if life.live else '',
            'beat_age': round(now - life.beaten, 3) if life.live else None,
            'numbers': self.numbers,
        }

    def log(self) -> None:
        """One line for each change of a state; FATAL is reported as well."""
        life = self.life
        reason = f': {life.reason}' if life.reason else ''
        if life.state is State.FATAL:
            logger.error('%s is FATAL%s', self.name, reason)
            reports.message(f'{self.name} is FATAL', reason=life.reason, queue=self.settings.queue)
        elif life.killed:
            logger.error('%s is killed%s', self.name, reason)
        elif life.state is State.BACKOFF:
            logger.warning('%s backs off%s; failure %d running', self.name, reason, life.failures)
        elif life.state is State.STARTING:
            logger.debug('%s is being started%s', self.name, reason)
        else:
            logger.info('%s is %s%s', self.name, life.state.value, reason)
