"""The publisher against a link that does what a script says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mikkoo.common.amqp import Ack, ChannelClosed, Nack, Returned
from mikkoo.common.bell import Bell
from mikkoo.common.errors import BrokerLost
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import WorkerSettings
from mikkoo.worker.event import Message
from mikkoo.worker.publisher import Publisher
from mikkoo.worker.routes import Routes
from mikkoo.worker.suspicion import Loss
from mikkoo.worker.verdict import Kind
from tests.unit.test_flights import event

REFUSED = ChannelClosed(406, 'PRECONDITION_FAILED', 60, 40)
LOST = BrokerLost('closed by the other side', provoked=True)
Script = Callable[['FakeChannel', str], None]


class FakeLink:
    """Hears each message by its body, <n> ('' is the probe); `script` answers. `heard`: bodies by channel."""

    frame_max = 131_072
    undelivered = 0

    def __init__(self, script: Script) -> None:
        self.script = script
        self.alarm_until = 0.0  # monotonic
        self.lost: BrokerLost | None = None
        self.heard: list[list[str]] = []
        self._bell = Bell()
        self._bell.ring()  # there is always news: nothing waits

    @property
    def blocked(self) -> str | None:
        return 'low on memory' if time.monotonic() < self.alarm_until else None

    def fileno(self) -> int:
        return self._bell.fileno()

    def exchange_exists(self, name: str) -> None:
        assert self.blocked is None
        return None

    def publisher_channel(self, confirm: bool) -> FakeChannel:
        self.heard.append([])
        return FakeChannel(self, self.heard[-1])

    def close(self) -> None:
        self._bell.close()


class FakeChannel:
    number = 1

    def __init__(self, link: FakeLink, heard: list[str]) -> None:
        self.link = link
        self.heard = heard
        self.answers: list[Any] = []

    def send(self, data: bytes) -> None:
        if self.link.lost is not None:
            raise self.link.lost
        for body in re.findall(rb'<(\d+)>', data) or [b'']:
            self.heard.append(body.decode())
            self.link.script(self, body.decode())

    def ack(self) -> None:
        self.answers.append(Ack(len(self.heard), False))

    def nack(self) -> None:
        self.answers.append(Nack(len(self.heard), False))

    def signals(self) -> list[Any]:
        answers, self.answers = self.answers, []
        if not answers and self.link.lost is not None:
            raise self.link.lost
        return answers

    def close(self) -> None:
        """In good order."""


@pytest.fixture
def publish() -> Iterator[Callable[[Script, int], tuple[FakeLink, Publisher]]]:
    """`publish(script, count)`: a publisher that has taken so many messages, bodies <1>, <2>, ..."""
    pulse = Pulse()
    links: list[FakeLink] = []

    def start(script: Script, count: int) -> tuple[FakeLink, Publisher]:
        links.append(FakeLink(script))
        routes = Routes(1.0, lambda event: False)
        made = Publisher(links[-1], pulse, WorkerSettings('w', 'q', ''), routes)  # type: ignore[arg-type]
        for number in range(1, count + 1):
            made.publish(event(number), Message(f'x{number}', 'key', {}, b'<%d>' % number))
        return links[-1], made

    yield start
    pulse.close()
    for link in links:
        link.close()


Publish = Callable[[Script, int], tuple[FakeLink, Publisher]]


def test_the_one_that_closes_the_channel_is_found_and_the_others_arrive(publish: Publish) -> None:
    def script(channel: FakeChannel, body: str) -> None:
        if body == '2':
            channel.answers = [REFUSED]
        elif len(channel.link.heard) > 1:
            channel.ack()

    link, publisher = publish(script, 3)
    publisher.drain()
    assert [(one.event.id, one.kind) for one in publisher.take_failures()] == [(2, Kind.REFUSED)]
    assert publisher.delivered == 2 and link.heard == [['1', '2', '3'], ['1', '2'], ['3']]


def test_a_rejected_message_that_joins_one_sent_alone_after_an_alarm_is_not_taken_for_the_culprit(
    publish: Publish,
) -> None:
    """1 is rejected and waits; the look-up of 2's exchange waits for an alarm to end, and 1 is sent again
    meanwhile; 2 closes the channel with both in flight. All are sent alone once more."""

    def script(channel: FakeChannel, body: str) -> None:
        link = channel.link
        if body == '2':
            channel.answers = [REFUSED]
        elif len(link.heard) > 2:
            channel.ack()
        elif len(link.heard) == 2 and body == '1' and len(channel.heard) == 1:
            link.alarm_until = time.monotonic() + 0.3  # longer than the first wait of a rejected message
            channel.nack()

    link, publisher = publish(script, 3)
    publisher.drain()
    assert [(one.event.id, one.kind) for one in publisher.take_failures()] == [(2, Kind.REFUSED)]
    assert publisher.delivered == 2
    assert link.heard == [['1', '2', '3'], ['1', '1', '2'], ['1', '2'], ['3']]


def test_alone_means_after_a_probe_and_one_after_the_other(publish: Publish) -> None:
    waiting: list[int] = []

    def script(channel: FakeChannel, body: str) -> None:
        if body:
            waiting.append(len(publisher.unjudged()))
            channel.ack()
        else:
            channel.answers += [Returned(312, 'NO_ROUTE', '', 'key', {}, b''), Ack(1, False)]

    link, other = publish(lambda channel, body: None, 3)
    flights = other.unjudged()
    link, publisher = publish(script, 0)
    publisher.resend_alone(flights)
    assert link.heard == [['1', '2', '3'], ['']] and waiting == [3, 2, 1]
    assert publisher.delivered == 3 and publisher.take_failures() == [] and publisher.probed


@pytest.mark.parametrize(
    ('fatal', 'loss'),
    [
        ('', Loss(True, answered=False, probed=False, in_flight=0, only=None)),
        ('1', Loss(True, answered=False, probed=True, in_flight=1, only=1)),
        ('2', Loss(True, answered=True, probed=True, in_flight=1, only=2)),
    ],
)
def test_a_link_lost_while_messages_go_alone_tells_with_which(
    publish: Publish, fatal: str, loss: Loss
) -> None:
    def script(channel: FakeChannel, body: str) -> None:
        if body == fatal:
            channel.link.lost = LOST
        else:
            channel.ack()

    _, other = publish(lambda channel, body: None, 3)
    _, publisher = publish(script, 0)
    with pytest.raises(BrokerLost):
        publisher.resend_alone(other.unjudged())
    publisher.hear_the_last()
    assert publisher.loss(provoked=True) == loss
    assert [one.event.id for one in publisher.unjudged()] == ([2, 3] if fatal == '2' else [1, 2, 3])


def test_what_the_broker_said_before_a_loss_is_heard_after_it(publish: Publish) -> None:
    def script(channel: FakeChannel, body: str) -> None:
        if body == '3':
            channel.answers = [Ack(2, True)]
            channel.link.lost = LOST

    _, publisher = publish(script, 3)
    with pytest.raises(BrokerLost):
        publisher.drain()
    publisher.hear_the_last()
    assert publisher.delivered == 2 and [one.event.id for one in publisher.unjudged()] == [3]
    assert publisher.loss(provoked=True) == Loss(True, answered=True, probed=False, in_flight=1, only=3)
