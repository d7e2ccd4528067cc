"""The life of a child: a table of transitions, and a machine that hypothesis drives against a model."""

from __future__ import annotations

import signal

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mikkoo.common.errors import Exit
from mikkoo.supervisor.states import LIVE, NEVER, Action, Life, Policy, State, Step, describe

POLICY = Policy()
QUICK = Policy(most_failures=3)  # so that hypothesis gets to FATAL


def fresh() -> Life:
    return Life(POLICY, chance=lambda: 1.0)


def started(now: float = 0.0) -> Life:
    life, action = fresh().start(now)
    assert action is Action.START
    return life


def running(now: float = 0.0) -> Life:
    return started(now).told('running', '', now)[0]


@pytest.mark.parametrize(
    ('word', 'state'),
    [
        ('running', State.RUNNING),
        ('standby', State.STANDBY),
        ('paused', State.PAUSED),
        ('rubbish', State.STARTING),
    ],
)
def test_a_child_says_its_state(word: str, state: State) -> None:
    life, action = started().told(word, 'because', 7.0)
    assert (life.state, action) == (state, Action.NONE)
    if state is not State.STARTING:
        assert (life.reason, life.since) == ('because', 7.0)
        assert life.told(word, 'still', 9.0)[0].since == 7.0


def test_dying_young_backs_off_from_one_second_doubling_to_sixty() -> None:
    life, now, delays = started(), 0.0, []
    for _ in range(POLICY.most_failures - 1):
        life, action = life.exited(1, now)
        assert (life.state, action) == (State.BACKOFF, Action.NONE)
        assert life.passed(life.due - 0.001) == (life, Action.NONE)
        delays.append(life.due - now)
        now = life.due
        life, action = life.passed(now)
        assert (life.state, action) == (State.STARTING, Action.START)
    assert delays == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])


def test_the_back_off_has_jitter() -> None:
    life, _ = Life(POLICY, chance=lambda: 0.0).start(0.0)
    assert life.exited(1, 0.0)[0].due == pytest.approx(0.5)


def fatal() -> Life:
    life, now = started(), 0.0
    for _ in range(POLICY.most_failures):
        life, _ = life.exited(1, now)
        if life.state is State.BACKOFF:
            now = life.due
            life, _ = life.passed(now)
    return life


def test_ten_failures_running_are_fatal_and_tried_again_after_ten_minutes() -> None:
    life = fatal()
    assert life.state is State.FATAL
    assert '10 failures running' in life.reason
    assert life.due - life.since == 600.0
    again, action = life.passed(life.due)
    assert (again.state, action) == (State.STARTING, Action.START)
    assert again.exited(1, life.due)[0].state is State.FATAL, 'the eleventh failure is still running'


@pytest.mark.parametrize('ask', [lambda life: life.start(9.0), lambda life: life.stop(9.0, again=True)])
def test_a_reload_or_restart_gives_a_fatal_child_a_clean_record(ask: object) -> None:
    life, action = ask(fatal())  # type: ignore[operator]
    assert (life.state, life.failures, action) == (State.STARTING, 0, Action.START)
    assert life.exited(1, 9.0)[0].state is State.BACKOFF


def test_dying_old_restarts_at_once_with_a_clean_record() -> None:
    life = started().exited(1, 0.0)[0]
    life, _ = life.passed(life.due)
    life, action = life.exited(-signal.SIGSEGV, life.started + POLICY.young)
    assert (life.state, life.failures, action) == (State.STARTING, 0, Action.START)
    assert life.reason == 'SIGSEGV'


def test_a_configuration_error_is_fatal_at_once_and_never_retried_blindly() -> None:
    life, action = running().exited(Exit.CONFIG, 1000.0)
    assert (life.state, life.due, action) == (State.FATAL, NEVER, Action.NONE)
    assert life.start(1001.0)[1] is Action.START, 'a reload tries it'


def test_silence_is_death_and_a_beat_is_life() -> None:
    life = running()
    life, _ = life.beat(20.0)
    assert life.passed(49.9)[1] is Action.NONE
    life, action = life.passed(50.0)
    assert (action, life.killed) == (Action.KILL, True)
    assert life.passed(1000.0)[1] is Action.NONE, 'it is killed once'
    assert life.beat(51.0)[0] is life, 'a late beat does not undo it'
    replaced, action = life.exited(-9, 61.0)
    assert (replaced.state, action) == (State.STARTING, Action.START)
    assert replaced.reason == 'no beat for 30 s: killed'


def test_a_young_hung_child_backs_off() -> None:
    life, action = running().passed(30.0)
    assert action is Action.KILL
    assert life.exited(-9, 30.1)[0].state is State.BACKOFF


def test_a_stop_has_a_deadline_and_then_kills() -> None:
    life, action = running().stop(0.0, reason='bye')
    assert (life.state, action) == (State.STOPPING, Action.TERM)
    assert life.stop(1.0)[1] is Action.NONE, 'it has been asked'
    life, action = life.passed(POLICY.stop_deadline)
    assert action is Action.KILL
    assert life.exited(-9, 5.0)[0].state is State.STOPPED


