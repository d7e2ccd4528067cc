"""Processes that are killed or stopped while events flow, by SIGKILL and SIGSTOP, at any moment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.settings import BrokerSettings, WorkerSettings
from tests.integration.faults.traffic import QUEUE, Traffic
from tests.integration.mikkood import alive
from tests.integration.product import Product
from tests.integration.relaying import Worker
from tests.servers.waiting import until

A_KILL = 3_000  # events that one kill repeats at most: a window, and a saving interval
START = 3.0  # seconds in which a worker starts and relays
DRAIN = 4.5  # seconds that an orphan may take to drain, spawn.ORPHAN_DEADLINE
ORPHANS = 3 * 5.0  # seconds within which nothing is left of a killed supervisor
SILENCE = 30.0  # seconds without a beat after which the supervisor kills, Policy.silence
SEED = 20
BURST = 8_000  # events of a batch in whose middle a worker is killed
LARGE = 200_000  # events of the batch that everything happens to
STEP = 20_000  # events between two of those happenings, far more than one of them repeats
BATCH = 60.0  # seconds in which a batch gets somewhere; one on an idle machine

Flow = Callable[..., Traffic]
Record = Callable[[str, object], None]


def test_a_worker_killed_at_twenty_random_moments(
    product: Product, traffic: Flow, record_property: Record
) -> None:
    """Without the supervisor, whose back-off would take minutes: each starts as soon as the last is dead."""
    flow = traffic()
    chance = random.Random(SEED)
    moments = [in_start_up, at_work, in_a_large_batch, settling] * 5
    chance.shuffle(moments)
    kills = known = 0
    for moment in moments:
        with Worker(settings(product)) as worker:
            if moment is not in_start_up:
                flow.flows()  # behind all that the kills since the last look have repeated
                repeats = flow.recorder.repeats() - known
                assert repeats <= kills * A_KILL
                record_property(f'repeats of {kills} kills, then {moment.__name__}', repeats)
                kills, known = 0, known + repeats
            moment(product, flow, worker, chance)
            kills += 1
    with Worker(settings(product)):
        flow.flows()
        flow.finish(repeats=known + kills * A_KILL)


def in_start_up(product: Product, flow: Traffic, worker: Worker, chance: random.Random) -> None:
    """It takes about a second."""
    worker.process.join(chance.uniform(0.0, 1.5))
    worker.stop(signal.SIGKILL)


def at_work(product: Product, flow: Traffic, worker: Worker, chance: random.Random) -> None:
    worker.process.join(chance.uniform(0.0, 1.0))
    worker.stop(signal.SIGKILL)


def in_a_large_batch(product: Product, flow: Traffic, worker: Worker, chance: random.Random) -> None:
    """Its progress is saved now and then: the kill comes somewhere behind one such point."""
    flow.burst(BURST)
    progress = 'select 1 from mikkoo.batch_progress where last_event_id is not null'
    until(lambda: product.sql(progress), what=lambda: f'progress is saved: {worker.log_lines()}')
    worker.process.join(chance.uniform(0.0, 0.1))
    worker.stop(signal.SIGKILL)


def settling(product: Product, flow: Traffic, worker: Worker, chance: random.Random) -> None:
    """While finish_batch, the last act but COMMIT, waits for a lock of ours."""
    waiting = (
        "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%%finish_batch%%'"
    )
    with closing(product.database.connect()) as holder, holder.cursor() as cursor:

        def a_batch_is_held() -> bool:
            cursor.execute('begin; select 1 from pgq.subscription where sub_batch is not null for update')
            if cursor.fetchall():
                return True
            cursor.execute('rollback')
            return False

        until(a_batch_is_held, BATCH, lambda: f'a batch is open: {worker.log_lines()}', interval=0.001)
        until(lambda: product.sql(waiting), BATCH, lambda: f'it settles: {worker.log_lines()}')
        worker.stop(signal.SIGKILL)


def settings(product: Product) -> WorkerSettings:
    """For a worker without a supervisor."""
    return WorkerSettings(
        name=QUEUE,
        queue=QUEUE,
        postgres_url=product.database.relay_url,
        rabbitmq=BrokerSettings(nodes=((product.rabbitmq.host, product.rabbitmq.port),), vhost=product.vhost),
        wait_duration=1.0,
        retry_delay=1.0,
    )


def test_a_worker_killed_three_times_under_the_daemon(product: Product, traffic: Flow) -> None:
    flow = traffic()
    product.run()
    for number in range(3):
        flow.flows()
        os.kill(product.pids()[QUEUE], signal.SIGKILL)
        delay = 2.0**number  # of the back-off
        flow.flows_again(f'worker killed, {number + 1}', time.time(), 3 * (delay + START))
        assert product.children()[QUEUE]['restarts'] == number + 1
    flow.finish(repeats=3 * A_KILL)


@pytest.mark.parametrize('worker_too', [False, True], ids=['alone', 'with its worker'])
def test_a_killed_supervisor_is_started_again(product: Product, traffic: Flow, worker_too: bool) -> None:
    """As by systemd: first when nothing of it is left, then at once, while an orphan may still drain."""
    flow = traffic()
    product.save()
    for at_once in (False, True):
        supervisor = product.started()
        product.until_running()
        flow.flows()
        worker = product.pids()[QUEUE]
        os.kill(supervisor, signal.SIGKILL)
        if worker_too:
            os.kill(worker, signal.SIGKILL)
        over = time.time()
        if not at_once:
            until_gone(product, *product.processes())
        product.started()
        fault = (
            f'supervisor killed{worker_too * " with its worker"}, started {"at once" if at_once else "later"}'
        )
        flow.flows_again(fault, over, 3 * (DRAIN + START))
        until_gone(product, supervisor, worker)
        assert product('stop').returncode == Exit.OK
    product.started()
    flow.finish(repeats=2 * A_KILL)


def until_gone(product: Product, *processes: int) -> None:
    """Until none of them lives."""
    until(lambda: not any(map(alive, processes)), ORPHANS, lambda: f'left: {product.processes()}')


def test_a_stopped_worker_is_killed_for_its_silence_and_replaced(product: Product, traffic: Flow) -> None:
    """SIGSTOP: it hangs, its sessions live, and with them its lock."""
    flow = traffic()
    product.run()
    flow.flows()
    worker = product.pids()[QUEUE]
    os.kill(worker, signal.SIGSTOP)
    flow.flows_again('worker stopped by SIGSTOP', time.time(), 3 * (SILENCE + 1.0 + START))
    assert product.pids()[QUEUE] != worker and not alive(worker)
    product.until_logged(f'no beat for {SILENCE:g} s')
    flow.finish(repeats=A_KILL)


def test_a_large_batch_survives_kills_and_repeats_nothing_for_a_stop_or_a_reload(
    product: Product, traffic: Flow, record_property: Record
) -> None:
    """In one batch, with poison. What an action repeats lies between the progress at it and at the next."""
    flow = traffic()
    product.save()
    product.started()
    first = insert_large(product, flow)
    progress = [until_progress(product, first.event_id + STEP)]
    for action in ACTIONS:
        action(product)
        progress.append(until_progress(product, progress[-1].last_event_id + STEP))
    assert len({saved.batch_id for saved in progress}) == 1, 'all of it happened in one batch'
    tally = flow.finish(repeats=ACTIONS.count(kill_worker) * A_KILL)
    for action, before, after in zip(ACTIONS, progress, progress[1:], strict=False):
        numbers = range(first.of(before.last_event_id) + 1, first.of(after.last_event_id) + 1)
        repeats = sum(max(0, tally.delivered[n] - 1) for n in numbers)
        record_property(f'repeats of {action.__name__}', repeats)
        assert repeats <= (A_KILL if action is kill_worker else 0), action.__name__
    assert product('stop').returncode == Exit.OK


class First(NamedTuple):
    """The first event of the large batch, whose numbers follow one another as its event ids do."""

    n: int
    event_id: int

    def of(self, event_id: int) -> int:
        """The number of an event of the batch."""
        return self.n + event_id - self.event_id


class Progress(NamedTuple):
    batch_id: int
    last_event_id: int


def insert_large(product: Product, flow: Traffic) -> First:
    flow.flows()
    flow.producer.pause()
    [(n,)] = product.sql('select max(n) + 1 from produced')
    flow.burst(LARGE)
    flow.producer.resume()
    event = 'select ev_id from pgq.event_template where ev_data = %s'
    [(event_id,)] = product.sql(event, f'{{"n": {n}}}')
    return First(n, event_id)


def until_progress(product: Product, event_id: int) -> Progress:
    """Until the events of the batch up to this one, or more, are judged and saved."""
    rows = until(
        lambda: product.sql(
            'select batch_id, last_event_id from mikkoo.batch_progress where last_event_id >= %s', event_id
        ),
        BATCH, lambda: f'progress up to {event_id}:\n{product.logged()[-5000:]}',
    )  # fmt: skip
    return Progress(*rows[0])


def kill_worker(product: Product) -> None:
    os.kill(product.pids()[QUEUE], signal.SIGKILL)


def edit(product: Product) -> None:
    """A reload that concerns the worker."""
    product.workers[QUEUE]['wait_duration'] += 1
    product.save()


def stop_and_start(product: Product) -> None:
    assert product('stop').returncode == Exit.OK
    product.started()


def restart_worker(product: Product) -> None:
    assert product('restart', QUEUE).returncode == Exit.OK


KILL = kill_worker
ACTIONS = (KILL, edit, KILL, stop_and_start, KILL, KILL, restart_worker, KILL)
