"""What an auditor has in RabbitMQ: its queue, and what binds that to the exchanges that it audits."""

from __future__ import annotations

from collections.abc import Callable

from mikkoo.common.settings import AuditorSettings
from mikkoo.connector.channel import Channel
from mikkoo.connector.errors import ChannelClosed

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED = 403, 404, 406


def declaring(settings: AuditorSettings) -> Callable[[Channel, str], None]:
    """What makes the queue and its bindings, again and again without harm.

    Raises ChannelClosed: an exchange is not there, or the broker's user may not do it. The others are bound.
    """

    def declare(channel: Channel, queue: str) -> None:
        declare_queue(channel, queue, settings.queue_type)
        refusals = []
        for binding in settings.bindings:
            try:
                channel.queue_bind(queue, binding.exchange, binding.routing_key, binding.arguments)
            except ChannelClosed as refused:
                refusals.append(refused)
        if refusals:
            raise refusals[0]

    return declare


def declare_queue(channel: Channel, queue: str, kind: str) -> None:
    """A durable queue of this kind; one that is there, or that we may not make, as it is.

    A broker that knows no kinds makes it a classic one, and so do we where quorum queues are switched off.
    """
    try:
        channel.queue_declare(queue, durable=True, arguments={'x-queue-type': kind})
    except ChannelClosed as refused:
        if refused.code not in (ACCESS_REFUSED, PRECONDITION_FAILED):
            raise
        try:
            channel.queue_declare(queue, passive=True)
        except ChannelClosed as error:
            if error.code != NOT_FOUND or refused.code == ACCESS_REFUSED:
                raise (refused if error.code == NOT_FOUND else error) from None
            channel.queue_declare(queue, durable=True)
