"""Whether the auditor keeps up with the relay: `python -m bench.audit [--events N] [--runs N]`.

Events of `mikkoo.insert_audited_event` go to an exchange that an auditor taps; all on one machine. In turn:

- plain: the relay alone, on as many events without a record, which have no message_id;
- relay alone: on audited events, the auditor stopped; its queue is there and fills;
- auditor alone: on that full queue, nothing is relayed;
- together: both at once; the auditor's time ends when the last record is settled.

The relay's rate is over the time from when it takes the batch until PgQ has it back, the auditor's over that
from when it takes the first messages, together from when the relay takes the batch, until all are settled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from bench.load import EXCHANGE, HEADERS, OURS, PROPERTIES, ROUTE, SMALL, body
from bench.report import Goal, Report, program
from bench.sides import Side, Usage, ours
from bench.stage import Stage, wait

AUDITOR = 'bench'
AUDIT_QUEUE = f'mikkoo.audit.{AUDITOR}'
TAPPED = 'bench.audited'  # the routing key of audited events, and the RabbitMQ queue that is bound by it
INSERT = """
    select count(mikkoo.insert_audited_event(%s, %s, %s, %s, 'application/json', %s, %s))
    from generate_series(1, %s)
"""
SETTLED = 'select coalesce(sum(received), 0)::int8 from mikkoo.audit_tally'
FAULTS = 'select sum(duplicates + differing + unknown + unidentified)::int8 from mikkoo.audit_tally'
FORGET = 'truncate mikkoo.audit, mikkoo.audit_tally, mikkoo.audit_difference'
WARM = 100  # events before those that count
PATIENCE = 600.0  # seconds for one run
INTERVAL = 0.01  # seconds between looks
SHARE = 0.8  # of the relay's rate
PLAIN, RELAY, AUDIT = 'plain', 'relay alone', 'auditor alone'
RELAY_TOGETHER, AUDIT_TOGETHER = 'relay, together', 'auditor, together'


@dataclass(frozen=True)
class Run:
    """`rate`: messages a second; `cpu`: microseconds a message of the one process that did it."""

    what: str
    action: str
    events: int
    seconds: float
    rate: float
    cpu: float

    def __str__(self) -> str:
        columns = f'{self.events:9,} {self.seconds:8.2f} {self.rate:9,.0f} {self.cpu:9.1f}'
        return f'{self.what:18} {self.action:7} {columns}'


class Bench:
    """One round: a relay that stays, and an auditor that comes and goes."""

    def __init__(
        self, made: Stage, queue: str, relay: Side, options: argparse.Namespace, action: str
    ) -> None:
        self._made = made
        self._queue = queue
        self._relay = relay
        self._events: int = options.events
        self._action = action
        self._auditor = {
            'action': action, 'queue_type': options.queue_type, 'prefetch': options.prefetch,
        }  # fmt: skip
        self._expected = 0  # settled records in all

    def run(self) -> Iterator[Run]:
        """RuntimeError where a message is lost, comes again or is not as recorded."""
        with self._auditing() as auditor:
            self._insert(WARM)  # connected and warm
            self._await_relayed(self._made.tick(self._queue))
            self._await_settled(auditor)
        self._made.insert(self._queue, ROUTE, body(SMALL), self._events)
        yield self._relayed(PLAIN)
        self._insert(self._events)
        yield self._relayed(RELAY)
        if (queued := self._made.queued(AUDIT_QUEUE)) != self._events:
            raise RuntimeError(f'{queued} messages for the auditor, not {self._events}')
        with self._auditing() as auditor:
            yield self._audited(auditor)
            self._insert(self._events)
            yield from self._together(auditor)
        if faults := self._made.value(FAULTS):
            raise RuntimeError(f'{faults} messages came again, unknown or not as recorded')

    def _auditing(self) -> Side:
        return self._made.auditor(AUDITOR, TAPPED, **self._auditor)

    def _insert(self, events: int) -> None:
        self._made.value(
            INSERT, self._queue, EXCHANGE, TAPPED, body(SMALL), PROPERTIES, HEADERS, events
        )  # fmt: skip
        self._expected += events
        self._made.value('checkpoint')

    def _relayed(self, what: str) -> Run:
        started, before, tick = self._begin()
        self._await_relayed(tick)
        return self._result(what, self._events, time.monotonic() - started, self._relay, before)

    def _audited(self, auditor: Side) -> Run:
        """From when it takes the first messages."""
        wait(auditor, lambda: self._made.queued(AUDIT_QUEUE) < self._events, PATIENCE, INTERVAL)
        started, before = time.monotonic(), auditor.usages()
        self._await_settled(auditor)
        return self._result(AUDIT, self._events, time.monotonic() - started, auditor, before)

    def _together(self, auditor: Side) -> Iterator[Run]:
        auditors = auditor.usages()
        started, before, tick = self._begin()
        self._await_relayed(tick)
        yield self._result(RELAY_TOGETHER, self._events, time.monotonic() - started, self._relay, before)
        self._await_settled(auditor)
        yield self._result(AUDIT_TOGETHER, self._events, time.monotonic() - started, auditor, auditors)

    def _begin(self) -> tuple[float, dict[int, Usage], int]:
        """Tick, and wait until the relay has taken the batch."""
        made, queue = self._made, self._queue
        tick = made.tick(queue)
        wait(
            self._relay,
            lambda: made.has_batch(queue) or made.last_tick(queue) >= tick,
            PATIENCE,
            INTERVAL,
        )
        return time.monotonic(), self._relay.usages(), tick

    def _await_relayed(self, tick: int) -> None:
        wait(self._relay, lambda: self._made.last_tick(self._queue) >= tick, PATIENCE, INTERVAL)

    def _await_settled(self, auditor: Side) -> None:
        wait(auditor, lambda: self._settled() >= self._expected, PATIENCE, INTERVAL)

    def _settled(self) -> int:
        return int(self._made.value(SETTLED))

    def _result(self, what: str, events: int, seconds: float, side: Side, before: dict[int, Usage]) -> Run:
        used = (usage.cpu - before.get(pid, Usage(0, 0)).cpu for pid, usage in side.usages().items())
        return Run(what, self._action, events, seconds, events / seconds, max(used) / events * 1e6)


def run(made: Stage, options: argparse.Namespace) -> Report:
    made.route(TAPPED)
    made.route(AUDIT_QUEUE, TAPPED, x_queue_type=options.queue_type)  # before the first event
    print(f'{"":18} {"action":7} {"events":>9} {"seconds":>8} {"msg/s":>9} {"µs CPU":>9}')
    runs = []
    for _ in range(options.runs):
        for action in options.actions:
            made.value(FORGET)
            with made.queues() as (queue,), made.side(OURS, ours(), [queue]) as relay:
                for one in Bench(made, queue, relay, options, action).run():
                    runs.append(one)
                    print(one, flush=True)
            for route in (ROUTE, TAPPED):
                made.purge(route)
    return Report({'runs': [asdict(one) for one in runs]}, list(goals(runs, options.actions)))


def goals(runs: list[Run], actions: list[str]) -> Iterator[Goal]:
    """By medians. The relay that is to be kept up with is the one beside it, and the one that is alone."""

    def rate(what: str, action: str) -> float:
        return statistics.median(one.rate for one in runs if (one.what, one.action) == (what, action))

    for action in actions:
        for auditor, relay in ((AUDIT_TOGETHER, RELAY_TOGETHER), (AUDIT, RELAY)):
            ours, theirs = rate(auditor, action), rate(relay, action)
            text = f'the auditor keeps up, {auditor} to {relay}, {action}, at least {SHARE}'
            figure = f'{ours:,.0f} to {theirs:,.0f} msg/s, {ours / theirs:.2f}'
            yield Goal(9, text, figure, ours >= SHARE * theirs)
    relays = [statistics.median(one.rate for one in runs if one.what == what) for what in (PLAIN, RELAY)]
    text = 'what a message_id of its own costs the relay, plain to audited events'
    yield Goal(9, text, f'{relays[0]:,.0f} and {relays[1]:,.0f} msg/s', None)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--events', type=int, default=40_000, help='in one batch (default %(default)s)')
    parser.add_argument('--runs', type=int, default=3, help='of each; medians count (default %(default)s)')
    parser.add_argument('--actions', nargs='+', choices=('delete', 'mark'), default=['delete', 'mark'])
    parser.add_argument('--queue-type', choices=('quorum', 'classic'), default='quorum', help="the auditor's")
    parser.add_argument('--prefetch', type=int, default=1000, help="the auditor's (default %(default)s)")


if __name__ == '__main__':
    program('The auditor beside the relay.', add_options, run)
