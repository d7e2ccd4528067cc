"""The link to RabbitMQ: a connection, a channel to publish on, and whether an exchange exists.

Threads: Link and PublisherChannel belong to the caller's; amqp_transport.py has those of the socket. What
arrives passes through the deques of an Inbox, and the Bell wakes the caller.
"""

from __future__ import annotations

import logging
import random
import select
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

from mikkoo.common import amqp_frames as frames
from mikkoo.common.amqp_frames import Ack, ChannelClosed, Inbox, Nack, Reply, Returned, Signal, Synced
from mikkoo.common.amqp_transport import LOW_WATER, Address, Connection
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings
from mikkoo.common.tls import make_context

__all__ = [
    'LOW_WATER', 'Ack', 'ChannelClosed', 'Link', 'Nack', 'PublisherChannel', 'Returned', 'Signal', 'Synced',
]  # fmt: skip

LOGGER = logging.getLogger(__name__)

CALL_TIMEOUT = 30.0  # seconds for an answer on a channel, while nothing moves; not while blocked by an alarm
LONGEST_VHOST = 127  # what pamqp lets through


class Link:
    """A connection to RabbitMQ, for one thread. After a wake-up by `fileno` look at all that you wait for."""

    def __init__(self, made: Connection, node: Address, pulse: Pulse) -> None:
        self.node = node
        self.frame_max = made.frame_max
        self.server_version = _text(made.server_properties.get('version', ''))
        self._connection = made
        self._io = made.transport
        self._pulse = pulse
        self._lookups: tuple[int, Inbox] | None = None

    @classmethod
    def open(
        cls, settings: BrokerSettings, pulse: Pulse, *, properties: Mapping[str, str], timeout: float = 10.0
    ) -> Self:
        """Connect to one of the nodes, tried in random order, `timeout` seconds each.

        `properties`: client properties beside our own, shown by the broker.
        Raises BrokerRefused (if any node answered and said no), else BrokerLost; Stopping.
        """
        _check_login(settings)
        context = make_context(settings.ssl_options) if settings.ssl_options else None
        failures: list[BrokerError] = []
        for node in random.sample(settings.nodes, len(settings.nodes)):
            try:
                return cls(Connection(node, settings, context, properties, pulse, timeout), node, pulse)
            except BrokerError as error:
                failures.append(error)
        raise _summary(failures)

    @property
    def alive(self) -> bool:
        return self._io.lost is None

    @property
    def blocked(self) -> str | None:
        """Why the broker does not take messages now (Connection.Blocked), or None."""
        return self._io.blocked

    @property
    def unsent(self) -> int:
        """Bytes accepted by `send` that the kernel has not taken."""
        return self._io.stream.unsent

    @property
    def undelivered(self) -> int:
        """Bytes `send` took that the peer's kernel has not acknowledged; fewer and fewer on a slow link."""
        return self._io.stream.undelivered

    def fileno(self) -> int:
        """Readable when there is news: signals, loss, blocked or not, `unsent` below LOW_WATER or 0."""
        return self._connection.bell.fileno()

    def raise_if_lost(self) -> None:
        """BrokerLost, or BrokerRefused, with the reason."""
        self._io.raise_if_lost()

    def publisher_channel(self, *, confirm: bool) -> PublisherChannel:
        """A new channel; with `confirm` in confirm mode. Raises BrokerRefused, BrokerLost, Stopping."""
        number, inbox = self._open_channel()
        if confirm:
            self._insist(inbox, frames.confirm_select(number), frames.SELECTED, 'confirms')
        return PublisherChannel(self, number, inbox)

    def exchange_exists(self, name: str) -> ChannelClosed | None:
        """None: it exists ('' always does); else the broker's refusal: 404 no such exchange, 403 not allowed.

        A passive declare on a channel of its own. Raises ValueError (over 255 bytes), BrokerLost, Stopping.
        """
        if not name:
            return None
        if self._lookups is None or self._lookups[1].over:
            self._lookups = self._open_channel()
        number, inbox = self._lookups
        request = frames.exchange_declare_passive(number, name)
        self._lookups = None  # unless it is answered in full, nobody may ask here again
        refusal = self.call(inbox, request, frames.DECLARED, f'exchange {name}')
        if refusal is None:
            self._lookups = number, inbox
        return refusal

    def call(self, inbox: Inbox, request: bytes, expected: Reply, what: str) -> ChannelClosed | None:
        """Send a request and wait for its answer: None, or how the broker closed the channel instead."""
        deadline = time.monotonic() + CALL_TIMEOUT
        bell, blocked, ahead = self._connection.bell, self.blocked, self.undelivered
        try:
            inbox.asked = expected
            self._io.transmit(request, inbox)
            while True:
                bell.clear()
                if inbox.replies:
                    inbox.replies.popleft()
                    return None
                if inbox.closed is not None:
                    return inbox.closed
                self.raise_if_lost()
                before, blocked = blocked, self.blocked
                if before or blocked:
                    deadline = time.monotonic() + CALL_TIMEOUT
                elif time.monotonic() >= deadline:
                    left, ahead = ahead, self.undelivered
                    if ahead < left:  # on a slow link the request is behind what was sent before it
                        deadline = time.monotonic() + CALL_TIMEOUT
                        continue
                    self._give_up(f'no answer within {CALL_TIMEOUT:g} s ({what})')
                waits = f'rabbitmq: blocked: {blocked}' if blocked else f'rabbitmq: {what}'
                self._pulse.wait(waits, max(0.0, deadline - time.monotonic()), read=[bell.fileno()])
        finally:
            bell.ring()  # there may be news for others

    def close(self, timeout: float = 2.0) -> None:
        """Send the unsent, close channels and connection in good order within `timeout` seconds; dispose.

        Waits outside the pulse, so that a process that is asked to stop still takes its leave.
        """
        deadline = time.monotonic() + timeout
        try:
            if self._wait_until(lambda: not self.unsent, deadline):
                for number, inbox in list(self._io.inboxes.items()):
                    self._send_close(number, inbox)
                self._wait_until(lambda: not self._io.inboxes, deadline)
                self._connection.request_close()
                self._wait_until(lambda: not self.alive, deadline)
        except BrokerError as error:
            LOGGER.debug('Lost while closing: %s', error)
        finally:
            self.dispose()

    def dispose(self) -> None:
        """Drop the connection wholly: threads, timers, sockets. Never raises; again does nothing."""
        self._connection.dispose()

    def _open_channel(self) -> tuple[int, Inbox]:
        number, inbox = self._io.open_inbox(self._connection.channel_max)
        self._insist(inbox, frames.channel_open(number), frames.OPENED, 'opening a channel')
        return number, inbox

    def _insist(self, inbox: Inbox, request: bytes, expected: Reply, what: str) -> None:
        refusal = self.call(inbox, request, expected, what)
        if refusal is not None:
            raise BrokerRefused(f'{self._io.place}: {what}: {refusal.code} {refusal.text}', refusal.code)

    def _give_up(self, reason: str) -> NoReturn:
        error = BrokerLost(f'{self._io.place}: {reason}')
        self._io.lose(error)
        raise error

    def _send_close(self, number: int, inbox: Inbox) -> None:
        if not inbox.closing:
            inbox.closing = True
            self._io.transmit(frames.channel_close(number), inbox)

    def _wait_until(self, reached: Callable[[], bool], deadline: float) -> bool:
        """Whether it was reached before the deadline and before the link was lost."""
        bell = self._connection.bell
        while True:
            bell.clear()
            if reached():
                return True
            left = deadline - time.monotonic()
            if left <= 0 or not self.alive:
                return False
            poller = select.poll()
            poller.register(bell.fileno(), select.POLLIN)
            poller.poll(left * 1000)


