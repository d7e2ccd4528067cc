"""One batch on its way: read in slices, translated, published, its progress saved, and at last settled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from mikkoo.common.errors import DatabaseError, EventError, Stopping
from mikkoo.common.pgq import Batch, Opening, Reader, Stage
from mikkoo.common.pulse import Pulse
from mikkoo.worker.event import Event, Message
from mikkoo.worker.isolation import PROOF, Way
from mikkoo.worker.outlet import Outlet
from mikkoo.worker.settling import Settling
from mikkoo.worker.verdict import Failure, Kind

LOGGER = logging.getLogger('mikkoo.worker')

CHECK_EVERY = 64  # events between two looks at whether to save, or to stop
LAST_ACT = 1.0  # seconds that a stop leaves for saving


class Passage:
    """Relays one batch. `check_ownership` raises Fenced where the queue is not ours any more."""

    def __init__(
        self,
        batch: Batch,
        reader: Reader,
        translate: Callable[[Event], Message],
        outlet: Outlet,
        settling: Settling,
        pulse: Pulse,
        check_ownership: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._reader = reader
        self._translate = translate
        self._outlet = outlet
        self._settling = settling
        self._pulse = pulse
        self._check_ownership = check_ownership
        self._taken = 0  # events that were read, and published or refused
        self._last: int | None = None  # the last of them, or the last that a former owner judged
        self._stage = Stage.TOGETHER
        self._acquitted = False  # the event that is relayed alone

    def run(self, byte_budget: int, opening: Opening, way: Way, stretch: int) -> None:
        """Relay and settle the batch as it was opened, in slices of so many bytes.

        Unless `way` is TOGETHER the first `stretch` events one at a time. A stop drains what is in flight and
        saves how far the batch has got; then Stopping is raised.
        """
        self._last = opening.last_event_id
        try:
            if way is Way.BURY:
                self._last = self._settling.bury_killer(opening) or self._last
            if way is Way.TOGETHER or not self._publish_alone(stretch):
                self._publish(byte_budget)
            self._settling.finish()
        except Stopping:
            self._save_at_stop()
            raise

    def save_if_due(self) -> None:
        """Commit the judged prefix of the batch, the events before the oldest unjudged, if it is time."""
        self._collect()
        judged = self._taken - self._outlet.in_flight
        if self._settling.is_due(judged):
            self._save(judged)

    def acquit(self) -> None:
        """An event that has waited alone for seconds, for RabbitMQ, is no cause if the process ends now."""
        if self._stage is Stage.ALONE and not self._acquitted:
            self._acquitted = True
            oldest = self._outlet.oldest()
            self._settling.save(self._last if oldest is None else oldest - 1, self._taken, Stage.TOGETHER)

    def _publish(self, byte_budget: int) -> None:
        """Return when every event is judged."""
        for event in self._events(byte_budget):
            self._take(event)
            if not self._taken % CHECK_EVERY:
                self._stop_if_asked()
                self.save_if_due()
                if self._settling.is_full():  # its failures are behind an event that is still unjudged
                    self._outlet.drain()
                    self.save_if_due()
        self._outlet.drain()
        self._collect()

    def _collect(self) -> None:
        self._settling.add(self._outlet.take_failures())
        self._settling.put_back(self._outlet.take_put_back())

    def _publish_alone(self, stretch: int) -> bool:
        """Return when so many events are judged, or all (True), each alone.

        What is saved before an event is read tells the next process which one it was, if this one ends by it.
        """
        self._stage = Stage.ALONE
        self._save(self._taken)
        proven, last = self._taken + PROOF, self._taken + stretch
        for event in self._events(0):
            self._acquitted = False
            self._take(event)
            self._outlet.drain()
            self._collect()
            if self._taken >= last:
                self._stage = Stage.TOGETHER
            self._save(self._taken)
            self._stop_if_asked()
            if self._taken == proven:
                self._pulse.recovered()
            if self._taken >= last:
                return False
        if self._taken < proven:  # a small batch
            self._pulse.recovered()
        return True

    def _take(self, event: Event) -> None:
        """Publish an event, or judge it here where it can be no message."""
        if event.retry is not None:
            self._settling.came_back(event)
        try:
            if event.left_out is not None:
                raise _left_out(event.left_out)
            self._outlet.publish(event, self._translate(event))
        except EventError as error:
            self._settling.add([Failure(event, Kind.UNTRANSLATABLE, 0, str(error), error.permanent)])
        self._last = event.id
        self._taken += 1

    def _events(self, byte_budget: int) -> Iterator[Event]:
        """The events, a slice in memory at a time; survives a reading transaction that was ended.

        Goes on behind an ev_id: two events with one id, which PgQ gives only after a failover that lost
        transactions, would be taken for one if such an end parts them.
        """
        reader, last = self._reader, self._last
        reader.open(self._batch, after=last)
        while True:
            if not reader.reading:
                reader.open(self._batch, after=last)
            rows = reader.fetch(byte_budget)
            if not rows:
                break
            last = rows[-1][0]
            self._outlet.count()
            self._pulse.state('running', self._outlet.full)
            self._pulse.beat('the next slice')
            self._check_ownership()
            yield from map(Event._make, rows)
        reader.pause()

    def _stop_if_asked(self) -> None:
        if self._pulse.stopping:
            self._outlet.drain()
            raise Stopping('asked to stop in the middle of a batch')

    def _save(self, judged: int) -> None:
        oldest = self._outlet.oldest()
        self._settling.save(self._last if oldest is None else oldest - 1, judged, self._stage)

    def _save_at_stop(self) -> None:
        self._stage = Stage.STOPPED
        with self._pulse.last_act(LAST_ACT):
            try:
                self._collect()
                self._save(self._taken)
            except (DatabaseError, Stopping) as error:
                LOGGER.warning('progress is not saved, and events will be repeated: %s', error)


def _left_out(why: int | str) -> EventError:
    """The failure of an event whose texts PostgreSQL's reader left out, see Event."""
    if isinstance(why, int):
        return EventError('event', f'a text of {why:,} bytes, not shown here, is more than RabbitMQ takes')
    return EventError('event', f'cannot be read: {why}')
