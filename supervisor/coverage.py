"""Pure: which audited routes come by an auditor's queue. As RabbitMQ routes; the exchange's type decides."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from mikkoo.common.settings import BindingSettings


class Sight(Enum):
    """Whether a message reaches the queue. UNTOLD: only its headers, or a plugin, would tell."""

    SEEN = 'seen'
    UNSEEN = 'unseen'
    UNTOLD = 'untold'


def sight(exchange: str, kind: str | None, key: str, bindings: Sequence[BindingSettings]) -> Sight:
    """A message of an exchange ('' is the default one) of this type (None: unknown) with this routing key."""
    keys = [binding.routing_key for binding in bindings if binding.exchange == exchange]
    if not exchange or not keys:
        return Sight.UNSEEN
    match kind:
        case 'fanout':
            return Sight.SEEN
        case 'direct':
            return Sight.SEEN if key in keys else Sight.UNSEEN
        case 'topic':
            return Sight.SEEN if any(topic_matches(one, key) for one in keys) else Sight.UNSEEN
        case _:
            return Sight.UNTOLD


def topic_matches(pattern: str, key: str) -> bool:
    """Words between dots; '*' is any one word, '#' any number of them, none included."""
    words = key.split('.') if key else []
    reached = {0}  # how many words the pattern up to here may have taken
    for part in pattern.split('.') if pattern else []:
        if part == '#':
            reached = set(range(min(reached), len(words) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in ('*', words[at])}
    return len(words) in reached
