"""One batch of messages, settled in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mikkoo.auditor.compare import Memory, Settled, differing, recorded_content_type
from mikkoo.common.audit_settle import Arrival, Finding, Records, Tallies, Tally


@dataclass(slots=True)
class Outcome:
    """What a batch came to; of use once it is committed. `latencies` in seconds."""

    tallies: Tallies = field(default_factory=dict)
    settled: dict[str, Settled] = field(default_factory=dict)  # by message_id; their records are deleted
    latencies: list[float] = field(default_factory=list)

    def tally(self, queue: str, exchange: str) -> Tally:
        tally = self.tallies.get((queue, exchange))
        if tally is None:
            tally = self.tallies[queue, exchange] = Tally()
        return tally

    def sum(self, name: str) -> int:
        """Of one count of the tallies, by its name."""
        return sum(int(getattr(tally, name)) for tally in self.tallies.values())


class Settling:
    """Settles the arrivals of one auditor. `memory`: the messages whose records are gone."""

    def __init__(self, records: Records, action: Literal['delete', 'mark'], memory: Memory) -> None:
        self._records = records
        self._action = action
        self._memory = memory

    def run(self, arrivals: Sequence[Arrival], unidentified: Iterable[str], now: float) -> Outcome:
        """Settle, compare, count. `unidentified`: the exchanges of messages without a UUID; `now` monotonic.

        Raises DatabaseError: nothing of it is done.
        """
        outcome = Outcome()
        for exchange in unidentified:
            outcome.tally('', exchange).unidentified += 1
        with self._records.session.transaction():
            left: Sequence[Arrival] = arrivals
            while left:
                turn, left = _apart(left)
                findings = self._found(turn, now)
                for n, arrival in enumerate(turn):
                    self._judge(arrival, findings.get(n), outcome)
            self._records.count(outcome.tallies)
        self._memory.add(outcome.settled.values())
        return outcome

    def count_unknown(self, exchange: str) -> Outcome:
        """Count a message of this exchange, and no more. Raises DatabaseError."""
        outcome = Outcome()
        outcome.tally('', exchange).unknown += 1
        self._records.count(outcome.tallies)
        return outcome

    def _found(self, arrivals: Sequence[Arrival], now: float) -> dict[int, Finding]:
        """The findings by the arrivals' places; those in doubt are looked at and asked about once more."""
        found = self._records.settle(arrivals, self._action, now)
        doubtful = [finding for finding in found if finding.doubtful]
        if doubtful:
            asked = [arrivals[finding.n] for finding in doubtful]
            judged = [
                arrival.content_type == recorded_content_type(finding.content_type, finding.properties)
                for arrival, finding in zip(asked, doubtful, strict=True)
            ]
            again = self._records.settle(asked, self._action, now, judged)
            found += [finding._replace(n=doubtful[finding.n].n) for finding in again]
        return {finding.n: finding for finding in found if not finding.doubtful}

    def _judge(self, arrival: Arrival, finding: Finding | None, outcome: Outcome) -> None:
        if finding is None:
            self._judge_unrecorded(arrival, outcome)
            return
        tally = outcome.tally(finding.queue, finding.exchange)
        if finding.settled:
            tally.received += 1
            tally.latency_total += finding.latency
            tally.latency_max = max(tally.latency_max, finding.latency)
            outcome.latencies.append(finding.latency)
            if not finding.fields and self._action == 'delete':
                outcome.settled[arrival.message_id] = Settled(arrival, finding.queue)
        else:
            tally.duplicates += 1
        self._note(arrival, finding.queue, finding.fields, tally)

    def _judge_unrecorded(self, arrival: Arrival, outcome: Outcome) -> None:
        """Its record may have been deleted when the message came first, in this batch or before."""
        earlier = outcome.settled.get(arrival.message_id) or self._memory.get(arrival.message_id)
        if earlier is None:
            outcome.tally('', arrival.exchange).unknown += 1
            return
        tally = outcome.tally(earlier.queue, earlier.arrival.exchange)
        tally.duplicates += 1
        self._note(arrival, earlier.queue, differing(arrival, earlier.arrival), tally)

    def _note(self, arrival: Arrival, queue: str, fields: list[str], tally: Tally) -> None:
        if fields and self._records.note(arrival, queue, fields):
            tally.differing += 1


def _apart(arrivals: Sequence[Arrival]) -> tuple[list[Arrival], list[Arrival]]:
    """The first of each message_id, and the rest: one statement settles one arrival of each."""
    first: dict[str, Arrival] = {}
    rest = []
    for arrival in arrivals:
        if first.setdefault(arrival.message_id, arrival) is not arrival:
            rest.append(arrival)
    return list(first.values()), rest