class PublisherChannel:
    """A channel to publish on. Ready-made frames go out, signals come in."""

    def __init__(self, link: Link, number: int, inbox: Inbox) -> None:
        self.number = number
        self._link = link
        self._io = link._io
        self._inbox = inbox

    @property
    def open(self) -> bool:
        return self._link.alive and self._inbox.closed is None and not self._inbox.closing

    def send(self, data: bytes) -> None:
        """Send frames of whole messages, made for `number`; never blocks, see Link.unsent. Raises BrokerLost.

        Once the channel is closed bytes go nowhere, as they would at the broker.
        """
        self._io.transmit(data, self._inbox)

    def sync(self) -> None:
        """A round trip: Synced follows every Returned and ChannelClosed caused by what was sent before.

        Acks and Nacks depend on the queues and may still come after it.
        """
        self._inbox.syncs += 1
        self.send(frames.qos(self.number))

    def signals(self) -> list[Signal]:
        """What arrived since the last call, in order. BrokerLost once the link is gone and all is drained."""
        bell = self._link._connection.bell
        bell.clear()
        arrived = self._inbox.signals
        drained = [arrived.popleft() for _ in range(len(arrived))]
        if self._io.lost is not None:
            if not drained and not arrived:
                self._link.raise_if_lost()
            bell.ring()  # so that the loss is seen at the next wait
        return drained

    def close(self) -> None:
        """Close it and wait for the answer; `signals` has what came before. Raises BrokerLost, Stopping."""
        if self.open:
            self._inbox.closing = True
            self._link.call(
                self._inbox, frames.channel_close(self.number), frames.CLOSED, 'closing a channel'
            )


def _check_login(settings: BrokerSettings) -> None:
    """Refuse what the PLAIN mechanism (RFC 4616) or pamqp cannot carry."""
    for name, value in (('username', settings.username), ('password', settings.password)):
        if not value:
            raise BrokerRefused(f'rabbitmq: the {name} is empty')
        if '\0' in value:
            raise BrokerRefused(f'rabbitmq: the {name} holds a NUL character')
    if len(settings.vhost) > LONGEST_VHOST or len(settings.vhost.encode()) > 255:
        raise BrokerRefused(
            f'rabbitmq: the vhost is longer than {LONGEST_VHOST} characters: {settings.vhost}'
        )


def _summary(failures: list[BrokerError]) -> BrokerError:
    if not failures:
        return BrokerLost('rabbitmq: no node is configured')
    refusals = [failure for failure in failures if isinstance(failure, BrokerRefused)]
    text = '; '.join(str(failure) for failure in failures)
    return BrokerRefused(text, refusals[0].code) if refusals else BrokerLost(text)


def _text(value: Any) -> str:
    return value.decode(errors='replace') if isinstance(value, bytes | bytearray) else str(value)
