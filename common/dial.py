"""A TCP connection with a deadline, every address tried, and TLS on top of it where asked for."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time

from mikkoo.common.errors import BrokerLost, BrokerRefused
from mikkoo.common.tls import explain

KEEPALIVE_IDLE = 15  # seconds of silence before the kernel asks whether the peer is there
KEEPALIVE_INTERVAL = 5  # seconds between questions
KEEPALIVE_PROBES = 3  # unanswered questions until the connection is given up
USER_TIMEOUT = 60.0  # seconds that sent data may stay unacknowledged, or the peer's window shut (RFC 5482)


class Interrupted(Exception):
    """The interrupting descriptor became readable."""


def dial(
    host: str, port: int, context: ssl.SSLContext | None, deadline: float, interrupt: int
) -> socket.socket | ssl.SSLSocket:
    """A connected non-blocking socket. `deadline`: monotonic; `interrupt`: a descriptor, ends the attempt.

    Raises BrokerLost (every address with its reason), BrokerRefused (TLS), Interrupted.
    """
    sock = _connect(host, port, deadline, interrupt)
    try:
        tune(sock)
        if context is None:
            return sock
        wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        _shake_hands(wrapped, f'{host}:{port}', deadline, interrupt)
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def tune(sock: socket.socket) -> None:
    """No Nagle, and a kernel that notices a dead peer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    set_user_timeout(sock, USER_TIMEOUT)


def set_user_timeout(sock: socket.socket, seconds: float) -> None:
    """Give the connection up when it does not move for `seconds`; 0: never."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def _connect(host: str, port: int, deadline: float, interrupt: int) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BrokerLost(f'{host}:{port}: cannot be resolved: {why}') from None
    failures = []
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        now = time.monotonic()
        # A silent address leaves time for the rest.
        share = now + max(0.0, deadline - now) / (len(addresses) - index)
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            _connect_to(sock, address, share, interrupt)
        except OSError as error:
            sock.close()
            failures.append(f'{address[0]}: {error.strerror or error}')
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise BrokerLost(f'{host}:{port}: cannot be reached ({"; ".join(failures)})')


def _connect_to(sock: socket.socket, address: tuple[object, ...], deadline: float, interrupt: int) -> None:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        _wait(sock, select.POLLOUT, deadline, interrupt)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _shake_hands(sock: ssl.SSLSocket, place: str, deadline: float, interrupt: int) -> None:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            wanted = select.POLLIN
        except ssl.SSLWantWriteError:
            wanted = select.POLLOUT
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise BrokerLost(f'{place}: closed during the TLS handshake') from None
        except ssl.SSLError as error:
            raise BrokerRefused(f'{place}: {explain(error)}') from None
        except OSError as error:
            raise BrokerLost(f'{place}: lost during the TLS handshake: {error.strerror or error}') from None
        try:
            _wait(sock, wanted, deadline, interrupt)
        except TimeoutError:
            raise BrokerLost(f'{place}: no end of the TLS handshake in time') from None


def _wait(sock: socket.socket, events: int, deadline: float, interrupt: int) -> None:
    poller = select.poll()
    poller.register(sock, events)
    poller.register(interrupt, select.POLLIN)
    ready = dict(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
    if interrupt in ready:
        raise Interrupted
    if not ready:
        raise TimeoutError(errno.ETIMEDOUT, 'no answer in time')
