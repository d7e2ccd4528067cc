import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from mikkoo.common.errors import Stopping
from mikkoo.common.pipe import LARGEST_MESSAGE, Pipe
from mikkoo.common.pulse import Pulse


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, Pipe]]:
    parent, child = map(Pipe, Pipe.pair())
    yield parent, child
    parent.close()
    child.close()


def test_messages_keep_their_order_and_bounds(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    assert child.send('beat', waits='a tick') and child.send('state', state='running', reason='')
    assert parent.receive() == [
        {'kind': 'beat', 'waits': 'a tick'},
        {'kind': 'state', 'state': 'running', 'reason': ''},
    ]


def test_a_full_pipe_drops_and_counts_and_never_blocks(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    sent = 0
    while child.send('log', message='x' * 1000):
        sent += 1
    assert sent > 0 and child.dropped == 1
    assert len(parent.receive(10_000)) == sent
    assert child.send('beat', waits='')


def test_a_message_that_is_too_large_is_dropped_and_counted(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    assert not child.send('log', message='x' * LARGEST_MESSAGE)
    assert child.dropped == 1 and parent.receive() == []


def test_the_end_of_the_other_side_is_seen(ends: tuple[Pipe, Pipe]) -> None:
    parent, child = ends
    child.send('beat', waits='last words')
    child.close()
    assert [message['kind'] for message in parent.receive()] == ['beat']
    assert parent.receive() == [] and parent.ended
    assert not parent.send('tell')


@pytest.fixture
def pulse(ends: tuple[Pipe, Pipe]) -> Iterator[Pulse]:
    pulse = Pulse(ends[1])
    yield pulse
    pulse.close()


def test_a_wait_returns_what_is_ready(pulse: Pulse) -> None:
    read, write = os.pipe()
    try:
        assert pulse.wait('nothing', 0.01, read=[read]) == ([], [])
        assert pulse.wait('room', 5, write=[write]) == ([], [write])
        os.write(write, b'x')
        assert pulse.wait('a byte', 5, read=[read]) == ([read], [])
        os.close(write)
        os.read(read, 1)
        assert pulse.wait('the end', 5, read=[read]) == ([read], [])
    finally:
        os.close(read)


def test_a_stop_ends_a_wait_at_once(pulse: Pulse) -> None:
    threading.Timer(0.05, pulse.stop).start()
    started = time.monotonic()
    with pytest.raises(Stopping):
        pulse.wait('for ever', 60)
    assert time.monotonic() - started < 5


def test_grace_lets_waits_go_on_after_a_stop_for_a_while(pulse: Pulse) -> None:
    with pulse.grace(0.3):
        pulse.stop()
        started = time.monotonic()
        assert pulse.wait('a little', 0.01) == ([], [])
        with pytest.raises(Stopping):
            pulse.wait('long', 60)
        assert 0.2 < time.monotonic() - started < 5
    with pytest.raises(Stopping):
        pulse.raise_if_stopping()


def test_term_stops_and_the_handler_only_marks(pulse: Pulse) -> None:
    before = (
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGHUP),
    )
    try:
        pulse.install()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopping):
            pulse.wait('for ever', 60)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


def test_it_beats_reports_what_changed_and_hears(ends: tuple[Pipe, Pipe], pulse: Pulse) -> None:
    parent, _ = ends
    heard = []
    numbers = {'processed': 0}
    pulse.numbers = lambda: numbers
    pulse.handlers['tell'] = heard.append
    parent.send('tell', telemetry={})
    pulse.beat('a tick')
    assert heard == [{'kind': 'tell', 'telemetry': {}}]
    assert parent.receive() == [{'kind': 'beat', 'waits': 'a tick'}, {'kind': 'report', 'processed': 0}]
    numbers = {'processed': 5}
    pulse.wait('a tick', 1.2)
    assert {'kind': 'report', 'processed': 5} in parent.receive()


def test_while_nothing_changes_it_beats_no_more_than_it_has_to(ends: tuple[Pipe, Pipe], pulse: Pulse) -> None:
    parent, _ = ends
    pulse.beat('a slice')
    pulse._beaten_at -= 2.0
    pulse._reported_at -= 2.0
    pulse.beat('a slice')
    assert [message['kind'] for message in parent.receive()] == ['beat', 'report']


def test_reports_more_often_than_each_second_while_nothing_changes(ends: tuple[Pipe, Pipe]) -> None:
    """What is due has to be done in `beat`, or the wait for it spins."""
    parent, child = ends
    pulse = Pulse(child, poll_interval=0.1)
    started = time.process_time()
    pulse.wait('a tick', 0.8)
    used = time.process_time() - started
    pulse.close()
    assert used < 0.3
    reports = [message for message in parent.receive() if message['kind'] == 'report']
    assert 2 <= len(reports) <= 10


def test_a_state_is_told_once(ends: tuple[Pipe, Pipe], pulse: Pulse) -> None:
    parent, _ = ends
    for state in ('running', 'running', 'paused'):
        pulse.state(state, 'why')
    assert [message['state'] for message in parent.receive()] == ['running', 'paused']


def test_the_death_of_the_supervisor_stops_the_child(ends: tuple[Pipe, Pipe], pulse: Pulse) -> None:
    ends[0].close()
    with pytest.raises(Stopping):
        pulse.wait('for ever', 60)
