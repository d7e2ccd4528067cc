"""The link against peers that misbehave: real sockets, scripted servers."""

from __future__ import annotations

import hashlib
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pamqp.frame
import pytest
from pamqp import body, commands, header, heartbeat

from mikkoo.common import amqp, amqp_transport, dial
from mikkoo.common.amqp import Ack, ChannelClosed, Link, Synced
from mikkoo.common.amqp_frames import Signal
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused, Stopping
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings
from tests.servers.waiting import until
from tests.unit.amqp_peer import Conversation, Peer, open_files


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(pulse: Pulse) -> Iterator[None]:
    threads = set(threading.enumerate())
    files = open_files()
    yield
    until(
        lambda: set(threading.enumerate()) <= threads, 6, lambda: f'no thread left: {threading.enumerate()}'
    )
    until(lambda: open_files() <= files, 6, 'no descriptor left')


def settings(*ports: int, **given: Any) -> BrokerSettings:
    return BrokerSettings(nodes=tuple(('127.0.0.1', port) for port in ports), **given)


def connect(peer: Peer, pulse: Pulse, timeout: float = 5.0, **given: Any) -> Link:
    return Link.open(settings(peer.port, **given), pulse, properties={}, timeout=timeout)


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return int(listener.getsockname()[1])


def drain(link: Link, channel: amqp.PublisherChannel, pulse: Pulse, count: int) -> list[Signal]:
    """At least `count` signals."""
    signals = channel.signals()
    deadline = time.monotonic() + 10
    while len(signals) < count:
        assert time.monotonic() < deadline, signals
        pulse.wait('test', 1, read=[link.fileno()])
        signals += channel.signals()
    return signals


def loss(link: Link, pulse: Pulse) -> str:
    """Wait until the link is lost; its reason."""
    deadline = time.monotonic() + 10
    while link.alive:
        assert time.monotonic() < deadline
        pulse.wait('test', 1, read=[link.fileno()])
    with pytest.raises(BrokerLost) as caught:
        link.raise_if_lost()
    link.dispose()
    return str(caught.value)


def refused(peer: Peer, pulse: Pulse, timeout: float = 5.0) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        connect(peer, pulse, timeout)
    assert f'127.0.0.1:{peer.port}' in str(caught.value)
    return caught.value


# Connecting


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (b'HTTP/1.1 400 Bad Request\r\n\r\n', 'not AMQP'),
        (b'AMQP\0\0\x09\x01', 'another protocol, AMQP 0.0.9.1'),
        (b'\x15\x03\x03\0\2\2\x28', 'TLS'),
        (b'', 'closed by the other side'),
        (pamqp.frame.marshal(commands.Connection.Start(), 0)[:50], 'closed by the other side'),
        (b'\1\0\0\0\0\0\4\0\x0a\0\x63\xce', 'cannot be read'),
        (b'\1\0\0\0\0\0\4\0\x0a\0\x0a\xce', 'cannot be read'),
    ],
)
def test_handshake_garbage(pulse: Pulse, words: bytes, reason: str) -> None:
    def script(talk: Conversation) -> None:
        talk.expect(header.ProtocolHeader)
        talk.sock.sendall(words)

    with Peer(script) as peer:
        error = refused(peer, pulse)
    assert isinstance(error, BrokerLost)
    assert reason in str(error)


