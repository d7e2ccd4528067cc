"""Which message makes the other side drop the link: decisions over losses. No I/O, no clock.

    nobody suspected --three provoked losses running, nothing answered on any of those links--> alone
    alone --the probe was not answered--> nobody suspected: an outage
    alone --all that was unjudged is through--> nobody suspected

While `alone` each new link begins with a probe (probe.py), which shows that the link carries messages; then
the unjudged go one at a time. A message with which three such links running were lost is convicted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

LOSSES = 3  # running: until messages go one at a time, and until the one that was alone is convicted
QUICK = 12  # losses since anything was delivered after which links are made as seldom as in an outage
REMEMBERED = 1_000  # convicted events


@dataclass(frozen=True, slots=True)
class Loss:
    """How a link ended that was established.

    `provoked`: what we sent may be why (BrokerLost). `answered`: a message was confirmed, returned or
    rejected on it. `in_flight`: messages sent without an answer; `only`: the event's id where there was one.
    """

    provoked: bool
    answered: bool
    probed: bool
    in_flight: int
    only: int | None


class Suspicion:
    """Told of every loss; says whether messages go `alone`, and which of them has failed."""

    def __init__(self) -> None:
        self._losses = 0
        self._suspect: int | None = None
        self._times = 0
        self._fruitless = 0  # suspicious losses since anything was answered
        self._convicted: deque[int] = deque(maxlen=REMEMBERED)
        self.quick = False  # whether the last loss was suspicious, and not one of too many

    @property
    def alone(self) -> bool:
        """Whether messages have to go one at a time, each link beginning with a probe."""
        return self._losses >= LOSSES

    def knows(self, event_id: int) -> bool:
        """Whether this event was convicted before: then it should go alone from the start."""
        return event_id in self._convicted

    def accuse(self) -> None:
        """The next message is known: it goes alone."""
        self._losses = LOSSES

    def clear(self) -> None:
        """All that was unjudged is through; or there is an outage, and nobody to blame."""
        self._losses = self._times = 0
        self._suspect = None

    def lost(self, loss: Loss) -> int | None:
        """Learn of a loss; the event that it convicts, if any."""
        self.quick = False
        if loss.answered:
            self._fruitless = 0
        if not loss.provoked:
            return None
        if self.alone:
            if loss.probed:
                return self._blame(loss.only)
            self.clear()
        elif loss.answered:
            self._losses = 0
        elif loss.in_flight:
            self._losses += 1
            self._count()
        return None

    def _blame(self, event_id: int | None) -> int | None:
        if event_id is None:
            return None
        self._count()
        self._times = self._times + 1 if event_id == self._suspect else 1
        self._suspect = event_id
        if self._times < LOSSES:
            return None
        self._suspect, self._times = None, 0
        if event_id not in self._convicted:
            self._convicted.append(event_id)
        return event_id

    def _count(self) -> None:
        self._fruitless += 1
        self.quick = self._fruitless <= QUICK
