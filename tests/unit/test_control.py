"""The control socket's protocol, over real sockets, with clients that behave and clients that do not."""

from __future__ import annotations

import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from mikkoo.supervisor import control
from mikkoo.supervisor.control import ControlError, NobodyListens, Server, ask
from tests.servers.waiting import until


class Running:
    """A Server and its loop in a thread."""

    def __init__(self, path: Path, answer: Callable[[Any], Any]) -> None:
        self.selector = selectors.DefaultSelector()
        self.server = Server(path, self.selector, answer)
        self.selects = 0
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends:
            for key, _ in self.selector.select(0.05):
                self.selects += 1
                key.data()
            self.server.tick(time.monotonic())

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        self.server.close()
        self.selector.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / 'run' / 'control'


@pytest.fixture
def running(path: Path) -> Iterator[Running]:
    served = Running(path, lambda request: {'exit': 0, 'heard': request})
    yield served
    served.close()


def raw(path: Path, data: bytes, *, end: bool = False) -> bytes:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(path))
        try:
            link.sendall(data)
            if end:
                link.shutdown(socket.SHUT_WR)
            received = b''
            while chunk := link.recv(65536):
                received += chunk
        except (BrokenPipeError, ConnectionResetError):
            return b''
        return received


def test_a_question_and_its_answer(running: Running, path: Path) -> None:
    request = {'command': 'restart', 'name': 'ä"\n'}
    assert ask(path, request) == {'exit': 0, 'heard': request}


def test_the_socket_is_its_users_alone(running: Running, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_closing_removes_it_and_then_nobody_listens(path: Path) -> None:
    Running(path, lambda request: {'exit': 0}).close()
    assert not path.exists()
    with pytest.raises(NobodyListens, match='no mikkood listens'):
        ask(path, {'command': 'status'})


def test_a_stale_socket_is_no_obstacle(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NobodyListens):
        ask(path, {'command': 'status'})
    running = Running(path, lambda request: {'exit': 0})
    assert ask(path, {'command': 'status'}) == {'exit': 0}
    running.close()


def test_a_live_socket_is_refused_and_stays(running: Running, path: Path) -> None:
    with pytest.raises(ControlError, match='another mikkood listens'):
        Server(path, running.selector, lambda request: {'exit': 0})
    assert ask(path, {'command': 'status'})['exit'] == 0


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    for impossible in (tmp_path / ('x' * 120), Path('/proc/nowhere/control')):
        with pytest.raises(ControlError, match='cannot listen on'):
            Server(impossible, selectors.DefaultSelector(), lambda request: {})


@pytest.mark.parametrize(
    'rubbish',
    [
        b'\n',
        b'hello\n',
        b'[]\n',
        b'{}\n',
        b'{"command": 7}\n',
        b'\xff\xfe\n',
        b'x' * (control.LARGEST_REQUEST + 1),
    ],
)
def test_rubbish_is_answered_with_usage(running: Running, path: Path, rubbish: bytes) -> None:
    answer = raw(path, rubbish)
    assert not answer or orjson.loads(answer)['exit'] == 2, answer
    assert ask(path, {'command': 'status'})['exit'] == 0


def test_a_client_that_hangs_up_early(running: Running, path: Path) -> None:
    assert raw(path, b'{"command": "sta', end=True) == b''
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(path))
        link.sendall(b'{"command": "status"}\n')
    assert ask(path, {'command': 'status'})['exit'] == 0


def test_a_request_in_pieces(running: Running, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(path))
        for byte in b'{"command": "status"}\n':
            link.send(bytes([byte]))
        assert orjson.loads(link.recv(65536))['exit'] == 0


def test_silent_clients_are_dropped_and_wedge_nobody(
    running: Running, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, 'PATIENCE', 0.2)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(control.MOST_CLIENTS * 2)]
    for link in silent:
        link.connect(str(path))
        link.settimeout(10)
    assert ask(path, {'command': 'status'})['exit'] == 0
    for link in silent:
        assert link.recv(1) == b'', 'it was not hung up on'
        link.close()
    assert len(running.selector.get_map()) == 1


def test_a_client_that_does_not_read_a_large_answer(path: Path) -> None:
    large = {'exit': 0, 'text': 'x' * 4_000_000}
    running = Running(path, lambda request: large)
    with socket.socket(socket.AF_UNIX) as slow:
        slow.settimeout(10)
        slow.connect(str(path))
        slow.sendall(b'{"command": "status"}\n')
        until(lambda: len(running.selector.get_map()) == 2, what='the slow client is being answered')
        assert ask(path, {'command': 'status'}) == large, 'another one was answered meanwhile'
        before = running.selects
        time.sleep(0.3)  # a span in which nothing may happen, not a wait for something
        assert running.selects - before <= 1, 'the loop spins on a full socket'
    running.close()


def test_no_answer_in_time(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(ControlError, match=r'no answer within 0\.2 s'):
            ask(path, {'command': 'status'}, timeout=0.2)


def test_a_full_backlog_is_waited_for(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        first.sendall(b'{}\n')
        served = threading.Timer(0.3, lambda: [_answer_one(busy) for _ in range(2)])
        served.start()
        assert ask(path, {'command': 'status'}) == {'exit': 0}
        served.join()


def _answer_one(listener: socket.socket) -> None:
    link, _ = listener.accept()
    with link:
        link.recv(100)
        link.sendall(b'{"exit": 0}\n')


@pytest.mark.parametrize('answer', [b'', b'rubbish\n', b'[]\n', b'{"no": "exit"}\n'])
def test_an_answer_without_sense(path: Path, answer: bytes) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(path))
        odd.listen()

        def serve() -> None:
            link, _ = odd.accept()
            with link:
                link.recv(100)
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError):
            ask(path, {'command': 'status'})
        thread.join()
