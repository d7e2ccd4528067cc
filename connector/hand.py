"""The messages that a consumer has in hand: given to its callback and not settled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mikkoo.common import amqp_methods as methods


class Hand:
    """Tags of one subscription, settled once each, from any thread. `send`: takes the frame; may raise."""

    def __init__(self, channel: int, send: Callable[[bytes], None]) -> None:
        self._channel = channel
        self._send = send
        self._lock = threading.Lock()
        self._tags: dict[int, None] = {}  # in the order of delivery
        self._last = 0

    def __len__(self) -> int:
        return len(self._tags)

    def take(self, tag: int) -> None:
        self._tags[tag] = None
        self._last = tag

    def holds(self, tag: int) -> bool:
        return tag in self._tags

    def ack(self, tag: int, multiple: bool = False) -> bool:
        """Whether there was something to settle; what is settled already, or never came, is not sent."""
        with self._lock:
            if not multiple:  # the common case, quick
                if tag not in self._tags:
                    return False
                self._send(methods.ack(self._channel, tag, False))
                del self._tags[tag]
                return True
            return self._settle_up_to(tag, lambda last: methods.ack(self._channel, last, True))

    def nack(self, tag: int, multiple: bool, requeue: bool) -> bool:
        """The same for Basic.Nack."""
        with self._lock:
            if not multiple:
                if tag not in self._tags:
                    return False
                self._send(methods.nack(self._channel, tag, False, requeue))
                del self._tags[tag]
                return True
            return self._settle_up_to(tag, lambda last: methods.nack(self._channel, last, True, requeue))

    def _settle_up_to(self, tag: int, frame: Callable[[int], bytes]) -> bool:
        """All that are in hand, up to `tag`; 0: all. Never those that the callback has not seen yet."""
        settled = [one for one in self._tags if not tag or one <= tag]
        if not settled:
            return False
        self._send(frame(settled[-1]))
        for one in settled:
            del self._tags[one]
        return True
