"""One batch on its way: read in slices, translated, published, its progress saved, and at last settled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from mikkoo.common.errors import DatabaseError, EventError, Stopping
from mikkoo.common.pgq import Batch, Reader
from mikkoo.common.pulse import Pulse
from mikkoo.worker.event import Event
from mikkoo.worker.outlet import Outlet
from mikkoo.worker.settling import Settling
from mikkoo.worker.translate import Translator
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
        translate: Translator,
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

    def run(self, byte_budget: int, judged: int | None) -> None:
        """Relay and settle the batch behind event `judged`, in slices of so many bytes.

        A stop drains what is in flight and saves how far the batch has got; then Stopping is raised.
        """
        self._last = judged
        try:
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

    def _publish(self, byte_budget: int) -> None:
        """Return when every event is judged."""
        translate, publish = self._translate, self._outlet.publish
        for event in self._events(byte_budget):
            if event.retry is not None:
                self._settling.came_back(event)
            try:
                if event.left_out is not None:
                    raise _left_out(event.left_out)
                publish(event, translate(event))
            except EventError as error:
                self._settling.add([Failure(event, Kind.UNTRANSLATABLE, 0, str(error), error.permanent)])
            self._last = event.id
            self._taken += 1
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
        last = self._last if oldest is None else oldest - 1
        if last is not None:
            self._settling.save(last, judged)

    def _save_at_stop(self) -> None:
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
