"""Publishes on one link, and finds the message over which the broker closes the channel or the link is lost.

Messages go many at once (`pipeline`); one at a time, `alone`, once there is something to find.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mikkoo.common.amqp import ChannelClosed
from mikkoo.common.errors import BrokerLost
from mikkoo.worker.event import Event, Message
from mikkoo.worker.exchanges import Exchanges, Refusal
from mikkoo.worker.flights import Flight
from mikkoo.worker.pipeline import WAIT_SLICE, Pipeline
from mikkoo.worker.probe import probe
from mikkoo.worker.suspicion import Loss
from mikkoo.worker.verdict import Failure, Kind


class Publisher(Pipeline):
    """A Pipeline that also sends messages alone."""

    probed = False  # this link was seen to carry a message

    def publish_alone(self, event: Event, message: Message) -> None:
        """As `publish`, and return when it is judged: nothing else is on its way meanwhile."""
        self.resend_alone([Flight(event, message, len(self._encode(message)))])

    def resend_alone(self, flights: Iterable[Flight]) -> None:
        """As `resend`, after a probe, each once the one before it is judged."""
        self._start_clocks()
        self._backlog.extend(flights)
        self._flush()
        self._lane.ask_for_sync()
        while len(self._flights):
            self._wait()
        probe(self._link, self._pulse, self._confirm_timeout, self._check_progress)
        self.probed = True
        self._send_singly()

    def hear_the_last(self) -> None:
        """After a loss: take in what the broker had said before it."""
        try:
            while signals := self._lane.signals():
                for signal in signals:
                    if isinstance(signal, ChannelClosed):
                        return
                    self._hear(signal)
        except BrokerLost:
            return  # all is heard

    def loss(self, provoked: bool) -> Loss:
        """How this link ended."""
        flights = self._flights.outstanding()
        if self._looked_up is not None:  # the look-up of its exchange is the first that is sent for a message
            flights.append(self._looked_up)
        only = flights[0].event.id if len(flights) == 1 else None
        answered = self.delivered + self.returned + self.nacked > 0
        return Loss(provoked, answered, self.probed, len(flights), only)

    def _isolate(self) -> None:
        """The broker closed the channel over one message and tells not which: send the unjudged one by one.

        Messages before the culprit were stored, yet no Ack comes for them: they are repeated, with the same
        message_id.
        """
        self._backlog = deque(self.unjudged())
        self._nacked.clear()
        self.repeated += len(self._backlog)
        self._exchanges.forget()
        self._open_channel()
        self._send_singly()

    def _send_singly(self) -> None:
        while self._backlog:
            taken = self._next_of_backlog()
            if taken is not None:
                self._send_alone(*taken)

    def _send_alone(self, flight: Flight, data: bytes) -> None:
        self._lane.add(flight, data)
        self._lane.write()
        self._lane.ask_for_sync()
        while len(self._flights):
            self._pulse.wait('the confirm of a message sent alone', WAIT_SLICE, read=[self._link.fileno()])
            for signal in self._lane.signals():
                if isinstance(signal, ChannelClosed):
                    # While an alarm was waited for, rejected ones may have joined it.
                    if self._flights.outstanding() == [flight]:
                        self._convict(flight, Refusal(signal.code, signal.text))
                    else:
                        self._isolate()
                    return
                self._hear(signal)
            self._check_progress()

    def _convict(self, flight: Flight, refusal: Refusal) -> None:
        self._failures.append(Failure(flight.event, Kind.REFUSED, *refusal))
        if Exchanges.concerns_exchange(refusal):
            self._exchanges.hold(flight.message.exchange, refusal)
        self._exchanges.forget()
        self._open_channel()