def test_handshake_out_of_order(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.say(commands.Connection.Tune(1, 2, 3))
        talk.wait_for_end()

    with Peer(script) as peer:
        assert 'Expected Connection.Start, got Tune' in str(refused(peer, pulse))


def silent(talk: Conversation) -> None:
    talk.wait_for_end()


def silent_after_start(talk: Conversation) -> None:
    talk.say(commands.Connection.Start())
    talk.wait_for_end()


@pytest.mark.parametrize('script', [silent, silent_after_start])
def test_half_open_handshake_ends_at_the_deadline(pulse: Pulse, script: Any) -> None:
    started = time.monotonic()
    with Peer(script) as peer:
        assert 'no answer within 0.4 s while negotiating' in str(refused(peer, pulse, 0.4))
        assert time.monotonic() - started < 1.2


def test_refused_connection_is_told_at_once(pulse: Pulse) -> None:
    port = free_port()
    started = time.monotonic()
    with pytest.raises(BrokerLost, match=rf'127.0.0.1:{port}: cannot be reached .*Connection refused'):
        Link.open(settings(port), pulse, properties={})
    assert time.monotonic() - started < 1.0


def test_name_that_does_not_resolve(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    with pytest.raises(BrokerLost, match=r'rabbit.invalid:5672: cannot be resolved: Name or service'):
        Link.open(BrokerSettings(nodes=(('rabbit.invalid', 5672),)), pulse, properties={})


def test_resolver_that_hangs_does_not_hang_us(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        released.wait(20)
        return []

    monkeypatch.setattr(socket, 'getaddrinfo', hang)
    monkeypatch.setattr(amqp_transport, 'JOIN_TIMEOUT', 0.1)
    with pytest.raises(BrokerLost, match=r'no answer within 0.2 s while connecting'):
        Link.open(BrokerSettings(), pulse, properties={}, timeout=0.2)
    released.set()


def test_every_address_is_tried(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = free_port()

    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    with Peer(script) as peer:
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, '')
        addresses = [
            (socket.AF_INET6, *stream, ('::1', closed, 0, 0)),
            (socket.AF_INET, *stream, ('127.0.0.1', closed)),
            (socket.AF_INET, *stream, ('127.0.0.1', peer.port)),
        ]
        monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: addresses)
        link = connect(peer, pulse)
        link.dispose()


def test_next_node_is_tried_and_named(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    for _ in range(3):
        with Peer(script) as peer:
            link = Link.open(settings(free_port(), free_port(), peer.port), pulse, properties={})
            assert link.node == ('127.0.0.1', peer.port)
            assert (link.frame_max, link.server_version) == (131_072, '0.0.1')
            link.dispose()


def test_all_nodes_down_are_all_named(pulse: Pulse) -> None:
    ports = free_port(), free_port()
    with pytest.raises(BrokerLost) as caught:
        Link.open(settings(*ports), pulse, properties={})
    assert all(f'127.0.0.1:{port}' in str(caught.value) for port in ports)


def test_stop_interrupts_connecting(pulse: Pulse) -> None:
    with Peer(silent) as peer:
        threading.Timer(0.2, pulse.stop).start()
        started = time.monotonic()
        with pytest.raises(Stopping):
            connect(peer, pulse, 20)
        assert time.monotonic() - started < 3


def test_refusal_by_the_broker(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.expect(header.ProtocolHeader)
        talk.say(commands.Connection.Start())
        talk.expect(commands.Connection.StartOk)
        talk.say(commands.Connection.Close(403, 'ACCESS_REFUSED - no', 0, 0))
        talk.expect(commands.Connection.CloseOk)

    with Peer(script) as peer:
        error = refused(peer, pulse)
    assert isinstance(error, BrokerRefused)
    assert error.code == 403
    assert 'ACCESS_REFUSED - no' in str(error)


def test_broker_that_goes_down_while_connecting_is_no_refusal(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.expect(header.ProtocolHeader)
        talk.say(commands.Connection.Close(320, 'CONNECTION_FORCED', 0, 0))
        talk.expect(commands.Connection.CloseOk)

    with Peer(script) as peer:
        assert isinstance(refused(peer, pulse), BrokerLost)


def test_what_the_broker_is_told(pulse: Pulse, caplog: pytest.LogCaptureFixture) -> None:
    answers = []
    password = 'p"a\'s%s@:/é ☃'

    def script(talk: Conversation) -> None:
        answers.append(talk.greet())
        talk.wait_for_end()

    with caplog.at_level(logging.DEBUG), Peer(script) as peer:
        chosen = settings(peer.port, username='üser', password=password)
        Link.open(chosen, pulse, properties={'worker': 'w', 'connection_name': 'c'}).dispose()
    (told,) = answers
    assert told.response == f'\0üser\0{password}'
    properties: Any = told.client_properties
    assert properties['product'] == 'mikkoo'
    assert (properties['worker'], properties['connection_name']) == ('w', 'c')
    assert properties['capabilities']['connection.blocked'] is True
    assert {'version', 'information', 'platform'} <= set(properties)
    assert password not in caplog.text


@pytest.mark.parametrize(
    ('given', 'reason'),
    [
        ({'password': ''}, 'password is empty'),
        ({'username': ''}, 'username is empty'),
        ({'password': 'secret\0'}, 'password holds a NUL'),
        ({'vhost': 'v' * 128}, 'vhost is longer'),
    ],
)
def test_login_that_cannot_be_sent(pulse: Pulse, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokerRefused, match=reason) as caught:
        Link.open(settings(1, **given), pulse, properties={})
    assert 'secret' not in str(caught.value)


def test_socket_options(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        sock = link._io.stream.sock
        for level, option, value in (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, dial.KEEPALIVE_IDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, dial.KEEPALIVE_INTERVAL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, dial.KEEPALIVE_PROBES),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dial.USER_TIMEOUT * 1000)),
        ):
            assert sock.getsockopt(level, option) == value
        link.dispose()


# Once open


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (b'garbage garbage', 'not AMQP'),
        (pamqp.frame.marshal(commands.Basic.Ack(1), 1)[:-1] + b'\0', 'ends in 0x00'),
        (b'\3\0\1' + (131_073).to_bytes(4, 'big'), 'a frame of 131073 bytes, over the 131072'),
        (pamqp.frame.marshal(commands.Basic.Ack(1), 9), 'channel 9, which is not open'),
        (pamqp.frame.marshal(body.ContentBody(b'x'), 0), 'content on channel 0'),
        (pamqp.frame.marshal(body.ContentBody(b'x'), 1), 'body that was not expected'),
        (pamqp.frame.marshal(commands.Basic.Ack(1), 1)[:-3], 'closed by the other side'),
        (b'\1\0\0\0\0\0\4\0\x0a\0\x63\xce', 'cannot be read'),
    ],
)
def test_nonsense_from_the_peer_ends_the_link(pulse: Pulse, words: bytes, reason: str) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.sock.sendall(words)
        talk.sock.shutdown(socket.SHUT_WR)
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        link.publisher_channel(confirm=False)
        assert reason in loss(link, pulse)


def test_a_failure_of_our_own_thread_is_a_loss(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        monkeypatch.setattr(link._io, '_check_silence', lambda: 1 / 0)
        link._io._wake()
        assert 'the I/O thread failed: ZeroDivisionError' in loss(link, pulse)
    assert 'the I/O thread failed' in caplog.text


def test_silence_for_two_heartbeats_ends_the_link(pulse: Pulse) -> None:
    beats = []

    def script(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        beats.extend(talk.wait_for_end())

    with Peer(script) as peer:
        link = connect(peer, pulse)
        started = time.monotonic()
        assert '2 heartbeats missed' in loss(link, pulse)
        assert 1.5 < time.monotonic() - started < 6
    assert beats
    assert all(isinstance(beat, heartbeat.Heartbeat) for beat in beats)


def test_heartbeats_received_keep_the_link(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        for _ in range(8):
            time.sleep(0.5)
            talk.say(heartbeat.Heartbeat())
        talk.say(commands.Connection.Blocked('enough'))
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        until(lambda: link.blocked, 12, 'four seconds of heartbeats')
        assert link.alive
        link.dispose()


def test_no_heartbeats_where_either_side_wants_none(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        assert talk.wait_for_end() == []

    with Peer(script) as peer:
        link = connect(peer, pulse, heartbeat_interval=0)
        assert pulse.wait('test', 3, read=[link.fileno()]) == ([], [])
        assert link.alive
        link.dispose()


def test_close_by_the_broker_is_answered_and_told(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.say(commands.Connection.Close(320, 'CONNECTION_FORCED - bye', 0, 0))
        talk.expect(commands.Connection.CloseOk)

    with Peer(script) as peer:
        link = connect(peer, pulse)
        assert 'closed the connection: 320 CONNECTION_FORCED - bye' in loss(link, pulse)


def closes(code: int) -> bytes:
    return pamqp.frame.marshal(commands.Connection.Close(code, 'why', 0, 0), 0)


@pytest.mark.parametrize(
    ('words', 'reset', 'provoked'),
    [
        (b'', False, True),
        (b'', True, True),
        (closes(541), False, True),
        (closes(501), False, True),
        (closes(320), False, False),
        (closes(403), False, False),
        (closes(530), False, False),
        (b'garbage', False, True),
    ],
)
def test_a_loss_tells_whether_what_we_sent_may_be_why(
    pulse: Pulse, words: bytes, reset: bool, provoked: bool
) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.sock.sendall(words)
        if reset:
            talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))

    with Peer(script) as peer:
        link = connect(peer, pulse)
        link.publisher_channel(confirm=False)
        loss(link, pulse)
        with pytest.raises(BrokerLost) as caught:
            link.raise_if_lost()
        assert caught.value.provoked is provoked


def test_a_silent_peer_and_one_that_never_let_us_in_were_not_provoked(pulse: Pulse) -> None:
    def silent(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        talk.wait_for_end()

    with Peer(silent, lambda talk: None) as peer:
        link = connect(peer, pulse)
        assert 'silent' in loss(link, pulse)
        with pytest.raises(BrokerLost) as caught:
            link.raise_if_lost()
        assert not caught.value.provoked
        with pytest.raises(BrokerLost) as caught:
            connect(peer, pulse)
        assert not caught.value.provoked


def test_signals_come_before_the_loss(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel(confirm=True)
        talk.say(commands.Basic.Ack(1), commands.Basic.Ack(2), channel=1)

    with Peer(script) as peer:
        link = connect(peer, pulse)
        channel = link.publisher_channel(confirm=True)
        until(lambda: not link.alive, 5, 'the loss')
        assert channel.signals() == [Ack(1, False), Ack(2, False)]
        assert pulse.wait('test', 1, read=[link.fileno()])[0]
        with pytest.raises(BrokerLost):
            channel.signals()
        with pytest.raises(BrokerLost):
            channel.send(b'x')
        assert not channel.open
        link.dispose()
        with pytest.raises(BrokerLost, match='closed by the other side'):
            channel.signals()


def test_blocked_is_told_with_its_reason(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.say(commands.Connection.Blocked('low on memory'))
        talk.open_channel()
        talk.say(commands.Connection.Unblocked())
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        until(lambda: link.blocked == 'low on memory', 5, 'blocked')
        assert pulse.wait('test', 1, read=[link.fileno()])[0]
        sock = link._io.stream.sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        link.publisher_channel(confirm=False)
        until(lambda: link.blocked is None, 5, 'unblocked')
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == dial.USER_TIMEOUT * 1000
        link.dispose()


def test_closed_channel_is_answered_and_nothing_is_sent_on_it_after(pulse: Pulse) -> None:
    heard: list[Any] = []

    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.say(commands.Channel.Close(404, 'NOT_FOUND', 60, 40), channel=1)
        talk.expect(commands.Channel.CloseOk)
        talk.open_channel()
        heard.extend(talk.wait_for_end())

    with Peer(script) as peer:
        link = connect(peer, pulse)
        old = link.publisher_channel(confirm=False)
        assert drain(link, old, pulse, 1) == [ChannelClosed(404, 'NOT_FOUND', 60, 40)]
        assert not old.open
        new = link.publisher_channel(confirm=False)
        assert (new.number, new.open) == (old.number, True)
        old.send(pamqp.frame.marshal(commands.Basic.Publish(), 1))
        old.sync()
        old.close()
        assert new.open
        link.dispose()
    assert heard == []


def test_both_sides_close_the_channel_at_once(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.expect(commands.Channel.Close)
        talk.say(commands.Channel.Close(406, 'crossing', 0, 0), channel=1)
        talk.expect(commands.Channel.CloseOk)
        talk.open_channel(2)
        talk.say(commands.Channel.CloseOk(), channel=1)
        talk.open_channel(1)
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        first = link.publisher_channel(confirm=False)
        first.close()
        assert link.publisher_channel(confirm=False).number == 2
        until(lambda: 1 not in link._io.inboxes, 5, 'the answer to our own close')
        assert link.publisher_channel(confirm=False).number == 1
        link.dispose()


def test_answer_that_never_comes_is_a_loss(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    monkeypatch.setattr(amqp, 'CALL_TIMEOUT', 0.3)
    with Peer(script) as peer:
        link = connect(peer, pulse)
        with pytest.raises(BrokerLost, match=r'no answer within 0.3 s \(opening a channel\)'):
            link.publisher_channel(confirm=True)
        assert not link.alive
        link.dispose()


def test_waiting_for_an_answer_is_no_loss_while_blocked(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.say(commands.Connection.Blocked('alarm'))
        talk.expect(commands.Channel.Open)
        time.sleep(1.0)
        talk.say(commands.Connection.Unblocked())
        talk.say(commands.Channel.OpenOk(), channel=1)
        talk.wait_for_end()

    monkeypatch.setattr(amqp, 'CALL_TIMEOUT', 0.5)
    with Peer(script) as peer:
        link = connect(peer, pulse)
        until(lambda: link.blocked, 5, 'blocked')
        assert link.publisher_channel(confirm=False).open
        link.dispose()


def test_waiting_for_an_answer_is_no_loss_while_what_was_sent_before_is_on_its_way(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        left = 8_000_000
        while left:
            left -= len(talk.sock.recv(min(left, 100_000)))
            time.sleep(0.02)
        talk.open_channel(2)
        talk.wait_for_end()

    monkeypatch.setattr(amqp, 'CALL_TIMEOUT', 0.5)
    with Peer(script) as peer:
        link = connect(peer, pulse)
        link.publisher_channel(confirm=False).send(bytes(8_000_000))
        asked = time.monotonic()
        assert link.publisher_channel(confirm=False).open
        assert time.monotonic() - asked > 1.0, 'it was slow'
        link.dispose()


def test_stop_interrupts_a_call_and_close_still_works(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.expect(commands.Channel.Open)
        talk.expect(commands.Channel.Close)
        talk.say(commands.Channel.OpenOk(), commands.Channel.CloseOk(), channel=1)
        talk.expect(commands.Connection.Close)
        talk.say(commands.Connection.CloseOk())

    with Peer(script) as peer:
        link = connect(peer, pulse)
        threading.Timer(0.2, pulse.stop).start()
        with pytest.raises(Stopping):
            link.publisher_channel(confirm=False)
        link.close()


def test_close_gives_up_at_its_deadline(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        started = time.monotonic()
        link.close(0.3)
        assert 0.2 < time.monotonic() - started < 1.5
        link.close()
        link.dispose()


def test_sync_and_acks_keep_their_order(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.expect(commands.Basic.Qos)
        talk.say(commands.Basic.Ack(1), commands.Basic.QosOk(), commands.Basic.Ack(2), channel=1)
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        channel = link.publisher_channel(confirm=False)
        channel.sync()
        assert drain(link, channel, pulse, 3) == [Ack(1, False), Synced(), Ack(2, False)]
        link.dispose()


def test_partial_writes_arrive_whole_and_once(pulse: Pulse) -> None:
    digest = hashlib.sha256()
    chunks = [bytes([index % 251]) * 70_000 for index in range(100)]
    received = 0

    def script(talk: Conversation) -> None:
        nonlocal received
        talk.greet()
        talk.open_channel()
        talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        time.sleep(0.3)
        while received < 7_000_000:
            data = talk.sock.recv(50_000)
            digest.update(data)
            received += len(data)
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        channel = link.publisher_channel(confirm=False)
        for chunk in chunks:
            channel.send(chunk)
        assert link.unsent > amqp.LOW_WATER
        deadline = time.monotonic() + 20
        while link.unsent:
            assert time.monotonic() < deadline
            pulse.wait('test', 5, read=[link.fileno()])
            channel.signals()
        until(lambda: received == 7_000_000, 10, 'all bytes')
        link.dispose()
    assert digest.digest() == hashlib.sha256(b''.join(chunks)).digest()


def test_words_of_a_broker_that_stopped_reading_are_still_heard(pulse: Pulse) -> None:
    """Writing fails first; the acks and the reason that were sent before must not be thrown away."""
    ready = threading.Event()

    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        ready.wait(5)
        close = commands.Connection.Close(320, 'CONNECTION_FORCED - shutdown', 0, 0)
        words = pamqp.frame.marshal(commands.Basic.Ack(1), 1) + pamqp.frame.marshal(close, 0)
        talk.sock.sendall(words)  # and close with much unread: a reset follows

    with Peer(script) as peer:
        link = connect(peer, pulse)
        channel = link.publisher_channel(confirm=False)
        for _ in range(200):
            channel.send(bytes(50_000))
        ready.set()
        assert 'CONNECTION_FORCED - shutdown' in loss(link, pulse)
        assert channel.signals() == [Ack(1, False)]


def test_idle_link_costs_nothing(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.greet()
        talk.open_channel()
        talk.wait_for_end()

    with Peer(script) as peer:
        link = connect(peer, pulse)
        link.publisher_channel(confirm=False).signals()
        before = time.process_time()
        pulse.wait('test', 2.0)
        assert time.process_time() - before < 0.06
        link.dispose()


def test_cycles_leave_nothing(pulse: Pulse) -> None:
    def cut(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        talk.expect(commands.Channel.Open)

    def proper(talk: Conversation) -> None:
        talk.greet(heartbeat=1)
        talk.expect(commands.Connection.Close)
        talk.say(commands.Connection.CloseOk())

    rounds = 15
    with Peer(*[cut, proper, silent] * rounds) as peer:
        for _ in range(rounds):
            link = connect(peer, pulse)
            with pytest.raises(BrokerLost):
                link.publisher_channel(confirm=True)
            link.dispose()
            connect(peer, pulse).close()
            refused(peer, pulse, 0.1)
        until(lambda: threading.active_count() <= 2, 5, lambda: str(threading.enumerate()))
