"""A child's pulse: the one place where it waits, beats, hears the supervisor and learns that it must stop.

PostgreSQL's, AMQP's and back-off waits all end in `Pulse.wait`, so a child that still beats is a child whose
loop moves, and a child that is asked to stop stops wherever it waits.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mikkoo.common.errors import Stopping
from mikkoo.common.pipe import Pipe

BEAT_INTERVAL = 5.0  # seconds between beats; the supervisor takes 30 s of silence for death
REPORT_INTERVAL = 1.0  # seconds between reports while the numbers change


class Pulse:
    """Waits for file descriptors, and beats.

    `pipe` None: a process without a supervisor (tests, one-off commands).
    `numbers`: called for the counters of a report. `handlers`: message kind to what hears it.
    `chores`: called with the monotonic time about once a second while the numbers change, else at each beat.
    """

    def __init__(self, pipe: Pipe | None = None, poll_interval: float = 10.0) -> None:
        self._pipe = pipe
        self.poll_interval = poll_interval
        self.numbers: Callable[[], Mapping[str, Any]] = dict
        self.handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        self.chores: list[Callable[[float], object]] = []
        self.stopping = False
        self._grace = 0.0  # seconds after the request to stop for which waits go on
        self._stop_asked_at = 0.0
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waits = 'starting'
        self._told = ('', '', '')
        self._reported: Mapping[str, Any] = {}
        self._beaten_at = self._reported_at = float('-inf')

    def install(self) -> None:
        """SIGTERM asks to stop; SIGINT and SIGHUP are the supervisor's. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

    def stop(self) -> None:
        """Ask the process to stop: the present or next wait raises Stopping. Safe in a signal handler."""
        if not self.stopping:
            self._stop_asked_at = time.monotonic()
        self.stopping = True
        try:
            os.write(self._wake_write, b'.')
        except BlockingIOError:
            pass  # it is full of wake-ups already

    def state(self, state: str, reason: str = '') -> None:
        """Tell the supervisor a state, once each time it changes: 'running', 'standby' or 'paused'."""
        told = ('state', state, reason)
        if told != self._told and (
            self._pipe is None or self._pipe.send('state', state=state, reason=reason)
        ):
            self._told = told

    def recovered(self) -> None:
        """Tell the supervisor that what ended this process's forerunners is over."""
        if self._pipe is not None:
            self._pipe.send('recovered')

    def beat(self, waits: str) -> None:
        """Say that the loop moves, and hear the supervisor. Cheap; call it once a slice in a busy loop."""
        self._waits = waits
        now = time.monotonic()
        # The numbers, which are many, are looked at only where a report might be due.
        report = self._reported_at + min(REPORT_INTERVAL, self.poll_interval)
        soonest = min(self._beaten_at + BEAT_INTERVAL, report)
        if now >= soonest and now >= self._due():
            self._say(now)
        self._hear()

    def wait(
        self, waits: str, timeout: float, read: Sequence[int] = (), write: Sequence[int] = ()
    ) -> tuple[list[int], list[int]]:
        """Wait until a descriptor is ready or `timeout` seconds are over; ([], []) when they are.

        Raises Stopping when the process is asked to stop (in `grace`: when that is over).
        """
        deadline = time.monotonic() + timeout
        poller = select.poll()
        for number in {*read, *write}:
            poller.register(
                number, (select.POLLIN if number in read else 0) | (select.POLLOUT if number in write else 0)
            )
        poller.register(self._wake_read, select.POLLIN)
        if self._pipe is not None and not self._pipe.ended:
            poller.register(self._pipe.fileno(), select.POLLIN)
        while True:
            self.beat(waits)
            self.raise_if_stopping()
            now = time.monotonic()
            until = min(deadline, self._due(), self._stop_due())
            ready = dict(poller.poll(max(0.0, until - now) * 1000))
            if ready.pop(self._wake_read, 0):
                os.read(self._wake_read, 4096)
            readable = [n for n in read if ready.get(n, 0) & ~select.POLLOUT]
            writable = [n for n in write if ready.get(n, 0) & ~select.POLLIN]
            if readable or writable:
                return readable, writable
            if time.monotonic() >= deadline:
                self.beat(waits)
                self.raise_if_stopping()
                return [], []
            if self._pipe is not None and self._pipe.ended and self._pipe.fileno() in ready:
                poller.unregister(self._pipe.fileno())

    def sleep(self, waits: str, seconds: float) -> None:
        """Wait for time alone."""
        self.wait(waits, seconds)

    @contextmanager
    def grace(self, seconds: float) -> Iterator[None]:
        """Work that a stop lets finish: inside, Stopping is raised `seconds` after the request to stop."""
        before, self._grace = self._grace, max(self._grace, seconds)
        try:
            yield
        finally:
            self._grace = before

    @contextmanager
    def last_act(self, seconds: float) -> Iterator[None]:
        """As `grace`, but counted from now where the request to stop has come already."""
        asked = time.monotonic() - self._stop_asked_at if self.stopping else 0.0
        with self.grace(asked + seconds):
            yield

    def raise_if_stopping(self) -> None:
        """Raise Stopping if the process was asked to stop and no grace is left."""
        if self.stopping and time.monotonic() >= self._stop_due():
            raise Stopping('asked to stop')

    def close(self) -> None:
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def _stop_due(self) -> float:
        return self._stop_asked_at + self._grace if self.stopping else float('inf')

    def _due(self) -> float:
        changed = self.numbers() != self._reported
        report = self._reported_at + (REPORT_INTERVAL if changed else self.poll_interval)
        return min(self._beaten_at + BEAT_INTERVAL, report)

    def _say(self, now: float) -> None:
        self._beaten_at = now
        numbers = dict(self.numbers())
        reports = now >= self._reported_at + (
            REPORT_INTERVAL if numbers != self._reported else self.poll_interval
        )
        if reports:
            self._reported, self._reported_at = numbers, now
        if self._pipe is not None:
            self._pipe.send('beat', waits=self._waits)
            if reports:
                self._pipe.send('report', **numbers)
        for chore in self.chores:
            chore(now)

    def _hear(self) -> None:
        if self._pipe is None:
            return
        for message in self._pipe.receive():
            handler = self.handlers.get(message['kind'])
            if handler is not None:
                handler(message)
        if self._pipe.ended and not self.stopping:
            self.stop()  # the supervisor is gone
