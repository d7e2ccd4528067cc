"""When an auditor may say that a message has not come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mikkoo.auditor.intake import Intake
from mikkoo.auditor.topology import declaring
from mikkoo.common.bell import Bell
from mikkoo.common.settings import AuditorSettings, BindingSettings
from mikkoo.connector import ChannelClosed
from mikkoo.connector.channel import DeclareOk, Result

SETTINGS = AuditorSettings(
    'proof', 'q', 'postgresql://', (BindingSettings('a'), BindingSettings('b'), BindingSettings('c'))
)
METHOD = SimpleNamespace(exchange='a', routing_key='k', delivery_tag=1)
PROPERTIES = SimpleNamespace(message_id=None)


class FakeChannel:
    """Answers declarations; `left` messages are in the queue, the exchanges `absent` are not there."""

    def __init__(self, left: int = 0, absent: tuple[str, ...] = ()) -> None:
        self.left = left
        self.absent = absent
        self.bound: list[str] = []

    def queue_declare(self, queue: str, **given: Any) -> Result:
        return Result(DeclareOk(queue, self.left))

    def queue_bind(self, queue: str, exchange: str, key: str, arguments: Any) -> None:
        if exchange in self.absent:
            raise ChannelClosed(404, f'no exchange {exchange!r}')
        self.bound.append(exchange)


@pytest.fixture
def intake() -> Intake:
    return Intake(SETTINGS, Bell())


def test_before_any_inspection_it_is_behind(intake: Intake) -> None:
    assert not intake.caught_up


def test_new_messages_do_not_hide_that_the_old_ones_have_come(intake: Intake) -> None:
    """There are always some: it would never be caught up."""
    intake._inspect(FakeChannel())
    intake._receive(FakeChannel(), METHOD, PROPERTIES, b'')
    assert len(intake) == 1 and intake.caught_up


def test_messages_that_are_older_than_the_inspection_have_to_be_settled_first(intake: Intake) -> None:
    intake._receive(FakeChannel(), METHOD, PROPERTIES, b'')
    intake._inspect(FakeChannel())
    assert not intake.caught_up
    intake.take()
    assert intake.caught_up


@pytest.mark.parametrize('channel', [FakeChannel(left=1), FakeChannel(absent=('b',))])
def test_with_messages_left_or_a_refusal_it_is_behind_again(intake: Intake, channel: FakeChannel) -> None:
    intake._inspect(FakeChannel())
    intake._inspect(channel)
    assert not intake.caught_up


def test_what_can_be_bound_is_bound() -> None:
    """What goes through the others would else pass the audit by, and be called late."""
    channel = FakeChannel(absent=('a', 'b'))
    with pytest.raises(ChannelClosed, match="'a'"):
        declaring(SETTINGS)(channel, 'q')  # type: ignore[arg-type]
    assert channel.bound == ['c']
