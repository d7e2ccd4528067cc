"""Signals become numbers on a pipe."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from mikkoo.supervisor.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    taken = Signals()
    yield taken
    taken.close()


def test_they_arrive_in_their_order(signals: Signals) -> None:
    assert signals.take() == []
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert select.select([signals], [], [], 5)[0]
    assert signals.take() == [signal.SIGHUP, signal.SIGTERM, signal.SIGINT]


def test_one_that_another_thread_takes_wakes_the_loop_as_well(signals: Signals) -> None:
    """While children are started the main thread blocks signals: then a thread of watchdog gets them."""
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    assert select.select([signals], [], [], 5)[0]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    assert signals.take() == [signal.SIGTERM]
    ends.set()
    thread.join()


def test_closing_gives_everything_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
    descriptors = set(os.listdir('/proc/self/fd'))
    Signals().close()
    assert before == [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
    assert set(os.listdir('/proc/self/fd')) == descriptors


def test_blocked_signals_that_were_inherited_are_unblocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signals = Signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert select.select([signals], [], [], 5)[0]
    signals.close()
