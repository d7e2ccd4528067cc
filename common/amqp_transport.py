"""rabbitpy's connection, mended; every touch of its private names is in this file.

rabbitpy gives the connection's state, the thread of its socket (`IO`), the negotiation and channel 0
(`Channel0`) and the heartbeats that are sent. Mended here: the socket never spins, never repeats a partial
write, is read in bulk; a peer that falls silent, talks nonsense or closes is noticed and named; connecting
has deadlines, disposing leaves nothing behind. Channels other than 0 are our own (`Inbox`), since rabbitpy's
match a confirm to nothing.

More lines than other files have, because of that one rule; tests/unit/test_rabbitpy_names.py fails when an
upgrade moves a private name.
"""

from __future__ import annotations

import copy
import logging
import platform
import select
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NoReturn

import pamqp.frame
from pamqp import commands
from pamqp.exceptions import PAMQPException
from rabbitpy import channel0, connection, heartbeat, io
from rabbitpy import events as rabbitpy_events

from mikkoo.common import amqp_frames as frames
from mikkoo.common import dial
from mikkoo.common.amqp_fields import FrameError
from mikkoo.common.amqp_frames import Inbox
from mikkoo.common.bell import Bell
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings
from mikkoo.common.stream import ENDED, Stream
from mikkoo.common.tls import explain

LOGGER = logging.getLogger(__name__)

