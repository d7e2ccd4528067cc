"""What `mikkood check --connect` asks of RabbitMQ for an auditor: its exchanges, their types, its queue.

A check leaves nothing behind: it declares nothing that is not there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial

from mikkoo.common import amqp_methods as methods
from mikkoo.common.amqp_frames import Reply
from mikkoo.common.amqp_shared import ClosedByBroker, SharedLink
from mikkoo.common.errors import BrokerError
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import AuditorSettings, BrokerSettings
from mikkoo.supervisor.probe import CONNECT_TIMEOUT, Probe

ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED = 403, 404, 406  # AMQP 0-9-1 reply codes
NO_PRIORITY = {'x-priority': 'mikkood check'}  # which has to be a number
CURRENT_TYPE = re.compile(r"inequivalent arg 'type' for exchange .* current is '([^']+)'")
PERMISSIONS = 'rabbitmqctl set_permissions: configure, write and read on its queue, read on its exchanges'

Kinds = dict[tuple[BrokerSettings, str], str | None]  # the types of exchanges


def run(auditor: AuditorSettings, pulse: Pulse, kinds: Kinds) -> Iterator[Probe]:
    """The login is probed for all who share a broker; here what this auditor needs of it."""
    subject = f'auditor {auditor.name}'
    properties = {'purpose': 'mikkood check'}
    try:
        link = SharedLink.open(auditor.rabbitmq, pulse, properties=properties, timeout=CONNECT_TIMEOUT)
    except BrokerError:
        return  # said of the broker
    try:
        for exchange in auditor.exchanges:
            yield _exchange(subject, exchange, link)
            kinds[auditor.rabbitmq, exchange] = _kind(exchange, link)
        yield _queue(subject, auditor.queue, link)
        yield _rights(subject, auditor, link)
    except BrokerError as error:
        yield Probe(subject, 'link', 'failed', str(error), 'see the log of the broker')
    finally:
        link.close()


def _exchange(subject: str, exchange: str, link: SharedLink) -> Probe:
    refusal = link.exchange_exists(exchange)
    if refusal is None:
        return Probe(subject, 'exchange', 'ok', exchange)
    remedy = 'declare it, or see the exchanges in bindings' if refusal.code == NOT_FOUND else 'see its rights'
    return Probe(subject, 'exchange', 'failed', f'{exchange!r}: {refusal.code} {refusal.text}', remedy)


def _kind(exchange: str, link: SharedLink) -> str | None:
    """The type of an exchange, which a passive declare does not tell; None: we may not ask, or it is gone.

    The broker names it when it refuses another. An alternate exchange that nobody has makes it refuse in any
    case, unless there is no such exchange: then we have made one, and take it away.
    """
    if link.exchange_exists(exchange) is not None:
        return None
    nobody = {'alternate-exchange': f'mikkoo-check-{uuid.uuid4()}'}
    try:
        _ask(link, methods.EXCHANGE_DECLARED, lambda number: methods.exchange_declare(
            number, exchange, 'headers', False, False, False, False, nobody
        ))  # fmt: skip
    except ClosedByBroker as error:
        if error.closed.code != PRECONDITION_FAILED:
            return None
        found = CURRENT_TYPE.search(error.closed.text)
        return found[1] if found else 'headers'
    _ask(link, methods.EXCHANGE_DELETED, lambda number: methods.exchange_delete(number, exchange, True))
    return None


def _rights(subject: str, auditor: AuditorSettings, link: SharedLink) -> Probe:
    """Whether it may bind its queue, and consume: what leads to nothing, but takes the same rights.

    To undo a binding that nobody made, and to consume in a way that no broker allows. Rights come first: only
    where they are there the broker says that the rest is wrong.
    """
    queue, nobody = auditor.queue, f'mikkoo-check-{uuid.uuid4()}'
    refused = []
    for exchange in auditor.exchanges:
        unbind = partial(methods.queue_unbind, queue=queue, exchange=exchange, key=nobody, arguments=None)
        if text := _may_not(link, methods.QUEUE_UNBOUND, unbind):
            refused.append(f'bind to {exchange!r}: {text}')
    consume = partial(methods.consume, queue=queue, arguments=NO_PRIORITY)
    if text := _may_not(link, methods.CONSUMING, consume):
        refused.append(f'consume: {text}')
    if refused:
        return Probe(subject, 'rights', 'failed', 'may not ' + '; '.join(refused), PERMISSIONS)
    return Probe(subject, 'rights', 'ok', 'may bind and consume its queue')


def _may_not(link: SharedLink, expected: Reply, make: Callable[[int], bytes]) -> str:
    """The broker's words where it refuses for want of rights, else ''."""
    try:
        _ask(link, expected, make)
    except ClosedByBroker as error:
        if error.closed.code == ACCESS_REFUSED:
            return error.closed.text
    return ''


def _queue(subject: str, queue: str, link: SharedLink) -> Probe:
    """Whether the queue is there, or the auditor may declare it.

    To delete what is not there does no harm, and takes the same right as to declare it. Were it declared at
    this moment, it is left alone when it is used, or holds anything; and an auditor restores it.
    """
    try:
        _ask(link, methods.QUEUE_DECLARED, lambda number: methods.queue_declare(number, queue, passive=True))
        return Probe(subject, 'queue', 'ok', queue)
    except ClosedByBroker as error:
        if error.closed.code != NOT_FOUND:
            return _refused(subject, error)
    try:
        _ask(link, methods.QUEUE_DELETED, lambda number: methods.queue_delete(number, queue, True, True))
    except ClosedByBroker as error:
        return _refused(subject, error)
    return Probe(subject, 'queue', 'ok', f'{queue} is not there; the auditor declares it')


def _refused(subject: str, error: ClosedByBroker) -> Probe:
    return Probe(subject, 'queue', 'failed', str(error), PERMISSIONS)


def _ask(link: SharedLink, expected: Reply, make: Callable[[int], bytes]) -> None:
    """Ask on a channel of its own. Raises BrokerLost, ClosedByBroker."""
    number, mailbox = link.open_mailbox()
    link.ask(mailbox, make(number), expected, 'check')
    link.close_mailbox(number, mailbox)
