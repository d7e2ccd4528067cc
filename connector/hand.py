"""The messages that a consumer has in hand: given to its callback and not settled."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mikkoo.common import amqp_methods as methods


class Hand:
    """Tags of one subscription, settled once each, from any thread.

    `send`: takes a frame; may raise. The ack of the oldest in hand may be owed for a moment, so that one
    frame speaks for up to `together` of them: if `may_wait()`, which sees to it that `flush` is called soon.
    """

    def __init__(
        self,
        channel: int,
        send: Callable[[bytes], None],
        together: int = 1,
        may_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        self._channel = channel
        self._send = send
        self._together = together
        self._may_wait = may_wait
        self._owed = 0  # the last tag whose ack is not sent, nor that of `_owing - 1` before it
        self._owing = 0
        self._lock = threading.Lock()
        self._tags: dict[int, None] = {}  # in the order of delivery
        self._held = 0  # a tag that is not settled on the wire before `release`
        self._verdict: bytes | None = None  # what will be sent then
        self.held_is_refused = False

    def __len__(self) -> int:
        return len(self._tags)

    def take(self, tag: int) -> None:
        with self._lock:
            self._tags[tag] = None

    def holds(self, tag: int) -> bool:
        """Whether nobody has settled it."""
        return tag in self._tags and not (tag == self._held and self._verdict is not None)

    def hold(self, tag: int) -> None:
        """From now on this tag's settling waits for `release`."""
        with self._lock:
            self._held, self._verdict, self.held_is_refused = tag, None, False

    def release(self, tag: int) -> None:
        """Send what was said of it, if anything was."""
        with self._lock:
            verdict, self._verdict, self._held = self._verdict, None, 0
            if verdict is not None:
                self._send(verdict)
                del self._tags[tag]

    def forget(self, tag: int) -> None:
        """As if nothing had been said of it."""
        with self._lock:
            self._verdict, self._held = None, 0

    def ack(self, tag: int, multiple: bool = False) -> bool:
        """Whether there was something to settle; what is settled already, or never came, is not sent."""
        if not multiple and tag != self._held:  # the common case, quick
            with self._lock:
                if tag not in self._tags:
                    return False
                if next(iter(self._tags)) != tag:
                    self._send(methods.ack(self._channel, tag, False))
                elif self._owing + 1 < self._together and self._may_wait():
                    self._owed, self._owing = tag, self._owing + 1
                else:
                    self._send(methods.ack(self._channel, tag, self._owing > 0))
                    self._owing = 0
                del self._tags[tag]
            return True
        return self._settle(tag, multiple, False, methods.ack)

    def flush(self) -> None:
        """Send what is owed."""
        with self._lock:
            self._flush()

    def leave(self) -> None:
        """Send what is owed, and owe nothing from now on: the channel is about to be closed."""
        with self._lock:
            self._together = 1
            self._flush()

    def nack(self, tag: int, multiple: bool, requeue: bool) -> bool:
        """The same for Basic.Nack."""
        return self._settle(
            tag, multiple, True, lambda channel, last, many: methods.nack(channel, last, many, requeue)
        )

    def _settle(
        self, tag: int, multiple: bool, refused: bool, frame: Callable[[int, int, bool], bytes]
    ) -> bool:
        """`multiple`: all in hand up to `tag`, 0: all; never those that the callback has not seen yet."""
        with self._lock:
            settled = [one for one in self._tags if not tag or one <= tag] if multiple else [tag]
            settled = [one for one in settled if self.holds(one)]
            if not settled:
                return False
            self._flush()  # `multiple` would reach what is owed
            if self._held in settled:
                settled.remove(self._held)
                self._verdict = frame(self._channel, self._held, False)
                self.held_is_refused = refused
            if settled:
                self._send(frame(self._channel, settled[-1], multiple))
                for one in settled:
                    del self._tags[one]
            return True

    def _flush(self) -> None:
        if self._owing:
            self._send(methods.ack(self._channel, self._owed, self._owing > 1))
            self._owing = 0
