"""Openings of a batch, how far it has got, and the burial of an event unread: common.pgq_keep on a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mikkoo.common.errors import Fenced
from mikkoo.common.pgq import Batch, Consumer, Opening, Stage
from mikkoo.common.pgq_keep import COUNTED
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.integration.relaying import QUEUE, Scene

ROW = 'select last_event_id, attempts, alone from mikkoo.batch_progress'


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


@pytest.fixture
def consumer(scene: Scene, pulse: Pulse) -> Iterator[Consumer]:
    """The relay's, as its login, owner of the queue."""
    session = Session.connect(scene.database.relay_url, pulse, application_name='mikkoo test')
    made = Consumer(session, QUEUE, 'mikkoo')
    made.register()
    assert made.own()
    yield made
    session.close()


def opened(scene: Scene, consumer: Consumer, events: int = 5) -> tuple[Batch, list[int]]:
    """A batch, and the ids of its events."""
    ids = scene.insert(['good.key'] * events)
    scene.tick()
    batch = consumer.next_batch()
    assert batch is not None
    return batch, ids


def test_openings_are_counted_until_the_batch_gets_on(scene: Scene, consumer: Consumer) -> None:
    batch, ids = opened(scene, consumer)
    assert [consumer.open(batch) for _ in range(3)] == [Opening(None, n, False) for n in (1, 2, 3)]
    assert consumer.open(batch, again=True) == Opening(None, 3, False)
    consumer.save(batch, ids[1])
    assert consumer.open(batch, again=True) == Opening(ids[1], 1, False)
    assert consumer.open(batch) == Opening(ids[1], 2, False)
    consumer.save(batch, ids[1])
    assert consumer.open(batch) == Opening(ids[1], 3, False), 'that was no progress'
    consumer.settle(batch)
    assert scene.sql(ROW) == []


def test_events_alone_are_noted_and_the_count_stays(scene: Scene, consumer: Consumer) -> None:
    batch, ids = opened(scene, consumer)
    assert [consumer.open(batch).attempts for _ in range(4)] == [1, 2, 3, 4]
    consumer.save(batch, None, stage=Stage.ALONE)
    consumer.save(batch, ids[0], stage=Stage.ALONE)
    assert scene.sql(ROW) == [(ids[0], 4, True)]
    assert consumer.open(batch, again=True) == Opening(ids[0], 4, True)
    assert consumer.open(batch) == Opening(ids[0], 5, True)
    consumer.save(batch, ids[1])
    assert scene.sql(ROW) == [(ids[1], 1, False)]


@pytest.mark.parametrize('last', [None, 0])
def test_a_stop_in_order_leaves_nothing_to_suspect(
    scene: Scene, consumer: Consumer, last: int | None
) -> None:
    batch, ids = opened(scene, consumer)
    judged = None if last is None else ids[last]
    consumer.open(batch)
    consumer.save(batch, judged, stage=Stage.ALONE)
    consumer.save(batch, judged, stage=Stage.STOPPED)
    assert consumer.open(batch) == Opening(judged, 1, False)


def test_another_batch_is_counted_anew(scene: Scene, consumer: Consumer) -> None:
    batch, ids = opened(scene, consumer)
    for column in ('batch_id', 'tick_id', 'previous_tick_id', 'tick_time'):
        consumer.open(batch)
        consumer.open(batch)
        consumer.save(batch, ids[0], stage=Stage.ALONE)
        one = "interval '1 s'" if column == 'tick_time' else '1'
        scene.sql(f'update mikkoo.batch_progress set {column} = {column} + {one}')
        assert consumer.open(batch, again=True) == Opening(None, 1, False), column


def test_what_is_counted_does_not_wait_for_the_disk(scene: Scene, consumer: Consumer) -> None:
    batch, _ = opened(scene, consumer)
    consumer.open(batch)
    assert consumer._session.one('show synchronous_commit') == ('on',), 'only for that statement'


def test_the_first_event_behind_is_buried_unread(scene: Scene, consumer: Consumer) -> None:
    batch, ids = opened(scene, consumer)
    scene.sql(
        "insert into mikkoo.failing_event select %s, 'mikkoo', ev_id, ev_time from pgq.get_batch_events(%s)",
        QUEUE,
        batch.id,
    )
    consumer.open(batch)
    assert consumer.bury_next(batch, ids[1], 4, 'kills_worker', 'it does') == (ids[2], 4)
    assert scene.sql(ROW) == [(ids[2], 1, False)]
    assert scene.sql(
        """select queue, consumer, event_id, attempts, exchange, routing_key, payload, content_type,
            reason_code, reason from mikkoo.dead_letter"""
    ) == [
        (QUEUE, 'mikkoo', ids[2], 4, 'mikkoo', 'good.key', '{"n": 3}', 'application/json', 'kills_worker',
         'it does')
    ]  # fmt: skip
    assert ids[2] not in [row[0] for row in scene.sql('select event_id from mikkoo.failing_event')]
    assert consumer.bury_next(batch, None, 1, 'kills_worker', 'it does') == (ids[0], 1)
    assert consumer.dead_letters() == 2


def test_behind_the_last_event_there_is_none_to_bury(scene: Scene, consumer: Consumer) -> None:
    batch, ids = opened(scene, consumer)
    consumer.open(batch)
    consumer.save(batch, ids[-1], stage=Stage.ALONE)
    assert consumer.bury_next(batch, ids[-1], 1, 'kills_worker', 'it does') is None
    assert scene.sql(ROW) == [(ids[-1], 1, False)]
    assert consumer.dead_letters() == 0


def test_who_has_lost_the_batch_buries_nothing(scene: Scene, consumer: Consumer) -> None:
    batch, _ = opened(scene, consumer)
    consumer.open(batch)
    scene.sql('select pgq.finish_batch(%s)', batch.id)
    with pytest.raises(Fenced):
        consumer.bury_next(batch, None, 1, 'kills_worker', 'it does')
    assert scene.sql('select count(*) from mikkoo.dead_letter') == [(0,)]


def test_of_very_many_dead_letters_no_more_are_counted_than_needed(scene: Scene, consumer: Consumer) -> None:
    scene.sql(
        """insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts,
               reason_code, reason, first_failed_at)
           select %s, name, n, now(), 1, 1, 'returned', 'no route', now()
           from generate_series(1, %s) as n, unnest(array['mikkoo', 'other']) as name""",
        QUEUE,
        COUNTED + 10,
    )
    assert consumer.dead_letters() == COUNTED
    scene.sql("delete from mikkoo.dead_letter where consumer = 'mikkoo' and event_id > 7")
    assert consumer.dead_letters() == 7


def test_version_2_of_mikkoo_sql_keeps_progress_and_counts_nothing(scene: Scene, consumer: Consumer) -> None:
    scene.sql('alter table mikkoo.batch_progress drop column attempts, drop column alone')
    scene.sql('alter table mikkoo.batch_progress alter column last_event_id set not null')
    scene.sql('delete from mikkoo.schema_version where version > 2')
    consumer.register()
    assert consumer.keeps
    batch, ids = opened(scene, consumer)
    assert [consumer.open(batch) for _ in range(5)] == [Opening()] * 5
    consumer.save(batch, None, stage=Stage.STOPPED)
    assert consumer.open(batch) == Opening()
    consumer.save(batch, ids[2])
    assert consumer.open(batch) == Opening(ids[2])
    consumer.settle(batch)
    assert scene.sql('select count(*) from mikkoo.batch_progress') == [(0,)]
