"""A message that leaves no trace, to learn whether a link carries messages at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from mikkoo.common.amqp import Ack, ChannelClosed, Link, Nack
from mikkoo.common.errors import BrokerLost
from mikkoo.common.pulse import Pulse
from mikkoo.worker.event import Message
from mikkoo.worker.frames import encoder

WAIT_SLICE = 1.0  # seconds between two calls of `look`


def probe(link: Link, pulse: Pulse, timeout: float, look: Callable[[], None]) -> None:
    """Publish to a queue that does not exist, over a channel of its own, and wait for any answer.

    The default exchange returns it; a user without rights there has the channel closed, which is an answer
    too. `look` is called about once a second. Raises BrokerLost (also after `timeout` seconds without an
    answer; an alarm's time does not count), Stopping.
    """
    channel = link.publisher_channel(confirm=True)
    message = Message('', f'mikkoo.probe.{uuid.uuid4()}', {}, b'')
    channel.send(encoder(channel.number, link.frame_max)(message))
    deadline = time.monotonic() + timeout
    while not any(isinstance(signal, Ack | Nack | ChannelClosed) for signal in channel.signals()):
        if link.blocked is not None:
            deadline = time.monotonic() + timeout
        elif time.monotonic() >= deadline:
            raise BrokerLost(f'no answer to a probe within {timeout:g} s')
        pulse.wait('the answer to a probe', WAIT_SLICE, read=[link.fileno()])
        look()
    channel.close()
