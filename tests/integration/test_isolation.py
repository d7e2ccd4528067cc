"""Events that end their worker's process: each is found and set apart, and its neighbours arrive."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from mikkoo.worker import isolation
from mikkoo.worker.isolation import MOST_ENDS
from tests.integration.product import ARRIVAL, Product, bodies
from tests.integration.relaying import QUEUE, Scene, Worker, through
from tests.integration.relaying import bodies as numbers
from tests.servers.proxy import Proxy
from tests.servers.waiting import until

GOOD = 5_000
# Two side by side, and one that is only met when the stretch of events one at a time is over.
DEADLY = {1_000, 1_001, 4_900}
WINDOW = 100  # messages in flight
EVENTS = 1_000  # of a batch that is relayed one at a time
LARGE = 40_000
PROGRESS = 'select last_event_id, attempts, alone from mikkoo.batch_progress'
TIMEOUT = 360.0  # seconds: a dozen starts, with back-offs of up to 16 s between
INSERT = """
    select count(mikkoo.insert_event('alpha', '', 'alpha',
        format(case when n = any(%s) then '{"n": %%s, "deadly": true}' else '{"n": %%s}' end, n), null))
    from generate_series(1, %s) as n
"""
# Python imports a module of this name whenever it starts; nothing of it is in the product.
ABORTING = """\
import os, resource
from mikkoo.worker.templates import TemplateTranslator

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
translate = TemplateTranslator.__call__

def abort_or_translate(self, event):
    if event.data and '"deadly"' in event.data:
        os.abort()
    return translate(self, event)

TemplateTranslator.__call__ = abort_or_translate
"""


def test_events_that_abort_the_process_become_dead_letters_and_all_others_arrive(
    product: Product, tmp_path: Path
) -> None:
    modules = tmp_path / 'modules'
    modules.mkdir()
    (modules / 'sitecustomize.py').write_text(ABORTING)
    product.program.environment['PYTHONPATH'] = str(modules)
    product.create_queue('alpha')
    product.arrivals('alpha')
    product.sql(INSERT, list(DEADLY), GOOD + len(DEADLY))
    product.worker('alpha', confirm_window=WINDOW)
    product.run()
    product.until_settled(TIMEOUT)

    arrived = [body['n'] for body in bodies(product.take('alpha'))]
    assert set(arrived) == set(range(1, GOOD + len(DEADLY) + 1)) - DEADLY
    dead = product.sql(
        'select payload::json, attempts, reason_code, reason from mikkoo.dead_letter order by event_id'
    )
    assert [(row[0]['n'], row[2]) for row in dead] == [(n, 'kills_worker') for n in sorted(DEADLY)]
    first, second, third = (row[3] for row in dead)
    assert re.fullmatch(r'the process ended \d times running, .* relayed this event alone', first)
    assert second == 'the process ended while it relayed this event alone'
    assert re.fullmatch(r'the process ended \d times running, .* relayed this event alone', third)
    assert [row[1] for row in dead] == [int((re.findall(r'\d', row[3]) or [1])[0]) for row in dead]
    child = product.children()['alpha']
    assert (child['state'], child['failures']) == ('RUNNING', 0), 'it got past them'
    assert product.sql('select count(*) from mikkoo.batch_progress') == [(0,)]
    log = product.logged()
    assert log.count('one event at a time') == log.count('kills_worker') + 2
    assert 'FATAL' not in log


def opened(scene: Scene, attempts: int, events: int) -> list[int]:
    """A batch that was opened so many times without getting on; the ids of its events."""
    scene.register()
    ids = scene.insert(['good.key'] * events)
    scene.tick()
    scene.sql(
        """insert into mikkoo.batch_progress
               (queue, consumer, batch_id, tick_id, previous_tick_id, tick_time, attempts)
           select %s, 'mikkoo', batch_id, cur_tick_id, prev_tick_id, cur_tick_time, %s
           from pgq.next_batch_info(%s, 'mikkoo')""",
        QUEUE, attempts, QUEUE,
    )  # fmt: skip
    return ids


def reported(worker: Worker) -> dict[str, Any]:
    worker.hear()
    return worker.numbers


def dead_letters(scene: Scene) -> list[tuple[Any, ...]]:
    return scene.sql('select event_id, reason_code from mikkoo.dead_letter order by event_id')


def test_a_process_killed_with_one_event_in_hand_loses_only_that(scene: Scene) -> None:
    """A second one opens the batch with the first one's marks."""
    ids = opened(scene, MOST_ENDS, EVENTS)
    with Worker(scene.settings()) as worker:
        worker.await_log('one event at a time')
        until(lambda: scene.queued() > 50, what='some have arrived')
        worker.stop(signal.SIGKILL)
    [(last, attempts, alone)] = scene.sql(PROGRESS)
    assert (attempts, alone) == (MOST_ENDS + 1, True)
    with Worker(scene.settings()) as worker:
        scene.await_settled(ARRIVAL)
        killer = min(number for number in ids if number > last)
        assert dead_letters(scene) == [(killer, 'kills_worker')]
        assert worker.await_log('events are dead letters, kills_worker')
        assert len(worker.await_log('one event at a time')) == 1
        until(lambda: reported(worker).get('dead_letters') == 1, ARRIVAL, 'it is shown')
        assert (worker.numbers['dead'], worker.numbers['failed']) == (1, 1)
    arrived = set(numbers(scene))
    assert arrived | {ids.index(killer) + 1} == set(range(1, EVENTS + 1)), 'no other event is lost'


