"""The faulty proxy does each of its faults, and only then."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.servers.proxy import Proxy
from tests.servers.waiting import until


class Echo:
    """A server that sends back what it gets, and closes when its peer does."""

    def __init__(self) -> None:
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self.received = b''
        self.errors: list[OSError] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._answer, args=[link]))
            self._threads[-1].start()

    def _answer(self, link: socket.socket) -> None:
        with link:
            try:
                while data := link.recv(65_536):
                    self.received += data
                    link.sendall(data)
            except OSError as error:
                self.errors.append(error)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    with closing(Echo()) as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy('127.0.0.1', echo.port) as made:
        yield made


@pytest.fixture
def link(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(('127.0.0.1', proxy.port), 5) as made:
        made.sendall(b'hello')
        assert read(made, 5) == b'hello'
        yield made


def read(link: socket.socket, count: int) -> bytes:
    data = b''
    while len(data) < count and (more := link.recv(count - len(data))):
        data += more
    return data


def test_forwards_much_both_ways(link: socket.socket) -> None:
    sent = bytes(range(256)) * 8_000
    writer = threading.Thread(target=link.sendall, args=[sent])
    writer.start()
    assert read(link, len(sent)) == sent
    writer.join()


def test_cut_resets_and_new_connections_work(proxy: Proxy, link: socket.socket) -> None:
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        link.recv(1)
    with socket.create_connection(('127.0.0.1', proxy.port), 5) as again:
        again.sendall(b'x')
        assert again.recv(1) == b'x'
    assert proxy.connections == 2


def test_cut_without_reset_ends_the_stream(proxy: Proxy, link: socket.socket) -> None:
    proxy.cut(reset=False)
    assert link.recv(1) == b''


def test_cut_reaches_a_peer_that_does_not_read(proxy: Proxy, link: socket.socket) -> None:
    link.settimeout(0.2)
    with pytest.raises(TimeoutError):
        while True:
            link.sendall(bytes(1_000_000))  # nobody reads the echo: every buffer on the way fills
    proxy.cut()
    link.settimeout(5)
    with pytest.raises(OSError, match=r'reset|Broken'):
        while True:
            link.sendall(bytes(1_000_000))


def test_cut_after_lets_so_many_bytes_through(proxy: Proxy, link: socket.socket, echo: Echo) -> None:
    proxy.cut_after(7, reset=False)
    link.sendall(b'123')
    assert read(link, 3) == b'123'
    link.sendall(b'4567890')
    until(lambda: len(echo.received) == len(b'hello') + 7, 5, 'seven bytes')
    try:
        assert read(link, 100) in (b'', b'4567')
    except ConnectionResetError:
        pass  # the proxy's socket was closed with an unread answer in it: TCP makes that a reset
    assert echo.received == b'hello1234567'


def test_cut_on_cuts_where_the_pattern_begins_on_every_connection(
    proxy: Proxy, link: socket.socket, echo: Echo
) -> None:
    proxy.cut_on(b'poison')
    for count in (1, 2):
        with socket.create_connection(('127.0.0.1', proxy.port), 5) as another:
            another.sendall(b'12poi')
            assert read(another, 5) == b'12poi'
            another.sendall(b'son34')
            with pytest.raises(ConnectionResetError):
                another.recv(1)
        assert proxy.cuts == count and echo.received == b'hello' + b'12poi' * count
    link.sendall(b'fine')
    assert read(link, 4) == b'fine'
    proxy.cut_on(b'')
    link.sendall(b'poison')
    assert read(link, 6) == b'poison'


def test_stall_holds_both_directions_until_resume(proxy: Proxy, link: socket.socket, echo: Echo) -> None:
    proxy.stall()
    link.sendall(b'later')
    link.settimeout(0.3)
    with pytest.raises(TimeoutError):
        link.recv(1)
    assert echo.received == b'hello'
    proxy.resume()
    link.settimeout(5)
    assert read(link, 5) == b'later'


def test_a_stalled_connection_can_be_cut(proxy: Proxy, link: socket.socket) -> None:
    proxy.stall()
    link.sendall(b'never')
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        link.recv(1)


def test_cut_answer_lets_the_questions_through(proxy: Proxy, link: socket.socket, echo: Echo) -> None:
    proxy.cut_answer(b'begin', b'commit')
    for question in (b'commit', b'begin'):
        link.sendall(question)
        assert read(link, len(question)) == question
    link.sendall(b'commit')
    with pytest.raises(ConnectionResetError):
        link.recv(1)
    assert echo.received == b'hellocommitbegincommit'


def test_hold_stops_one_direction_of_present_connections_for_good(
    proxy: Proxy, link: socket.socket, echo: Echo
) -> None:
    proxy.hold('client')
    link.sendall(b' on')
    until(lambda: echo.received == b'hello on', 5, 'the other direction flows')
    proxy.resume()
    link.settimeout(0.3)
    with pytest.raises(TimeoutError):
        link.recv(1)
    with socket.create_connection(('127.0.0.1', proxy.port), 5) as again:
        again.sendall(b'x')
        assert again.recv(1) == b'x'
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        link.recv(1)


def test_hold_stops_both_directions_where_none_is_named(
    proxy: Proxy, link: socket.socket, echo: Echo
) -> None:
    proxy.hold()
    link.sendall(b'never')
    link.settimeout(0.3)
    with pytest.raises(TimeoutError):
        link.recv(1)
    assert echo.received == b'hello'


def test_half_close_ends_one_direction_only(proxy: Proxy, link: socket.socket, echo: Echo) -> None:
    proxy.half_close('client')
    assert link.recv(1) == b''
    link.sendall(b' on')
    until(lambda: echo.received == b'hello on', 5, 'what was sent after the end of the other direction')


def test_throttle_slows_down(proxy: Proxy, link: socket.socket) -> None:
    proxy.throttle(20_000)
    start = time.monotonic()
    link.sendall(bytes(10_000))
    assert read(link, 10_000) == bytes(10_000)
    assert time.monotonic() - start > 0.3
    proxy.throttle(0)


def test_refuse_and_accept(proxy: Proxy, link: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.1', proxy.port), 5)
    link.sendall(b'still')
    assert read(link, 5) == b'still'
    proxy.accept()
    socket.create_connection(('127.0.0.1', proxy.port), 5).close()


def test_an_unreachable_target_resets_the_client() -> None:
    with Proxy('127.0.0.1', 1) as proxy, pytest.raises(ConnectionResetError):
        with socket.create_connection(('127.0.0.1', proxy.port), 5) as link:
            link.recv(1)
