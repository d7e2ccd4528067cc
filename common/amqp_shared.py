"""A link that any thread may use: to call, to publish one message at a time, to consume.

The I/O thread of amqp_transport.py puts what arrives into Mailboxes; whoever waits there looks up at once
when the link is lost. The caller keeps two threads from waiting in one Mailbox.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty

from mikkoo.common import amqp_frames as frames
from mikkoo.common.amqp import CALL_TIMEOUT, Link
from mikkoo.common.amqp_fields import Fields
from mikkoo.common.amqp_frames import Ack, ChannelClosed, Nack, Reply
from mikkoo.common.amqp_mailbox import Answer, Mailbox, Unroutable
from mikkoo.common.errors import BrokerLost, MikkooError

Heard = Answer | Ack | Nack | Unroutable


class ClosedByBroker(MikkooError):
    """The broker closed the channel instead of answering; `closed` is how."""

    def __init__(self, closed: ChannelClosed) -> None:
        super().__init__(f'{closed.code} {closed.text}')
        self.closed = closed


class SharedLink(Link):
    """A Link whose channels are Mailboxes. Waits here end when the link is lost, whoever loses it."""

    @property
    def place(self) -> str:
        """host:port, for people."""
        return self._io.place

    def open_mailbox(self) -> tuple[int, Mailbox]:
        """A new channel. Raises BrokerLost, ClosedByBroker."""
        mailbox = Mailbox()
        number, _ = self._io.open_inbox(self._connection.channel_max, mailbox)
        self.ask(mailbox, frames.channel_open(number), frames.OPENED, 'opening a channel')
        return number, mailbox

    def send(self, mailbox: Mailbox, data: bytes) -> None:
        """Send, never wait. BrokerLost: the link is gone; on a channel that is over it goes nowhere."""
        self._io.transmit(data, mailbox)

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call `act` once, within milliseconds, in the thread of the socket, which it must not hold up."""
        self._io.call_soon(act)

    def ask(self, mailbox: Mailbox, request: bytes, expected: Reply, what: str) -> Fields:
        """Send a request and wait for its answer; its arguments. Raises BrokerLost, ClosedByBroker."""
        self.send(mailbox, request)
        while True:
            heard = self.listen(mailbox, what)
            if isinstance(heard, Answer):
                if heard.reply != expected:
                    self._give_up(f'answered {heard.reply} where {expected} was asked for')
                return heard.fields

    def listen(self, mailbox: Mailbox, what: str) -> Heard:
        """The next that comes. Raises ClosedByBroker, BrokerLost, once all that came before is heard.

        The link is given up if nothing came for CALL_TIMEOUT; the time of an alarm does not count.
        """
        deadline, blocked = time.monotonic() + CALL_TIMEOUT, self.blocked
        while True:
            if mailbox.answers.empty():
                if mailbox.closed is not None:
                    raise ClosedByBroker(mailbox.closed)
                self.raise_if_lost()
            try:
                heard = mailbox.answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                if not blocked:
                    self._give_up(f'no answer within {CALL_TIMEOUT:g} s ({what})')
                heard = None
            if heard is not None:
                return heard
            before, blocked = blocked, self.blocked
            if before or blocked:
                deadline = time.monotonic() + CALL_TIMEOUT

    def close_mailbox(self, number: int, mailbox: Mailbox) -> None:
        """Close a channel and wait for the answer."""
        if self.alive and mailbox.closed is None and not mailbox.closing:
            mailbox.closing = True
            self.ask(mailbox, frames.channel_close(number), frames.CLOSED, 'closing a channel')

    def lose(self, reason: str) -> None:
        """Give the link up; whoever waits hears BrokerLost with this reason."""
        self._io.lose(BrokerLost(f'{self.place}: {reason}'))
