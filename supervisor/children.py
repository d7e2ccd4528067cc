"""The live children by (kind, name, instance): their processes, pipes and numbers; carries out decisions.

What happens to a child is decided in `states`; here its Action becomes a process, a signal or an end.
"""

from __future__ import annotations

import logging
import selectors
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mikkoo.common import logs
from mikkoo.common.errors import Exit
from mikkoo.common.metrics import CHILDREN_RESTARTS, CHILDREN_RUNNING, Metrics
from mikkoo.common.pipe import Message, Pipe
from mikkoo.common.settings import ProcessSettings, Telemetry, WorkerSettings, telemetry_to_dict
from mikkoo.supervisor.child import Child, Key
from mikkoo.supervisor.plan import Plan, without_password
from mikkoo.supervisor.spawn import ENTRIES, SpawnProcess, forget, spawn
from mikkoo.supervisor.states import (
    DEFAULT_POLICY,
    NEVER,
    WORKING,
    Action,
    Life,
    Policy,
    State,
    Step,
    describe,
)

KILL_PATIENCE = 1.0  # seconds in which a killed process ends, unless the kernel cannot let go of it

logger = logging.getLogger('mikkoo.supervisor')


class Children:
    """All children of one supervisor. `selector` has their pipes and sentinels, with what to call as data."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        telemetry: Telemetry,
        metrics: Metrics,
        *,
        policy: Policy = DEFAULT_POLICY,
        entries: Mapping[str, str] = ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._selector = selector
        self._telemetry = telemetry
        self._metrics = metrics
        self._policy = policy
        self._entries = entries
        self._clock = clock
        self._children: dict[Key, Child] = {}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    @property
    def live(self) -> bool:
        """Whether any process is left."""
        return any(child.life.live for child in self)

    def due(self) -> float:
        """When `tick` next has something to do."""
        return min((child.life.due for child in self), default=NEVER)

    def status(self) -> list[dict[str, Any]]:
        now = self._clock()
        return [child.status(now) for child in self]

    def apply(self, plan: Plan, telemetry: Telemetry) -> None:
        """Carry out a plan, and give what is FATAL another chance."""
        self._telemetry = telemetry
        for settings in plan.leave:
            self._leave(settings)
        for process in plan.retire:
            self._stop(self._children[_key(process)], reason='removed from the configuration')
        for process in plan.restart:
            child = self._children[_key(process)]
            child.settings = process
            self._stop(child, again=True, reason='its settings changed')
        for process in plan.start:
            self._add(process)
        for child in self:
            if child.life.state is State.FATAL:
                self._take(child, child.life.start(self._clock()))
            self._tell(child)

    def restart(self, name: str | None) -> list[str]:
        """Restart one child, or all; the names. None is touched if there is no such name."""
        chosen = [child for child in self if name in (None, child.name) and not self._leaves(child)]
        for child in chosen:
            self._stop(child, again=True, reason='restart was asked for')
        return [child.name for child in chosen]

    def stop(self, *, for_good: bool = True) -> None:
        """Ask all to go. `for_good`: those that are so configured unregister their consumer."""
        for child in self:
            if for_good and child.pipe is not None:
                child.pipe.send('retire')
            self._stop(child, reason='the supervisor stops')

    def kill(self, reason: str) -> None:
        """End all at once."""
        for child in self:
            self._take(child, child.life.kill(self._clock(), reason))

    def tick(self, now: float) -> None:
        """Time has passed."""
        for child in self:
            if child.life.due <= now:
                self._take(child, child.life.passed(now))

    def pardon(self) -> None:
        """We did not run either (the machine or container was suspended): silence meanwhile says nothing."""
        for child in self:
            self._take(child, child.life.beat(self._clock()))

    def close(self) -> None:
        """Leave no process behind, whatever happened before.

        Blocks until the stop's deadline and KILL_PATIENCE at most: a process that the kernel holds (state D,
        as on a dead NFS server) ends when it is let go.
        """
        self.stop(for_good=False)
        deadline = self._clock() + self._policy.stop_deadline
        left = [(child, child.process) for child in self if child.process is not None]
        for _, process in left:
            process.join(max(0.0, deadline - self._clock()))
            process.kill()
        for child, process in left:
            process.join(max(0.0, deadline + KILL_PATIENCE - self._clock()))
            if process.exitcode is None:
                self._abandon(child, process)
            else:
                self._reap(child, process)

    def _add(self, settings: ProcessSettings) -> None:
        key = _key(settings)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = Child(key, settings, Life(self._policy))
        child.settings = settings  # of one that is just leaving: it comes again with these
        self._take(child, child.life.start(self._clock()))

    def _leave(self, settings: WorkerSettings) -> None:
        """Nobody continues this consumer: its owner unregisters it, else PgQ keeps events for it for ever."""
        child = self._children[_key(settings)]
        working = child.life.state in WORKING and child.pipe is not None
        if settings.unregister and working and child.pipe is not None and child.pipe.send('retire'):
            return
        command = shlex.join([
            'mikkood', 'unregister', '--queue', settings.queue, '--consumer', settings.consumer_name,
            '--postgres-url', without_password(settings.postgres_url),
        ])  # fmt: skip
        logger.warning(
            '%s is retired, and its consumer %s of the queue %s stays registered: PgQ keeps every event'
            ' for it. If it is not to come back: %s',
            settings.name, settings.consumer_name, settings.queue, command,
        )  # fmt: skip

    def _leaves(self, child: Child) -> bool:
        return child.life.state is State.STOPPING and not child.life.again

    def _stop(self, child: Child, *, again: bool = False, reason: str) -> None:
        self._take(child, child.life.stop(self._clock(), again=again, reason=reason))

    def _take(self, child: Child, step: Step) -> None:
        """Carry out what was decided about a child."""
        before, (child.life, action) = child.life, step
        if child.life.state is not before.state or action is Action.KILL:
            child.log()
        if action is Action.START:
            self._start(child, restarted=child.life.restarts > before.restarts)
        elif action is Action.TERM and child.process is not None:
            child.process.terminate()
        elif action is Action.KILL and child.process is not None:
            child.process.kill()
        if child.life.state is State.STOPPED:
            self._children.pop(child.key, None)
        self._metrics.gauge(CHILDREN_RUNNING, sum(other.life.live for other in self))

    def _start(self, child: Child, *, restarted: bool) -> None:
        if restarted:
            self._metrics.count(CHILDREN_RESTARTS)
        child.waits, child.why, child.told = '', '', self._telemetry
        try:
            process, pipe = spawn(self._entries[child.key[0]], child.settings, self._telemetry)
        except OSError as error:
            why = f'could not be started: {error}'
            self._take(child, child.life.exited(Exit.FAILURE, self._clock(), why))
            return
        child.process, child.pipe = process, pipe
        self._selector.register(pipe, selectors.EVENT_READ, partial(self._hear, child, pipe))
        self._selector.register(process.sentinel, selectors.EVENT_READ, partial(self._reap, child, process))
        logger.info('%s started, pid %d', child.name, child.pid)

    def _hear(self, child: Child, pipe: Pipe) -> None:
        if child.pipe is not pipe:
            return  # it was reaped earlier in this round of the loop
        for message in pipe.receive():
            self._heard(child, message)
        if pipe.ended:
            self._selector.unregister(pipe)

    def _heard(self, child: Child, message: Message) -> None:
        now = self._clock()
        match message.pop('kind', None):
            case 'beat':
                child.waits = message['waits']
                self._take(child, child.life.beat(now))
                self._tell(child)
            case 'state':
                self._take(child, child.life.told(message['state'], message['reason'], now))
            case 'recovered':
                self._take(child, child.life.recovered())
            case 'report':
                child.numbers = message
            case 'log':
                logs.handle(message)
            case 'died':
                child.why = message['reason'].strip().rpartition('\n')[2]
                logger.error('%s: %s', child.name, message['reason'])

    def _tell(self, child: Child) -> None:
        """Tell it what changed; one whose pipe is full is told again at its next beat."""
        if child.pipe is None or child.told == self._telemetry:
            return
        if child.pipe.send('tell', telemetry=telemetry_to_dict(self._telemetry)):
            child.told = self._telemetry

    def _reap(self, child: Child, process: SpawnProcess) -> None:
        """It has ended: hear its last words, collect its exit code, decide."""
        pipe = child.pipe
        if child.process is not process or pipe is None:
            return
        while messages := pipe.receive():
            for message in messages:
                self._heard(child, message)
        process.join()
        code = process.exitcode
        assert code is not None
        self._release(child, process, pipe)
        process.close()
        expected = child.life.state is State.STOPPING
        logger.log(logging.INFO if expected else logging.WARNING, '%s ended: %s', child.name, describe(code))
        self._take(child, child.life.exited(code, self._clock(), child.why))

    def _abandon(self, child: Child, process: SpawnProcess) -> None:
        """It was killed and does not end."""
        logger.error('%s, pid %s, does not even end by SIGKILL: it is left behind', child.name, process.pid)
        if child.pipe is not None:
            self._release(child, process, child.pipe)
        forget(process)

    def _release(self, child: Child, process: SpawnProcess, pipe: Pipe) -> None:
        self._selector.unregister(process.sentinel)
        if pipe.fileno() in self._selector.get_map():
            self._selector.unregister(pipe)
        pipe.close()
        child.process = child.pipe = None


def _key(settings: ProcessSettings) -> Key:
    return settings.kind, settings.name, 0
