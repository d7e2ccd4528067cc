"""Faults of every kind at random, under constant traffic: `python -m bench.chaos --seconds 1200 --seed 7`.

Servers, proxies and a mikkood of its own, with a worker and an auditor. A step is one fault, or two of
different places, the second within the first; then it is measured how long it takes until an event that was
inserted after the step arrives. A step is a line: when, events that were being relayed in one batch, which
faults, how long they lasted, seconds until events flowed again, events that came twice. At the end it has to
add up: what was inserted is delivered or (the poison that is mixed in, and nothing else) a dead letter, the
repeats are within what the faults may repeat, and the audit's report is clean, with each event received once.
Exit 1 where it does not. The same seed and kinds give the same steps.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.chaos_faults import KINDS, WINDOW
from bench.chaos_stage import Stage, stage
from tests.servers.process import raise_on_signals

TWO = 0.25  # of the steps are two faults at once
LARGE = 0.25  # of the steps begin with a large batch, in whose middle the faults come
BATCH = 10_000  # events
CALM = (0.0, 3.0)  # seconds between two steps


@dataclass(frozen=True)
class Step:
    """`calm`: seconds before it. `seconds`: how long the faults last. `seed`: of what the faults choose.

    `burst`: events that are inserted at once; the faults come while they are relayed.
    """

    calm: float
    burst: int
    kinds: tuple[str, ...]
    seconds: float
    seed: int

    @property
    def bound(self) -> int:
        """Repeats at most. A graceful stop in the middle of another fault may leave a window unconfirmed."""
        return sum(KINDS[kind].bound for kind in self.kinds) + WINDOW * (len(self.kinds) - 1)


@dataclass(frozen=True)
class Outcome:
    """`at`: seconds since the start. `lasted`: what the faults took, their making and mending included."""

    at: float
    step: Step
    lasted: float
    flows_after: float
    repeats: int

    def __str__(self) -> str:
        return (
            f'{self.at:7.1f} s  {self.step.burst:5}  {" + ".join(self.step.kinds):44}'
            f' lasted {self.lasted:5.1f} s  flows after {self.flows_after:5.1f} s  {self.repeats:5} repeats'
        )


def schedule(seed: int, kinds: Sequence[str]) -> Iterator[Step]:
    """Steps without end, the same for the same arguments."""
    chance = random.Random(seed)
    while True:
        chosen = [_choose(chance, kinds)]
        others = [kind for kind in kinds if KINDS[kind].place != KINDS[chosen[0]].place]
        if others and chance.random() < TWO:
            chosen.append(_choose(chance, others))
        lasting = max((KINDS[kind].seconds for kind in chosen), key=lambda seconds: seconds[1])
        yield Step(
            calm=chance.uniform(*CALM),
            burst=BATCH * (chance.random() < LARGE),
            kinds=tuple(chosen),
            seconds=chance.uniform(*lasting),
            seed=chance.getrandbits(32),
        )


def _choose(chance: random.Random, kinds: Sequence[str]) -> str:
    return chance.choices(kinds, [KINDS[kind].weight for kind in kinds])[0]


def carry_out(made: Stage, step: Step) -> None:
    """Make the faults, the second in the middle of the first, and mend them."""
    chance = random.Random(step.seed)
    with ExitStack() as faults:
        for kind in step.kinds:
            faults.enter_context(KINDS[kind].act(made, chance))
            time.sleep(step.seconds / len(step.kinds))


def run(made: Stage, seconds: float, seed: int, kinds: Sequence[str]) -> Iterator[Outcome]:
    """Steps until the time is over. AssertionError where events do not flow, or too many come twice."""
    started = time.monotonic()
    known, before = 0, 0
    for step in schedule(seed, kinds):
        if time.monotonic() - started > seconds:
            return
        made.feed_extra()
        time.sleep(step.calm)
        if step.burst:
            made.begin_batch(step.burst)
        begun = time.monotonic()
        carry_out(made, step)
        lasted = time.monotonic() - begun
        flows_after = made.until_flows('+'.join(step.kinds), time.time())
        repeats = made.traffic.recorder.repeats() - known
        yield Outcome(begun - started, step, lasted, flows_after, repeats)
        assert repeats <= before + step.bound, 'more repeats than this step and the one before it allow'
        known, before = known + repeats, step.bound


def main() -> int:
    options = arguments()
    raise_on_signals()
    outcomes: list[Outcome] = []
    report: dict[str, Any] = {'seed': options.seed, 'kinds': options.kinds}
    with stage(options.rate) as made:
        try:
            for outcome in run(made, options.seconds, options.seed, options.kinds):
                print(outcome, flush=True)
                outcomes.append(outcome)
            bound = sum(outcome.step.bound for outcome in outcomes)
            report['tally'], report['audit'] = made.finish(bound)
            print(f'{report["tally"]}, of {bound} allowed, in {len(outcomes)} steps', flush=True)
            print(report['audit'], flush=True)
        except AssertionError as error:
            report['violation'] = str(error)
            print(f'VIOLATION: {error}', flush=True)
        finally:
            if options.log:
                shutil.copy(made.product.log, options.log)
    if options.json:
        options.json.write_text(json.dumps({**report, 'steps': [asdict(one) for one in outcomes]}, indent=1))
    return 'violation' in report


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Faults of every kind at random, under constant traffic.')
    parser.add_argument('--seconds', type=float, default=1200, help='how long (default %(default)s)')
    parser.add_argument('--seed', type=int, default=7, help='of the schedule (default %(default)s)')
    parser.add_argument('--rate', type=float, default=200, help='events a second (default %(default)s)')
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS), help='default: all')
    parser.add_argument('--json', type=Path, help='write every step and the tally here')
    parser.add_argument('--log', type=Path, help="write mikkood's log here")
    return parser.parse_args()


if __name__ == '__main__':
    sys.exit(main())