def test_an_event_that_waits_alone_for_rabbitmq_is_no_cause(scene: Scene, to_broker: Proxy) -> None:
    opened(scene, MOST_ENDS, EVENTS)
    settings = scene.settings(rabbitmq=through(to_broker, scene.vhost))
    with Worker(settings) as worker:
        worker.await_log('one event at a time')
        until(lambda: scene.queued() > 50, what='some have arrived')
        to_broker.stall()
        until(
            lambda: scene.sql('select alone from mikkoo.batch_progress') == [(False,)], what='it is acquitted'
        )
        worker.stop(signal.SIGKILL)
    to_broker.resume()
    with Worker(settings):
        scene.await_settled(ARRIVAL)
    assert dead_letters(scene) == []
    assert set(numbers(scene)) == set(range(1, EVENTS + 1))


def test_losing_postgresql_is_no_end_however_often(scene: Scene) -> None:
    """Every connection of the relay is cut again and again, while it relays one event at a time."""
    opened(scene, MOST_ENDS, EVENTS)
    cut = 'select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = %s'
    login = f'relay_{scene.database.name}'
    with Worker(scene.settings()) as worker:
        for number in range(1, 6):
            arrived = scene.queued()
            worker.await_log('one event at a time', number)
            until(lambda before=arrived: scene.queued() > before + 20, what='it goes on')  # type: ignore[misc]
            scene.sql(cut, login)
            worker.await_log('PostgreSQL is out', number)
        scene.await_settled(ARRIVAL)
    assert dead_letters(scene) == []
    assert set(numbers(scene)) == set(range(1, EVENTS + 1))


def test_a_stop_while_one_event_is_in_hand_is_no_end(scene: Scene) -> None:
    opened(scene, MOST_ENDS, EVENTS)
    with Worker(scene.settings()) as worker:
        worker.await_log('one event at a time')
        until(lambda: scene.queued() > 50, what='some have arrived')
        worker.stop()
        assert worker.process.exitcode == 0
    [(_, attempts, alone)] = scene.sql(PROGRESS)
    assert (attempts, alone) == (0, False)
    with Worker(scene.settings()) as worker:
        scene.await_settled(ARRIVAL)
        assert not [line for line in worker.log_lines() if 'one event at a time' in line]
    assert dead_letters(scene) == []
    assert numbers(scene) == list(range(1, EVENTS + 1)), 'nothing is repeated'


def test_after_a_stretch_without_an_end_the_rest_goes_together(scene: Scene) -> None:
    window = WINDOW
    events = isolation.stretch(window) + 1_000
    opened(scene, MOST_ENDS, events)
    with Worker(scene.settings(confirm_window=window)) as worker:
        worker.await_log('one event at a time')
        scene.await_settled(ARRIVAL)
        until(lambda: reported(worker).get('processed') == events, ARRIVAL, 'it reports the batch')
        alone, saves = isolation.stretch(window), worker.numbers['pgq.save.count']
        assert alone < saves < alone + 500, 'a save for each event of the stretch, and few behind it'
        assert worker.recovered == 1, 'the supervisor is told'
    assert dead_letters(scene) == []
    assert numbers(scene) == list(range(1, events + 1))


def test_a_worker_that_is_killed_again_and_again_gives_no_event_up(scene: Scene) -> None:
    """At random moments of a large batch, each time after some progress."""
    rng = random.Random(7)
    scene.register()
    scene.insert(['good.key'] * LARGE)
    kills = 6
    for number in range(kills):
        with Worker(scene.settings()) as worker:
            worker.await_state('running')
            scene.await_queued(LARGE // (kills + 2) * (number + 1))
            moment = time.monotonic() + rng.uniform(0.0, 0.1)
            until(lambda at=moment: time.monotonic() >= at, what='the moment has come')  # type: ignore[misc]
            worker.stop(signal.SIGKILL)
    with Worker(scene.settings()) as worker:
        scene.await_settled(ARRIVAL)
        assert not [line for line in worker.log_lines() if 'one event at a time' in line]
    assert dead_letters(scene) == []
    assert set(numbers(scene)) == set(range(1, LARGE + 1))
