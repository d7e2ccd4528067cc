"""Pure: the life of one child as a state machine, the clock passed in.

    STOPPED  --start-->  STARTING  --told-->  RUNNING, STANDBY, PAUSED
    a live one   --exited young-->  BACKOFF  --its time comes-->  STARTING
                 --the tenth time running-->  FATAL  --reload, restart, ten minutes-->  STARTING
                 --exited old-->  STARTING
                 --exited CONFIG-->  FATAL, without a time of its own: the configuration has to change
                 --silent-->  killed; its exit is then judged as above
                 --stop-->  STOPPING  --exited-->  STOPPED, or STARTING where it is to come again

Every event returns the next Life and the Action that the caller has to carry out. A process exists exactly in
the LIVE states, so one key never has two.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from mikkoo.common.backoff import Backoff
from mikkoo.common.errors import Exit

NEVER = float('inf')


class State(StrEnum):
    """What `mikkood status` shows of a child."""

    STARTING = 'STARTING'
    RUNNING = 'RUNNING'
    STANDBY = 'STANDBY'  # another process owns its queue
    PAUSED = 'PAUSED'  # it waits for a server or an operator
    STOPPING = 'STOPPING'
    BACKOFF = 'BACKOFF'
    FATAL = 'FATAL'
    STOPPED = 'STOPPED'


WORKING = frozenset({State.STARTING, State.RUNNING, State.STANDBY, State.PAUSED})
LIVE = WORKING | {State.STOPPING}
TOLD = {state.value.lower(): state for state in (State.RUNNING, State.STANDBY, State.PAUSED)}


class Action(Enum):
    """What the caller has to do now."""

    NONE = 'none'
    START = 'start'
    TERM = 'term'
    KILL = 'kill'


@dataclass(frozen=True, slots=True)
class Policy:
    """When to be patient. All in seconds but `most_failures`."""

    young: float = 60.0  # who dies before this age has failed
    first_delay: float = 1.0  # after the first failure; doubles, with jitter
    most_delay: float = 60.0
    most_failures: int = 10  # running; then FATAL
    fatal_retry: float = 600.0  # FATAL is tried again by itself after this
    silence: float = 30.0  # without a beat: hung
    stop_deadline: float = 4.5  # from TERM to KILL; a graceful stop takes less than 5 s in all


DEFAULT_POLICY = Policy()


@dataclass(frozen=True, slots=True)
class Life:
    """One child's present. Times are monotonic seconds; `due`: when `passed` next has something to do."""

    policy: Policy = DEFAULT_POLICY
    chance: Callable[[], float] = random.random
    state: State = State.STOPPED
    since: float = 0.0
    reason: str = ''
    started: float = 0.0
    beaten: float = 0.0
    due: float = NEVER
    failures: int = 0  # running
    restarts: int = 0
    again: bool = False  # in STOPPING: it starts anew when it has gone
    killed: bool = False
    last_exit: int | None = None

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def start(self, now: float) -> Step:
        """Wanted, with a clean record: a new child, a reload, `restart NAME`. Nothing if it already works."""
        if self.state in WORKING:
            return self, Action.NONE
        if self.state is State.STOPPING:
            return replace(self, again=True), Action.NONE
        return replace(self, failures=0)._launched(now)

    def told(self, state: str, reason: str, now: float) -> Step:
        """It said what it does: 'running', 'standby' or 'paused'."""
        if self.state not in WORKING or state not in TOLD:
            return self, Action.NONE
        since = self.since if self.state is TOLD[state] else now
        return replace(self, state=TOLD[state], since=since, reason=reason), Action.NONE

    def beat(self, now: float) -> Step:
        """Its loop moves. A process that is about to be killed cannot talk itself out of it."""
        if self.state not in WORKING or self.killed:
            return self, Action.NONE
        return replace(self, beaten=now, due=now + self.policy.silence), Action.NONE

    def recovered(self) -> Step:
        """It got past what ended its forerunners: they do not count any more."""
        return replace(self, failures=0), Action.NONE

    def stop(self, now: float, *, again: bool = False, reason: str = '') -> Step:
        """Ask it to go, for good or to come `again`. Asking twice changes only what follows."""
        if self.state in WORKING:
            due = NEVER if self.killed else now + self.policy.stop_deadline
            life = replace(self._entered(State.STOPPING, now, reason), due=due, again=again)
            return life, Action.NONE if self.killed else Action.TERM
        if self.state is State.STOPPING:
            return replace(self, again=again), Action.NONE
        if again:
            return replace(self, failures=0)._launched(now, again=True)
        return replace(self._entered(State.STOPPED, now, reason), due=NEVER), Action.NONE

    def kill(self, now: float, reason: str) -> Step:
        """End it at once: a second TERM."""
        if not self.live or self.killed:
            return self, Action.NONE
        return replace(self, reason=reason, killed=True, due=NEVER), Action.KILL

    def passed(self, now: float) -> Step:
        """Time passed: silence, the stop's deadline, the end of a back-off."""
        if now < self.due:
            return self, Action.NONE
        if self.state in WORKING:
            return self.kill(now, f'no beat for {self.policy.silence:g} s')
        if self.state is State.STOPPING:
            return self.kill(now, f'not stopped within {self.policy.stop_deadline:g} s')
        return self._launched(now, again=True)

    def exited(self, code: int, now: float, why: str = '') -> Step:
        """It has gone (or could not be made). `code` as multiprocessing gives it: -N for signal N."""
        life = replace(self, last_exit=code)
        if self.state is State.STOPPING:
            if self.again:
                return replace(life, failures=0)._launched(now, again=True)
            return replace(life._entered(State.STOPPED, now, self.reason), due=NEVER), Action.NONE
        reason = f'{self.reason}: killed' if self.killed else describe(code) + (f': {why}' if why else '')
        if code == Exit.CONFIG:
            life = life._entered(State.FATAL, now, reason)
            return replace(life, due=NEVER, failures=self.failures + 1), Action.NONE
        if now - self.started >= self.policy.young:
            return replace(life, failures=0, reason=reason)._launched(now, again=True)
        return life._failed(reason, now), Action.NONE

    def _failed(self, reason: str, now: float) -> Life:
        """Back off, or give up for a long time."""
        failures = self.failures + 1
        if failures >= self.policy.most_failures:
            life = self._entered(State.FATAL, now, f'{reason}; {failures} failures running')
            return replace(life, failures=failures, due=now + self.policy.fatal_retry)
        delays = Backoff(self.policy.first_delay, self.policy.most_delay, chance=self.chance)
        delays.attempts = failures - 1
        life = self._entered(State.BACKOFF, now, reason)
        return replace(life, failures=failures, due=now + delays.next())

    def _launched(self, now: float, *, again: bool = False) -> Step:
        life = replace(
            self._entered(State.STARTING, now, self.reason if again else ''),
            started=now, beaten=now, due=now + self.policy.silence,
            restarts=self.restarts + again, again=False, killed=False,
        )  # fmt: skip
        return life, Action.START

    def _entered(self, state: State, now: float, reason: str) -> Life:
        return replace(self, state=state, since=now, reason=reason)


Step = tuple[Life, Action]


def describe(code: int) -> str:
    """An exit code in words: 'SIGSEGV', 'exit 78 (CONFIG)'."""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f'signal {-code}'
    names = {int(known): known.name for known in Exit}
    return f'exit {code} ({names[code]})' if code in names else f'exit {code}'