def test_a_stopping_child_is_killed_on_demand_once() -> None:
    life, _ = running().stop(0.0)
    life, action = life.kill(0.1, 'a second TERM')
    assert action is Action.KILL
    assert life.kill(0.2, 'a third')[1] is Action.NONE
    assert life.passed(100.0)[1] is Action.NONE


def test_a_restart_stops_then_starts() -> None:
    life, action = running().stop(0.0, again=True)
    assert action is Action.TERM
    life, action = life.exited(0, 1.0)
    assert (life.state, life.restarts, action) == (State.STARTING, 1, Action.START)


def test_a_stop_overrules_a_restart_and_a_start_overrules_a_stop() -> None:
    life = running().stop(0.0, again=True)[0].stop(0.1)[0]
    assert life.exited(0, 1.0)[0].state is State.STOPPED
    life = running().stop(0.0)[0].start(0.1)[0]
    assert life.exited(0, 1.0)[0].state is State.STARTING


@pytest.mark.parametrize('life', [fresh(), started().exited(1, 0.0)[0], fatal()])
def test_what_has_no_process_stops_at_once(life: Life) -> None:
    stopped, action = life.stop(5.0)
    assert (stopped.state, stopped.due, action) == (State.STOPPED, NEVER, Action.NONE)


@pytest.mark.parametrize(
    ('code', 'words'),
    [(0, 'exit 0 (OK)'), (78, 'exit 78 (CONFIG)'), (42, 'exit 42'), (-9, 'SIGKILL'), (-60, 'signal 60')],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert describe(code) == words


class Machine(RuleBasedStateMachine):
    """Any order of events; processes are counted as the actions say, deaths by a count of our own."""

    @initialize()
    def begin(self) -> None:
        self.life = Life(QUICK, chance=lambda: 1.0)
        self.now = 0.0
        self.processes = 0
        self.born = 0.0
        self.young_deaths = 0  # running
        self.killed = False

    def take(self, step: Step) -> None:
        self.life, action = step
        if action is Action.START:
            self.processes += 1
            self.born = self.now
            self.killed = False
        elif action is not Action.NONE:
            assert self.processes == 1, 'only a process is signalled'
            assert not (action is Action.KILL and self.killed), 'killed twice'
            self.killed |= action is Action.KILL

    @rule(seconds=st.floats(0, 700))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.life.passed(self.now))

    @rule()
    def start(self) -> None:
        if self.life.state not in LIVE:
            self.young_deaths = 0
        self.take(self.life.start(self.now))

    @rule(again=st.booleans())
    def stop(self, again: bool) -> None:
        if again and self.life.state not in LIVE:
            self.young_deaths = 0
        self.take(self.life.stop(self.now, again=again))

    @rule()
    def kill(self) -> None:
        self.take(self.life.kill(self.now, 'test'))

    @precondition(lambda self: self.processes)
    @rule()
    def beat(self) -> None:
        self.take(self.life.beat(self.now))

    @precondition(lambda self: self.processes)
    @rule(word=st.sampled_from(['running', 'standby', 'paused']))
    def tell(self, word: str) -> None:
        self.take(self.life.told(word, '', self.now))

    @precondition(lambda self: self.processes)
    @rule(code=st.sampled_from([0, 1, 70, -9, 78]), lived=st.sampled_from([0.0, 0.5, 61.0]))
    def exit(self, code: int, lived: float) -> None:
        self.now += lived
        asked = self.life.state is State.STOPPING
        old = self.now - self.born >= POLICY.young
        self.processes -= 1
        self.young_deaths = 0 if asked or old else self.young_deaths + 1
        self.take(self.life.exited(code, self.now))
        if not asked:
            if code == Exit.CONFIG:
                assert self.life.state is State.FATAL
            elif old:
                assert self.life.state is State.STARTING
            else:
                fatal = self.young_deaths >= QUICK.most_failures
                assert self.life.state is (State.FATAL if fatal else State.BACKOFF)

    @invariant()
    def one_process_exactly_in_the_live_states(self) -> None:
        assert self.processes == int(self.life.live)

    @invariant()
    def nothing_waits_for_ever_but_what_has_to(self) -> None:
        if self.life.state in (State.BACKOFF, *(LIVE if not self.killed else ())):
            assert self.life.due < NEVER


TestMachine = Machine.TestCase


def test_who_got_past_what_ended_its_forerunners_has_a_clean_record() -> None:
    life = running()
    for _ in range(POLICY.most_failures - 1):
        life, _ = life.exited(-signal.SIGABRT, life.started)
        life, _ = life.passed(life.due)
    assert life.failures == POLICY.most_failures - 1
    life, action = life.recovered()
    assert (life.failures, life.state, action) == (0, State.STARTING, Action.NONE)
    life, _ = life.exited(-signal.SIGABRT, life.started)
    assert life.state is State.BACKOFF and life.due - life.started == POLICY.first_delay