JOIN_TIMEOUT = 2.0  # seconds to wait for a thread that was told to end
FAREWELL_TIMEOUT = 1.0  # seconds to get Connection.CloseOk out
LOW_WATER = 256 * 1024  # unsent bytes; falling below rings the bell
SOON = 0.002  # seconds
READS_PER_TURN = 16  # reads before the writing side has its turn
FRAME_MAX = 131_072  # what we offer; RabbitMQ's own default
FRAME_MIN = 4096  # what every peer has to take: AMQP 0-9-1 section 4.2.3; with less no headers would fit
LOGIN = 'PLAIN'  # the mechanism that rabbitpy uses, whatever is offered
CHANNEL_MAX = 65_535
MISSED_HEARTBEATS = 2  # intervals without a byte from the broker until the link is given up
UNPROVOKED = frozenset({320, 403, 530})  # of an established link: forced by an operator, rights, virtual host
TRANSIENT = frozenset({320, 506, 541})  # reply codes that speak of the broker's state, not of our request
STAND_IN_URL = 'amqp://localhost'  # for rabbitpy's constructor; connect() has the real arguments
# What pamqp raises for what is not AMQP.
UNREADABLE = (
    PAMQPException, struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip

Address = tuple[str, int]


class RingingEvents(rabbitpy_events.Events):
    """rabbitpy's events, which ring the bell when they are set."""

    def __init__(self, bell: Bell) -> None:
        super().__init__()
        self._bell = bell

    def set(self, event_id: int) -> bool | None:
        changed = super().set(event_id)
        self._bell.ring()
        return changed


class Negotiator(channel0.Channel0):
    """Channel 0, which tells the broker who we are, and takes no terms that we cannot keep."""

    def __init__(self, properties: Mapping[str, str], *given: Any) -> None:
        super().__init__(*given)
        self._told = properties

    def _build_client_properties(self) -> dict[str, Any]:  # type: ignore[override]
        ours = {
            'product': 'mikkoo',
            'version': version('mikkoo'),
            'platform': f'Python {platform.python_version()}',
            'information': 'Relays PgQ events to RabbitMQ',
        }
        capabilities = super()._build_client_properties()['capabilities']
        return {**ours, **self._told, 'capabilities': capabilities}

    def _on_connection_start(self, frame: commands.Connection.Start) -> None:
        offered = str(frame.mechanisms).split()
        if LOGIN not in offered:
            self._refuse(f'the broker takes no {LOGIN} login, only {" ".join(offered)[:200]!r}')
        super()._on_connection_start(frame)

    def _on_connection_tune(self, frame: commands.Connection.Tune) -> None:
        if 0 < (frame.frame_max or 0) < FRAME_MIN:
            self._refuse(f'the broker takes frames of {frame.frame_max} bytes, and has to take {FRAME_MIN}')
        super()._on_connection_tune(frame)

    def _refuse(self, reason: str) -> NoReturn:
        raise BrokerRefused(f'{self._args["host"]}:{self._args["port"]}: {reason}')


class Transport(io.IO):
    """The thread of the socket. `lost` is set once, last of all, when the link is gone."""

    def __init__(
        self, args: Any, context: ssl.SSLContext | None, bell: Bell, deadline: float, *shared: Any
    ) -> None:
        super().__init__(args['host'], args['port'], args['ssl'], args['ssl_options'], *shared)
        self.place = f'{args["host"]}:{args["port"]}'
        self.lock = threading.RLock()
        self.lost: BrokerError | None = None
        self.blocked: str | None = None
        self.leaving = False  # we have sent Connection.Close
        self.inboxes: dict[int, Inbox] = {}
        self._stream: Stream | None = None
        self._context = context
        self._bell = bell
        self._deadline = deadline
        self._limit = FRAME_MAX
        self._silence = 0.0  # seconds without a byte that mean loss; 0: no limit
        self._heard = time.monotonic()
        self._settled = False  # negotiated
        self._soon: list[Callable[[], None]] = []
        self._soon_at = 0.0
        self._rest = b''  # the beginning of a frame

    # Called from other threads

    @property
    def stream(self) -> Stream:
        if self._stream is None:
            raise self.lost or BrokerLost(f'{self.place}: not connected')
        return self._stream

    @property
    def bytes_written(self) -> int:
        return self.stream.sent

    @property
    def bytes_received(self) -> int:
        return self.stream.received

    def negotiated(self, frame_max: int, interval: float) -> None:
        """The handshake is over: hold the peer to what was agreed. `interval`: heartbeats, in seconds."""
        self._limit = frame_max
        self._silence = MISSED_HEARTBEATS * interval
        self._settled = True
        self._wake()

    def transmit(self, data: bytes, inbox: Inbox | None = None) -> None:
        """Send now what the kernel takes and queue the rest; never blocks. BrokerLost if the link is gone.

        What is for a channel that is over is dropped: its number may be taken again, the broker drops it too.
        """
        with self.lock:
            self.raise_if_lost()
            if inbox is not None and inbox.over:
                return
            waiting = self.stream.push(data)
        if waiting:
            self._wake()

    def call_soon(self, act: Callable[[], None]) -> None:
        """Have the thread of the socket call `act` once, SOON from now. BrokerLost if the link is gone."""
        with self.lock:
            self.raise_if_lost()
            self._soon.append(act)
            told = len(self._soon) > 1
            if not told:
                self._soon_at = time.monotonic() + SOON
        if not told:
            self._wake()

    def write_frame(self, channel: int, frame_value: pamqp.frame.FrameTypes) -> None:
        """For rabbitpy's Channel0 and Heartbeat, whose threads must not die of a lost link."""
        try:
            self.transmit(pamqp.frame.marshal(frame_value, channel))
        except BrokerError as error:
            LOGGER.debug('Not sent: %s', error)

    def open_inbox(self, most: int, inbox: Inbox | None = None) -> tuple[int, Inbox]:
        """A free channel number and where its frames will go: a new Inbox, or the one that is given."""
        with self.lock:
            self.raise_if_lost()
            number = next((n for n in range(1, most + 1) if n not in self.inboxes), 0)
            if not number:
                raise BrokerLost(f'{self.place}: all {most} channels are in use')
            inbox = self.inboxes[number] = inbox or Inbox()
        return number, inbox

    def raise_if_lost(self) -> None:
        if self.lost is not None:
            raise copy.copy(self.lost)

    def lose(self, error: BrokerError) -> None:
        """The link is gone; the first reason stays."""
        with self.lock:
            if self.lost is None:
                self.lost = error
        self._exceptions.put(error)  # ends a negotiation
        self._channels[0].put(None)  # ends Channel0's loop
        self._stop_requested.set()
        self._wake()
        self._announce()

    def stop(self) -> None:
        self.lose(BrokerLost(f'{self.place}: the connection was disposed of'))

    def close(self) -> None:
        """The thread's last act."""
        if self._stream is not None:
            self._stream.close()
        super().close()

    # The thread itself

    def run(self) -> None:
        try:
            self._connect_stream()
            self._serve()
        except dial.Interrupted:
            pass  # stop() has said why
        except BrokerError as error:
            self.lose(error)
        except FrameError as error:
            self.lose(self._ended(str(error), True))  # it may have garbled what it returned to us
        except OSError as error:
            self.lose(self._ended(error.strerror or str(error), isinstance(error, ENDED)))
        except Exception as error:
            LOGGER.exception('%s: the I/O thread failed', self.place)
            self.lose(BrokerLost(f'{self.place}: the I/O thread failed: {error!r}'))
        finally:
            self.stop()
            self.close()

    def _connect_stream(self) -> None:
        sock = dial.dial(
            self._host, self._port, self._context, self._deadline, self._write_trigger_r.fileno()
        )
        self._stream = Stream(sock, self.lock)
        self._heard = time.monotonic()
        self._events.set(rabbitpy_events.SOCKET_OPENED)

    def _serve(self) -> None:
        stream, wakeup = self.stream, self._write_trigger_r.fileno()
        poller = select.poll()
        poller.register(wakeup, select.POLLIN)
        while not self._stop_requested.is_set():
            poller.register(stream, stream.wanted())
            ready = dict(poller.poll(self._patience()))
            if wakeup in ready:
                self._write_trigger_r.recv(4096)
            if stream.broken or stream.readable(ready.get(stream.fileno(), 0)):
                self._read()
            if self._soon and time.monotonic() >= self._soon_at:
                self._act()
            if stream.unsent:
                self._write()
            self._check_silence()

    def _patience(self) -> float | None:
        """Milliseconds until something is due, or the peer's silence is too long; None: for ever."""
        if self.stream.broken or self.stream.hoarding():
            return 0
        deadlines = [self._heard + self._silence] if self._silence else []
        if self._soon:
            deadlines.append(self._soon_at)
        return max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1 if deadlines else None

    def _act(self) -> None:
        with self.lock:
            acts, self._soon = self._soon, []
        for act in acts:
            act()

    def _check_silence(self) -> None:
        silent = time.monotonic() - self._heard
        if self._silence and silent >= self._silence:
            raise BrokerLost(
                f'{self.place}: silent for {silent:.1f} s, {MISSED_HEARTBEATS} heartbeats missed'
            )

    def _read(self) -> None:
        """Read until dry, but give the writing side its turn; an error of writing counts once all is read."""
        stream, news = self.stream, False
        try:
            for _ in range(READS_PER_TURN):
                data = self._receive()
                if not data:
                    break
                news = self._parse(data) or news
                if stream.dry:
                    break
            if data == b'':
                raise self._ended(stream.broken or 'closed by the other side', True)
            if data is None and stream.broken:
                raise self._ended(stream.broken, stream.ended)
        finally:
            if news:
                self._bell.ring()

    def _receive(self) -> bytes | None:
        try:
            data = self.stream.receive()
        except ssl.SSLError as error:
            kind = BrokerLost if self._settled else BrokerRefused
            raise kind(f'{self.place}: {explain(error)}') from None
        if data:
            self._heard = time.monotonic()
        return data

    def _parse(self, data: bytes) -> bool:
        """Deliver every whole frame; True if somebody waits for one of them."""
        if self._rest:
            data = self._rest + data
        news, used = False, 0
        for kind, number, start, stop in frames.cut(data, self._limit):
            used = stop + 1
            if number:
                self._deliver(kind, number, data, start, stop)
                news = True
            elif kind == frames.METHOD:
                self._take_connection_frame(data[start - 7 : used])
            elif kind != frames.HEARTBEAT:
                raise FrameError('content on channel 0')
        self._rest = data[used:]
        return news

    def _deliver(self, kind: int, number: int, data: bytes, start: int, stop: int) -> None:
        inbox = self.inboxes.get(number)
        if inbox is None:
            raise FrameError(f'a frame for channel {number}, which is not open')
        if inbox.feed(kind, data, start, stop):
            with self.lock:  # nothing is sent on a channel after its CloseOk
                if inbox.owes_answer():
                    self.stream.push(frames.channel_close_ok(number))
                if inbox.over:
                    del self.inboxes[number]

    def _take_connection_frame(self, data: bytes) -> None:
        try:
            frame = pamqp.frame.unmarshal(data)[2]
        except UNREADABLE as error:
            raise FrameError(f'a method on channel 0 that cannot be read: {error!r}') from None
        if isinstance(frame, commands.Connection.Close):
            self._answer_close(frame.reply_code or 0, frame.reply_text)
        if isinstance(frame, commands.Connection.CloseOk) and self.leaving:
            raise BrokerLost(f'{self.place}: closed on our own request')
        if isinstance(frame, commands.Connection.Blocked):
            self._set_blocked(frame.reason or 'no reason given')
        elif isinstance(frame, commands.Connection.Unblocked):
            self._set_blocked(None)
        elif self._settled:
            raise FrameError(f'{frame.name} was not expected')
        self._channels[0].put(frame)

    def _set_blocked(self, reason: str | None) -> None:
        """During an alarm the broker reads nothing, for as long as it likes: the kernel must not give up."""
        dial.set_user_timeout(self.stream.sock, 0 if reason else dial.USER_TIMEOUT)
        self.blocked = reason
        self._announce()

    def _answer_close(self, code: int, text: str) -> NoReturn:
        self.transmit(pamqp.frame.marshal(commands.Connection.CloseOk(), 0))
        self._linger()
        if self._settled or code in TRANSIENT:
            raise self._ended(f'the broker closed the connection: {code} {text}', code not in UNPROVOKED)
        raise BrokerRefused(f'{self.place}: refused by the broker: {code} {text}', code)

    def _ended(self, reason: str, by_peer: bool) -> BrokerLost:
        return BrokerLost(f'{self.place}: {reason}', provoked=by_peer and self._settled)

    def _linger(self) -> None:
        poller = select.poll()
        poller.register(self.stream, select.POLLOUT)
        deadline = time.monotonic() + FAREWELL_TIMEOUT
        while self.stream.unsent and not self.stream.broken and time.monotonic() < deadline:
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            self.stream.flush()

    def _write(self) -> None:
        before = self.stream.unsent
        self.stream.flush()
        if not self.stream.unsent or self.stream.unsent < LOW_WATER <= before:
            self._bell.ring()

    def _announce(self) -> None:
        """Lost, blocked or not: tell all who wait."""
        self._bell.ring()
        with self.lock:
            inboxes = list(self.inboxes.values())
        for inbox in inboxes:
            inbox.wake()

    def _wake(self) -> None:
        try:
            self._write_trigger_w.send(b'.')
        except OSError:
            pass  # full of wake-ups already, or closed with the thread


class Connection(connection.Connection):
    """Negotiates with one node within a deadline; or raises BrokerError or Stopping, and leaves nothing."""

    def __init__(
        self,
        node: Address,
        settings: BrokerSettings,
        context: ssl.SSLContext | None,
        properties: Mapping[str, str],
        pulse: Pulse,
        timeout: float,
    ) -> None:
        self.bell = Bell()
        self._wanted = _arguments(node, settings, timeout)
        self._context = context
        self._properties = properties
        self._pulse = pulse
        self._timeout = timeout
        self._disposing = threading.Lock()
        self._disposed = False
        super().__init__(STAND_IN_URL)  # calls connect()

    def connect(self) -> None:
        self._args = self._wanted
        self._set_state(self.OPENING)
        deadline = time.monotonic() + self._timeout
        try:
            self._negotiate(deadline)
        except BaseException:
            self.dispose()
            raise
        self._set_state(self.OPEN)

    @property
    def transport(self) -> Transport:
        assert isinstance(self._io, Transport)
        return self._io

    @property
    def frame_max(self) -> int:
        assert self._channel0 is not None
        return self._channel0.maximum_frame_size

    @property
    def channel_max(self) -> int:
        assert self._channel0 is not None
        return self._channel0.maximum_channels

    def request_close(self) -> None:
        """Send Connection.Close; its CloseOk ends the link."""
        assert self._channel0 is not None
        self.transport.leaving = True
        self._channel0.close()

    def dispose(self) -> None:
        """End the timer, the threads and their sockets. Never raises; again does nothing."""
        with self._disposing:
            if self._disposed:
                return
            self._disposed = True
        self._stop_heartbeat()
        if isinstance(self._io, Transport):
            self._io.stop()
            if self._io.ident is None:  # never started
                self._io.close()
            _join(self._io)
        if self._channel0 is not None:
            _join(self._channel0)
        self.bell.close()
        self._set_state(self.CLOSED)

    def _negotiate(self, deadline: float) -> None:
        events = self._events = RingingEvents(self.bell)
        self._channel0 = Negotiator(self._properties, self._args, events, self._exceptions)
        dialled = deadline - self._timeout / 20  # so that the I/O thread's own words come first
        self._io = Transport(self._args, self._context, self.bell, dialled, events, self._exceptions)
        self._io.add_channel(0, self._channel0.pending_frames)
        self._io.start()
        self._await(rabbitpy_events.SOCKET_OPENED, deadline, 'connecting')
        self._channel0.start(self._io)
        self._await(rabbitpy_events.CHANNEL0_OPENED, deadline, 'negotiating')
        interval = self._channel0.heartbeat_interval
        self.transport.negotiated(self.frame_max, interval)
        if interval:
            self._heartbeat = heartbeat.Heartbeat(self._io, self._channel0, interval)
            self._heartbeat.start()

    def _await(self, event: int, deadline: float, doing: str) -> None:
        place = self.transport.place
        while True:
            self.bell.clear()
            self.transport.raise_if_lost()
            if self._events.is_set(event):
                return
            if not self._exceptions.empty():
                error = self._exceptions.get()
                raise error if isinstance(error, BrokerError) else BrokerLost(f'{place}: {error}')
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokerLost(f'{place}: no answer within {self._timeout:g} s while {doing}')
            self._pulse.wait(f'rabbitmq: {doing} to {place}', left, read=[self.bell.fileno()])

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is None:
            return
        timer = self._heartbeat._timer
        self._heartbeat.stop()
        if timer is not None:
            _join(timer)


def _arguments(node: Address, settings: BrokerSettings, timeout: float) -> Any:
    """What rabbitpy would have made of a URL."""
    return {
        'host': node[0],
        'port': node[1],
        'virtual_host': settings.vhost,
        'username': settings.username,
        'password': settings.password,
        'timeout': timeout,
        'heartbeat': settings.heartbeat_interval,
        'frame_max': FRAME_MAX,
        'channel_max': CHANNEL_MAX,
        'locale': None,
        'ssl': settings.ssl_options is not None,
        'ssl_options': {},
    }


def _join(thread: threading.Thread) -> None:
    if thread.ident is None or thread is threading.current_thread():
        return
    thread.join(JOIN_TIMEOUT)
    if thread.is_alive():
        LOGGER.warning('%s ends later: it hangs in a call of the system', thread.name)
