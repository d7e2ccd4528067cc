"""Calls and publications of one channel, from any thread, one at a time; the channel is opened when needed.

Deliveries never come this way (a channel of their own has them), so an answer is always the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import Any

from mikkoo.common import amqp_frames as frames
from mikkoo.common import amqp_methods as methods
from mikkoo.common import amqp_values as values
from mikkoo.common.amqp_fields import Fields
from mikkoo.common.amqp_frames import Ack, Nack, Reply
from mikkoo.common.amqp_mailbox import Answer, Mailbox
from mikkoo.common.amqp_shared import ClosedByBroker, SharedLink
from mikkoo.common.errors import BrokerError, BrokerLost
from mikkoo.connector.errors import ChannelClosed, PublishFailed, Unroutable, translated

WINDOW = 1000  # messages of publish_many in flight
WINDOW_BYTES = 16 * 1024 * 1024  # and their bytes that are not sent yet
CHUNK = 50  # of them that are sent at once

Publication = tuple[str, str, bytes, bytes]  # exchange, routing key, encoded properties, body


class Calls:
    """One AMQP channel in confirm mode. After a refusal the next call opens another."""

    def __init__(self, link: SharedLink) -> None:
        self._link = link
        self._lock = threading.RLock()
        self._mailbox: Mailbox | None = None
        self._number = 0
        self._asking = False  # an answer is still to come
        self._published = 0
        self._unconfirmed: dict[int, None] = {}
        self._nacked = 0
        self._returned: list[str] = []

    def ask(self, make: Callable[[int], bytes], expected: Reply, what: str) -> Fields:
        """The arguments of the answer. `make`: the request for a channel number.

        Raises ChannelClosed, ConnectionLost; ValueError from `make`.
        """
        with self._conversation(what) as mailbox:
            request = make(self._number)
            self._asking = True
            self._link.send(mailbox, request)
            while not isinstance(heard := self._hear(mailbox, what), Answer):
                pass
            self._asking = False
            if heard.reply != expected:
                reason = f'answered {heard.reply} where {expected} was asked for ({what})'
                self._link.lose(reason)
                raise BrokerLost(f'{self._link.place}: {reason}')
            return heard.fields

    def publish(self, message: Publication, mandatory: bool) -> None:
        """Return when the broker has confirmed.

        Raises Unroutable, PublishFailed, ChannelClosed, ConnectionLost; ValueError: AMQP cannot carry it.
        """
        what = f'publishing to {message[0] or message[1]!r}'
        with self._conversation(what) as mailbox:
            self._send(mailbox, [message], mandatory)
            tag = self._published
            while tag in self._unconfirmed:
                self._hear(mailbox, what)
            self._raise_failures(what, 1)

    def publish_many(self, messages: Iterable[Publication], mandatory: bool) -> int:
        """The same for many in flight together; how many. PublishFailed tells how many were not taken."""
        what, source, count = 'publishing', iter(messages), 0
        with self._conversation(what) as mailbox:
            while chunk := list(islice(source, CHUNK)):
                self._send(mailbox, chunk, mandatory)
                count += len(chunk)
                self._await(mailbox, what, WINDOW - CHUNK)
            self._await(mailbox, what, 0)
            self._raise_failures(what, count)
        return count

    def close(self) -> None:
        """Close the channel, if it is open; the next call opens another. Raises no ConnectorError."""
        with self._lock:
            mailbox, self._mailbox = self._mailbox, None
            if mailbox is not None:
                try:
                    self._link.close_mailbox(self._number, mailbox)
                except (BrokerError, ClosedByBroker):
                    pass  # closed it is

    @contextmanager
    def _conversation(self, what: str) -> Iterator[Mailbox]:
        """Nobody else speaks; errors become the service's; whoever leaves in the middle leaves no answer."""
        with self._lock:
            try:
                yield self._opened()
            except ClosedByBroker as error:
                self._mailbox = None
                raise ChannelClosed(error.closed.code, error.closed.text, what) from None
            except BrokerError as error:
                self._mailbox = None
                raise translated(error) from None
            except BaseException:
                if self._asking or self._unconfirmed:
                    self._abandon()
                raise

    def _opened(self) -> Mailbox:
        self._link.raise_if_lost()
        if self._mailbox is None or self._mailbox.closed is not None:
            self._published = self._nacked = 0
            self._asking = False
            self._unconfirmed.clear()
            self._returned.clear()
            self._number, mailbox = self._link.open_mailbox()
            self._link.ask(mailbox, frames.confirm_select(self._number), frames.SELECTED, 'confirms')
            self._mailbox = mailbox
        return self._mailbox

    def _abandon(self) -> None:
        """Close the channel without waiting: the answers that are still to come go with it."""
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None and mailbox.closed is None and self._link.alive:
            mailbox.closing = True
            self._link.send(mailbox, frames.channel_close(self._number))

    def _send(self, mailbox: Mailbox, messages: list[Publication], mandatory: bool) -> None:
        number, most = self._number, self._link.frame_max
        data = [
            methods.publish(number, most, exchange, key, mandatory, properties, body)
            for exchange, key, properties, body in messages
        ]
        for _ in data:
            self._published += 1
            self._unconfirmed[self._published] = None
        self._link.send(mailbox, data[0] if len(data) == 1 else b''.join(data))

    def _await(self, mailbox: Mailbox, what: str, most: int) -> None:
        """Until no more than `most` are unconfirmed, and what is not sent has its bound."""
        while len(self._unconfirmed) > most or (self._unconfirmed and self._link.unsent > WINDOW_BYTES):
            self._hear(mailbox, what)

    def _hear(self, mailbox: Mailbox, what: str) -> object:
        """One thing more; confirms are taken note of."""
        heard = self._link.listen(mailbox, what)
        if isinstance(heard, Ack | Nack):
            self._settle(heard)
        elif not isinstance(heard, Answer):
            self._returned.append(f'{heard.code} {heard.text}')
        return heard

    def _settle(self, heard: Ack | Nack) -> None:
        settled = [heard.tag]
        if heard.multiple:
            settled = list(takewhile(lambda tag: tag <= heard.tag, self._unconfirmed))
        for tag in settled:
            self._unconfirmed.pop(tag, None)
        if isinstance(heard, Nack):
            self._nacked += len(settled)

    def _raise_failures(self, what: str, count: int) -> None:
        nacked, returned = self._nacked, self._returned[:]
        self._nacked = 0
        self._returned.clear()
        many = f'{{}} of {count}: ' if count > 1 else ''
        if nacked:
            raise PublishFailed(f'{what}: {many.format(nacked)}the broker did not take it (nack)')
        if returned:
            raise Unroutable(f'{what}: {many.format(len(returned))}{returned[0]}')


def encoded(exchange: str, key: str, body: Any, properties: object) -> Publication:
    """A message as `publish` takes it. Raises ValueError, TypeError: what AMQP cannot carry."""
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        body = bytes(memoryview(body))
    return exchange, key, values.properties(properties), body
