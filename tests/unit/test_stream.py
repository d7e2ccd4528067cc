"""What waits to be sent, and whether a socket has more to read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from mikkoo.common.stream import READ_SIZE, Stream


@pytest.fixture
def ends() -> Iterator[tuple[Stream, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield Stream(ours, threading.RLock()), theirs
    ours.close()
    theirs.close()


def test_a_short_read_means_that_it_is_dry(ends: tuple[Stream, socket.socket]) -> None:
    stream, peer = ends
    peer.sendall(b'x' * (READ_SIZE + 10))
    assert stream.receive() == b'x' * READ_SIZE
    assert not stream.dry
    assert stream.receive() == b'x' * 10
    assert stream.dry
    assert stream.receive() is None


def test_a_broken_stream_is_read_to_its_end(ends: tuple[Stream, socket.socket]) -> None:
    """What the peer said last is what tells why it closed."""
    stream, peer = ends
    peer.sendall(b'the reason')
    stream.broken = 'Broken pipe'
    assert stream.receive() == b'the reason'
    assert not stream.dry
