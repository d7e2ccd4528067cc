"""The end of the children where the kernel does not let go of a process: with a real one."""

from __future__ import annotations

import logging
import multiprocessing
import os
import selectors
import signal
import time
from contextlib import closing
from multiprocessing.context import SpawnProcess

import pytest

from mikkoo.common.metrics import Metrics
from mikkoo.common.settings import StatsdSettings, Telemetry, WorkerSettings
from mikkoo.supervisor.children import KILL_PATIENCE, Children
from mikkoo.supervisor.plan import Plan
from mikkoo.supervisor.states import Policy
from tests.servers.waiting import until

STOP_DEADLINE = 0.3  # seconds
SLACK = 3


def test_a_process_that_does_not_end_by_sigkill_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in state D: neither `close` nor the interpreter's exit waits for it."""
    for method in ('terminate', 'kill'):
        monkeypatch.setattr(SpawnProcess, method, lambda process: None)
    settings = WorkerSettings('a', 'q', 'postgresql://h/d', consumer_name='steady')
    with closing(selectors.DefaultSelector()) as selector, caplog.at_level(logging.ERROR):
        children = Children(
            selector,
            Telemetry(),
            Metrics(StatsdSettings(), 'supervisor'),
            policy=Policy(stop_deadline=STOP_DEADLINE),
            entries={'worker': 'tests.unit.entries:endless'},
        )
        children.apply(Plan(start=(settings,)), Telemetry())
        [child] = children
        pid = child.pid
        assert pid is not None
        try:
            begun = time.monotonic()
            children.close()
            assert time.monotonic() - begun < (STOP_DEADLINE + KILL_PATIENCE) * SLACK
            assert not selector.get_map()
            assert multiprocessing.active_children() == []
            assert caplog.messages == [f'a, pid {pid}, does not even end by SIGKILL: it is left behind']
        finally:
            os.kill(pid, signal.SIGKILL)
            until(lambda: os.waitpid(pid, os.WNOHANG) != (0, 0), what='it has ended')
