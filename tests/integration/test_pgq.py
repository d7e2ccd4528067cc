"""common.pgq against PgQ, as the login of a relay: never as superuser."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common import pgq
from mikkoo.common.errors import DatabaseError, DatabaseLost, Fenced, Stopping
from mikkoo.common.pgq import Batch, Consumer, Reader, Retry, Row
from mikkoo.common.pgq_facts import RETRYING
from mikkoo.common.pgq_reader import FAR, ROW_WEIGHT
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.conftest import Database
from tests.servers.postgres import PostgresServer
from tests.servers.waiting import until

QUEUE = 'orders'
MB = 1024 * 1024


class Relay:
    """A relay's two sessions, as its login."""

    def __init__(self, url: str, queue: str = QUEUE, largest_value: int = 128 * MB) -> None:
        self.url = url
        self.pulse = Pulse()
        self.calls: list[str] = []
        self._sessions: list[Session] = []
        self.control, self.second = self.session(), self.session()
        self.consumer = Consumer(self.control, queue, 'mikkoo', lambda call, _: self.calls.append(call))
        self.reader = Reader(self.second, lambda call, _: self.calls.append(call), largest_value)

    def session(self) -> Session:
        self._sessions.append(Session.connect(self.url, self.pulse, application_name='mikkoo worker test'))
        return self._sessions[-1]

    def next_batch(self, most: int = 20_000) -> Batch:
        batch = self.consumer.next_batch(most)
        assert batch is not None
        return batch

    def read(self, batch: Batch, budget: int = 4 * MB, after: int | None = None) -> list[Row]:
        self.reader.open(batch, after)
        rows: list[Row] = []
        while more := self.reader.fetch(budget):
            rows += more
        self.reader.pause()
        return rows

    def relay(self, retry: Callable[[Row], bool] = lambda row: False, at: float = 0.0) -> list[Row]:
        """One batch, read and settled; those for which `retry` holds are put back."""
        batch = self.next_batch()
        rows = self.read(batch)
        self.consumer.settle(batch, [Retry(row, at) for row in rows if retry(row)])
        return rows

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self.pulse.close()


@pytest.fixture
def queue(database: Database) -> str:
    create_queue(database)
    return QUEUE


@pytest.fixture
def open_relay() -> Iterator[Callable[..., Relay]]:
    opened: list[Relay] = []

    def make(*args: Any, **options: Any) -> Relay:
        opened.append(Relay(*args, **options))
        return opened[-1]

    yield make
    for relay in opened:
        relay.close()


@pytest.fixture
def relay(database: Database, queue: str, open_relay: Callable[..., Relay]) -> Relay:
    made = open_relay(database.relay_url)
    assert made.consumer.own()
    made.consumer.register()
    return made


def create_queue(database: Database, queue: str = QUEUE) -> None:
    """A queue of which every call of `tick` makes a tick, an empty one too."""
    database.execute('select pgq.create_queue(%s)', (queue,))
    for key in ('ticker_max_lag', 'ticker_idle_period'):
        database.execute('select pgq.set_queue_config(%s, %s, %s)', (queue, key, '0'))


def insert(database: Database, *bodies: str, queue: str = QUEUE) -> list[object]:
    sql = "select pgq.insert_event(%s, 'key', b, 'ex', 'text/plain', '{}', null) from unnest(%s::text[]) b"
    return [number for (number,) in database.execute(sql, (queue, list(bodies)))]


def insert_many(database: Database, count: int, size: int) -> None:
    sql = "select count(pgq.insert_event(%s, 'key', repeat('x', %s))) from generate_series(1, %s)"
    database.execute(sql, (QUEUE, size, count))


def tick(database: Database, queue: str = QUEUE) -> int:
    [(number,)] = database.execute('select pgq.ticker(%s)', (queue,))
    assert isinstance(number, int)
    return number


def bodies(rows: Sequence[Row]) -> list[Any]:
    return [row[5] for row in rows]


# One owner


def test_the_tests_relay_without_being_superuser(relay: Relay) -> None:
    assert relay.control.one('select rolsuper from pg_roles where rolname = current_user') == (False,)
    assert pgq.missing_privileges(relay.control, QUEUE) == []


def test_one_session_owns_a_consumer(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    other = open_relay(database.relay_url)
    assert relay.consumer.own()  # again
    assert relay.consumer.owned()
    assert not other.consumer.own()
    assert not other.consumer.owned()
    assert other.consumer.owner() == relay.control.backend_pid
    assert Consumer(other.control, QUEUE, 'another').own()
    relay.control.close()
    until(other.consumer.own, 10, 'the lock of a closed session is free')
    assert other.consumer.owner() == other.control.backend_pid


# Registration


def test_an_unknown_queue_is_named_with_the_nearest(
    database: Database, queue: str, open_relay: Callable[..., Relay]
) -> None:
    relay = open_relay(database.relay_url, 'order')
    with pytest.raises(DatabaseError, match='no queue "order"; did you mean "orders"'):
        relay.consumer.register()
    relay = open_relay(database.relay_url, 'xyz')
    with pytest.raises(DatabaseError, match=r'no queue "xyz"$'):
        relay.consumer.register()


def test_a_state_of_another_cluster_is_refused(relay: Relay, database: Database) -> None:
    database.execute("update pgq.tick set tick_snapshot = '4000000000:4000000000:'")
    with pytest.raises(DatabaseError, match=r'Invalid PgQ state.*4000000000.*After a restore'):
        relay.consumer.register()


def test_a_read_only_database_is_refused(relay: Relay, database: Database) -> None:
    relay.control.execute('set default_transaction_read_only to on')
    with pytest.raises(DatabaseError, match='read only: default_transaction_read_only is on') as raised:
        relay.consumer.register()
    assert raised.value.sqlstate == '25006'


def test_a_tick_is_forced_after_the_clock_was_set_back(relay: Relay, database: Database) -> None:
    insert(database, '{"n": 1}', '{"n": 2}')
    database.execute("update pgq.tick set tick_time = tick_time + interval '1 hour'")
    assert database.execute('select pgq.ticker(%s)', (QUEUE,)) == [(None,)]
    assert relay.consumer.pending().lag < -3000
    relay.consumer.force_tick()
    tick(database)
    assert len(relay.relay()) == 2
    assert relay.consumer.pending().lag >= 0


def test_a_queue_is_created_where_that_is_granted(
    database: Database, open_relay: Callable[..., Relay]
) -> None:
    relay = open_relay(database.relay_url, 'new')
    with pytest.raises(DatabaseError, match='permission denied'):
        relay.consumer.register(create_queue=True)
    [missing] = pgq.missing_privileges(relay.control, 'new', create_queue=True)
    database.execute(missing.partition(': ')[2])
    relay.consumer.register(create_queue=True)
    assert pgq.queue_exists(relay.control, 'new')
    assert relay.consumer.pending().events == 0


def test_first_registrations_at_once(database: Database, open_relay: Callable[..., Relay]) -> None:
    queues = [f'race{number}' for number in range(10)]
    for name in queues:
        create_queue(database, name)
    relays = [open_relay(database.relay_url) for _ in range(2)]
    barrier = threading.Barrier(2)
    failed: list[BaseException] = []

    def register(relay: Relay) -> None:
        for name in queues:
            barrier.wait(30)
            try:
                Consumer(relay.control, name, f'mikkoo-{name}').register()
            except BaseException as error:
                failed.append(error)
                raise

    threads = [threading.Thread(target=register, args=(relay,)) for relay in relays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert database.execute('select count(*) from pgq.subscription') == [(len(queues),)]


def test_unregister(relay: Relay) -> None:
    assert relay.consumer.unregister() == 1
    assert relay.consumer.unregister() == 0
    with pytest.raises(DatabaseError, match='not registered'):
        relay.consumer.pending()
    with pytest.raises(DatabaseError, match='Not subscriber'):
        relay.consumer.next_batch()


# Batches


def test_no_tick_no_batch(relay: Relay, database: Database) -> None:
    insert(database, 'a')
    assert relay.consumer.next_batch() is None


def test_a_batch_is_the_events_between_two_ticks(relay: Relay, database: Database) -> None:
    first = insert(database, 'a', 'b')
    number = tick(database)
    insert(database, 'c')
    batch = relay.next_batch()
    assert (batch.previous_tick_id, batch.tick_id) == (number - 1, number)
    assert batch.tick_time > batch.previous_tick_time
    assert batch.tick_time.tzinfo is not None
    rows = relay.read(batch)
    assert [row[0] for row in rows] == first
    assert bodies(rows) == ['a', 'b']
    assert rows[0][3:] == (None, 'key', 'a', 'ex', 'text/plain', '{}', None, None)
    assert rows[0][1].utcoffset().total_seconds() == 0
    relay.consumer.settle(batch)
    assert relay.consumer.next_batch() is None
    assert {'next_batch', 'open_batch', 'fetch', 'settle', 'finish_batch'} <= set(relay.calls)


def test_an_empty_tick_is_a_batch_to_finish(relay: Relay, database: Database) -> None:
    ticks = [tick(database) for _ in range(3)]
    assert [relay.relay() for _ in ticks] == [[], [], []]
    assert relay.consumer.next_batch() is None


def test_ticks_are_merged(relay: Relay, database: Database) -> None:
    for number in range(5):
        insert(database, f'{number}')
        tick(database)
        tick(database)
    assert bodies(relay.relay()) == ['0', '1', '2', '3', '4']
    assert relay.consumer.next_batch() is None


def test_ticks_are_merged_up_to_a_number(relay: Relay, database: Database) -> None:
    for number in range(12):
        insert(database, *[f'{number}'] * 10)
        tick(database)
    sizes = []
    while batch := relay.consumer.next_batch(30):
        sizes.append(len(relay.read(batch)))
        relay.consumer.settle(batch)
    assert sum(sizes) == 120
    assert all(10 <= size <= 60 for size in sizes)
    assert len(sizes) <= 4


def test_what_committed_late_is_not_waited_for(relay: Relay, database: Database) -> None:
    late = database.connect()
    late.autocommit = False
    with late.cursor() as cursor:
        cursor.execute('select pgq.insert_event(%s, %s, %s)', (QUEUE, 'key', 'late'))
        tick(database)
        late.commit()
    late.close()
    tick(database)
    assert bodies(relay.relay()) == []
    assert relay.consumer.pending().events == 0  # PgQ's count misses it
    assert bodies(relay.relay()) == ['late']


def test_an_open_batch_comes_again(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    insert(database, 'b')
    tick(database)
    relay.control.close()
    successor = open_relay(database.relay_url)
    until(successor.consumer.own, 10, 'the lock is free')
    assert successor.next_batch() == batch
    assert successor.consumer.pending().batch == batch.id
    assert bodies(successor.relay()) == ['a']
    assert bodies(successor.relay()) == ['b']


# Settling


def retry_queue(database: Database) -> list[tuple[object, ...]]:
    return database.execute('select ev_id, ev_retry, ev_data from pgq.retry_queue order by ev_id')


def revoke_raw(database: Database) -> None:
    database.execute(f'revoke execute on function {RETRYING} from mikkoo_relay')


@pytest.mark.parametrize('granted', [True, False], ids=['event_retry_raw', 'event_retry'])
def test_retries_are_counted(relay: Relay, database: Database, granted: bool) -> None:
    if not granted:
        revoke_raw(database)
        relay.consumer.register()
    insert(database, 'good', 'bad', 'ä"\'\\')
    tick(database)
    [_, first, odd] = relay.relay(retry=lambda row: row[5] != 'good')
    assert first[3] is None
    for count in (1, 2):
        assert relay.consumer.move_retries() == 2
        tick(database)
        rows = relay.relay(retry=lambda row: True)
        for before, again in zip((first, odd), rows, strict=True):
            assert again[3] == count
            assert again[:2] + again[4:] == before[:2] + before[4:]  # all but ev_txid
    assert relay.consumer.move_retries() == 2


def test_a_retry_waits_until_it_is_due(relay: Relay, database: Database) -> None:
    insert(database, 'a', 'b')
    tick(database)
    before = time.time()
    batch = relay.next_batch()
    soon, later = relay.read(batch)
    relay.consumer.settle(batch, [Retry(soon, 0.3), Retry(later, 3600.0)])
    moved = until(relay.consumer.move_retries, 10, 'the first is due')
    assert moved == 1
    assert time.time() - before >= 0.3
    assert [row[2] for row in retry_queue(database)] == ['b']


def test_many_retries(relay: Relay, database: Database) -> None:
    insert_many(database, 250, 10)
    tick(database)
    relay.relay(retry=lambda row: True)
    assert relay.calls.count('event_retry') == 3
    assert relay.consumer.move_retries() == 250
    tick(database)
    assert [row[3] for row in relay.relay()] == [1] * 250


def test_a_large_event_is_retried_within_the_server(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    large = 'x' * (pgq.RAW_LIMIT + 1)
    insert(database, large, 'small')
    tick(database)
    assert bodies(relay.relay(retry=lambda row: True)) == [large, 'small']
    assert relay.consumer.move_retries() == 2
    tick(database)
    relay.reader = Reader(relay.second, largest_value=100)
    [oversized, _] = relay.relay(retry=lambda row: True)
    assert oversized[5] is None
    assert retry_queue(database)[0][1:] == (2, large)


def test_what_is_in_the_retry_queue_already(relay: Relay, database: Database) -> None:
    insert(database, 'a', 'b')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    # what another relay, that crashed before it finished the batch, has left
    database.execute('select pgq.event_retry(%s, %s, 3600)', (batch.id, rows[0][0]))
    relay.consumer.settle(batch, [Retry(row, 0.0) for row in rows])
    assert [row[1:] for row in retry_queue(database)] == [(1, 'a'), (1, 'b')]
    assert relay.consumer.pending().batch is None


def test_what_is_put_back_comes_again_as_it_was_and_no_attempt_is_counted(
    relay: Relay, database: Database
) -> None:
    insert(database, 'a', 'b')
    tick(database)
    for count in (None, 1):  # fresh, then after a failure
        for _ in range(2):
            batch = relay.next_batch()
            rows = relay.read(batch)
            assert [(row[3], row[5]) for row in rows] == [(count, 'a'), (count, 'b')]
            assert all(relay.consumer.may_put_back(row) for row in rows)
            relay.consumer.settle(batch, [Retry(row, 0.0, counted=False) for row in rows])
            assert relay.consumer.move_retries() == 2
            tick(database)
        noted = database.execute('select count(*) from mikkoo.failing_event')
        assert noted == [(2 if count else 0,)], 'what has failed before is not forgotten, nor noted anew'
        relay.relay(retry=lambda row: True)
        assert relay.consumer.move_retries() == 2
        tick(database)


def test_of_what_is_put_back_one_is_in_the_retry_queue_already(relay: Relay, database: Database) -> None:
    insert(database, 'a', 'b', 'c')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    database.execute('select pgq.event_retry(%s, %s, 3600)', (batch.id, rows[1][0]))
    relay.consumer.settle(batch, [Retry(row, 0.0, counted=False) for row in rows])
    assert [row[1:] for row in retry_queue(database)] == [(None, 'a'), (1, 'b'), (None, 'c')]


def test_what_only_the_server_can_copy_cannot_be_put_back(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    insert(database, 'x' * (pgq.RAW_LIMIT + 1), 'small')
    tick(database)
    large, small = relay.read(relay.next_batch())
    assert [relay.consumer.may_put_back(row) for row in (large, small)] == [False, True]
    revoke_raw(database)
    other = open_relay(relay.url)
    other.consumer.register()
    assert not other.consumer.may_put_back(small)


def test_whether_an_event_can_be_put_back_is_known_without_asking(relay: Relay, database: Database) -> None:
    """A stop or a loss in the midst of that would find messages that nobody holds."""
    insert(database, 'small')
    tick(database)
    [small] = relay.read(relay.next_batch())
    relay.control.close()
    assert relay.consumer.may_put_back(small)


@pytest.mark.parametrize('granted', [True, False], ids=['event_retry_raw', 'event_retry'])
def test_a_batch_that_somebody_else_finished_is_not_settled(
    relay: Relay, database: Database, granted: bool
) -> None:
    if not granted:
        revoke_raw(database)
        relay.consumer.register()
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    database.execute('select pgq.finish_batch(%s)', (batch.id,))
    with pytest.raises(Fenced):
        relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
    assert retry_queue(database) == []
    assert not relay.control.in_transaction
    assert relay.consumer.next_batch() is None


def test_a_batch_finished_in_the_midst_of_settling_is_rolled_back(relay: Relay, database: Database) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    finisher = database.connect()
    finisher.autocommit = False
    with finisher.cursor() as cursor:
        # holds the subscription's row: settling sees an open batch, and then has to wait
        cursor.execute('select pgq.finish_batch(%s)', (batch.id,))

        def commit_when_awaited() -> None:
            blocked = 'select 1 from pg_locks where not granted and pid = %s'
            until(lambda: database.execute(blocked, (relay.control.backend_pid,)), 10, 'settling waits')
            finisher.commit()

        thread = threading.Thread(target=commit_when_awaited)
        thread.start()
        with pytest.raises(Fenced):
            relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
        thread.join()
    finisher.close()
    assert retry_queue(database) == []


def test_without_the_lock_nothing_is_settled(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    relay.control.execute('select pg_advisory_unlock_all()')
    assert open_relay(database.relay_url).consumer.own()
    with pytest.raises(Fenced):
        relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
    assert retry_queue(database) == []
    assert relay.consumer.pending().batch == batch.id


def test_a_lost_session_settles_nothing(
    relay: Relay, database: Database, open_relay: Callable[..., Relay]
) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    database.execute('select pg_terminate_backend(%s)', (relay.control.backend_pid,))
    with pytest.raises(DatabaseLost):
        relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
    assert retry_queue(database) == []
    successor = open_relay(database.relay_url)
    until(successor.consumer.own, 10, 'the lock is free')
    assert bodies(successor.relay()) == ['a']


def test_a_stop_while_settling_rolls_back(relay: Relay, database: Database) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    relay.pulse.stop()
    with pytest.raises(Stopping):
        relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
    with relay.pulse.grace(60):
        assert relay.consumer.owned()
        relay.consumer.settle(batch, [Retry(rows[0], 0.0)])
    assert len(retry_queue(database)) == 1


# Reading


def insert_mixture(database: Database, count: int) -> None:
    chance = random.Random(7)
    sizes = [chance.choice((0, 10, 100, 1000, 30_000, 400_000)) for _ in range(count)]
    insert(database, *[chr(97 + index % 26) * size for index, size in enumerate(sizes)])


def test_every_row_comes_once_and_in_order_whatever_the_budget(relay: Relay, database: Database) -> None:
    insert_mixture(database, 700)
    tick(database)
    batch = relay.next_batch()
    expected = [
        (*row, None) for row in relay.control.fetch('select * from pgq.get_batch_events(%s)', (batch.id,))
    ]
    assert len(expected) == 700
    for budget in (0, 50_000, 1 * MB, 500 * MB):
        assert relay.read(batch, budget) == expected


def weight(row: Row) -> int:
    return ROW_WEIGHT + sum(len(text) for text in row[4:10] if text)


def test_no_slice_is_over_its_budget(relay: Relay, database: Database) -> None:
    insert_many(database, 3 * FAR, 100)
    insert_mixture(database, 700)
    insert_many(database, 3 * FAR, 100)
    tick(database)
    for budget in (10_000, 1 * MB, 4 * MB):
        relay.reader.open(relay.consumer.next_batch() or pytest.fail('no batch'))
        longest = count = 0
        while rows := relay.reader.fetch(budget):
            assert len(rows) == 1 or sum(map(weight, rows)) <= budget
            longest = max(longest, len(rows))
            count += len(rows)
        assert count == 6 * FAR + 700
        assert longest == {10_000: 20, 1 * MB: FAR, 4 * MB: FAR}[budget]


def test_reading_goes_on_behind_an_event(relay: Relay, database: Database) -> None:
    insert_many(database, 1200, 10)
    insert(database, 'last')
    tick(database)
    batch = relay.next_batch()
    whole = relay.read(batch)
    pieces: list[Row] = []
    while True:
        relay.reader.open(batch, after=pieces[-1][0] if pieces else None)
        slices = [relay.reader.fetch(1 * MB), relay.reader.fetch(1 * MB)]
        relay.reader.pause()
        assert not relay.second.in_transaction
        with pytest.raises(RuntimeError):  # the rest must not look like the end
            relay.reader.fetch(1 * MB)
        pieces += slices[0] + slices[1]
        if not slices[1]:
            break
    assert pieces == whole
    assert relay.read(batch, after=whole[-1][0]) == []


def test_a_batch_with_retries_of_old_ids_resumes_exactly(relay: Relay, database: Database) -> None:
    insert(database, 'old')
    tick(database)
    relay.relay(retry=lambda row: True)
    insert(database, 'new')
    assert relay.consumer.move_retries() == 1
    tick(database)
    batch = relay.next_batch()
    rows = relay.read(batch)
    assert bodies(rows) == ['old', 'new']
    assert relay.read(batch, after=rows[0][0]) == rows[1:]


def test_what_is_too_large_is_left_out_and_marked(
    database: Database, queue: str, open_relay: Callable[..., Relay]
) -> None:
    relay = open_relay(database.relay_url, largest_value=1000)
    assert relay.consumer.own()
    relay.consumer.register()
    database.execute(
        "select pgq.insert_event(%s, 'k', repeat('ä', 500), 'e', 't', '{}', '{}'),"
        " pgq.insert_event(%s, 'k', repeat('ä', 501), 'e', 't', '{}', '{}'),"
        " pgq.insert_event(%s, 'k', 'b', 'e', 't', '{}', repeat(' ', 3000)),"
        ' pgq.insert_event(%s, null, null, null, null, null, null)',
        (QUEUE,) * 4,
    )
    tick(database)
    rows = relay.relay()
    assert [row[4:] for row in rows] == [
        ('k', 'ä' * 500, 'e', 't', '{}', '{}', None),
        ('k', None, 'e', 't', '{}', '{}', 1002),
        ('k', 'b', 'e', 't', '{}', None, 3000),
        (None, None, None, None, None, None, None),
    ]


def test_a_finished_batch_cannot_be_read(relay: Relay, database: Database) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    database.execute('select pgq.finish_batch(%s)', (batch.id,))
    with pytest.raises(Fenced):
        relay.reader.open(batch)
    assert not relay.second.in_transaction


def test_the_reader_holds_a_transaction_only_while_it_reads(relay: Relay, database: Database) -> None:
    insert(database, 'a')
    tick(database)
    batch = relay.next_batch()
    held = 'select backend_xmin is not null or backend_xid is not null from pg_stat_activity where pid = %s'
    relay.reader.open(batch)
    relay.reader.fetch(1)
    assert database.execute(held, (relay.second.backend_pid,)) == [(True,)]
    assert database.execute(held, (relay.control.backend_pid,)) == [(False,)]
    relay.reader.pause()
    assert database.execute(held, (relay.second.backend_pid,)) == [(False,)]


def resident() -> int:
    """This process's memory in bytes."""
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE')


def test_memory_does_not_grow_with_the_batch_and_a_stop_ends_a_long_fetch(
    relay: Relay, database: Database
) -> None:
    insert_many(database, 200_000, 600)
    tick(database)
    batch = relay.next_batch()
    relay.reader.open(batch)
    relay.reader.fetch(1 * MB)
    before = most = resident()
    count = 1
    while rows := relay.reader.fetch(1 * MB):
        count += len(rows)
        if count % 20_000 < FAR:
            most = max(most, resident())
    assert count == 200_000
    assert most - before < 20 * MB  # of 180 MB

    relay.reader.open(batch)
    asked: list[float] = []

    def stop() -> None:
        busy = "select 1 from pg_stat_activity where pid = %s and state = 'active' and query like 'fetch%%'"
        watcher = database.connect()
        try:
            with watcher.cursor() as cursor:
                while not cursor.rowcount > 0:
                    cursor.execute(busy, (relay.second.backend_pid,))
        finally:
            watcher.close()
        asked.append(time.monotonic())
        relay.pulse.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopping):  # the first slice comes after a sort of the batch
        while relay.reader.fetch(1 * MB):
            pass
    stopped = time.monotonic()
    thread.join()
    assert stopped - asked[0] < 1.0 * 3
    assert not relay.second.closed
    relay.reader.pause()
    assert not relay.second.in_transaction
    relay.reader.close()
    assert relay.second.closed


def test_bytes_that_are_no_text_are_set_apart(postgres: PostgresServer) -> None:
    """In a database without an encoding; the server refuses to convert them for us."""
    name = f'ascii_{uuid.uuid4().hex[:8]}'
    postgres.execute(f"create database {name} encoding 'SQL_ASCII' template template0")
    try:
        execute = partial(postgres.execute, dbname=name)
        execute('create extension pgq')
        execute("select pgq.create_queue('q'); select pgq.register_consumer('q', 'mikkoo')")
        body = r"case when n = 601 then convert_from('\xe9', 'SQL_ASCII') else n::text end"
        execute(f"select count(pgq.insert_event('q', 'key', {body})) from generate_series(1, 1200) as n")
        execute("select pgq.force_tick('q')")
        execute("select pgq.ticker('q')")
        relay = Relay(postgres.url(name), 'q')
        try:
            rows = relay.read(relay.next_batch())
        finally:
            relay.close()
        assert [row[5] for row in rows] == [None if n == 601 else str(n) for n in range(1, 1201)]
        assert 'invalid byte sequence' in rows[600][10] and {row[10] for row in rows} == {None, rows[600][10]}
    finally:
        postgres.drop_database(name)


# Waking


def test_a_tick_is_heard(relay: Relay, database: Database) -> None:
    create_queue(database, 'other')
    assert relay.consumer.listen()
    assert not relay.consumer.ticked()
    tick(database, 'other')
    tick(database)
    until(relay.consumer.ticked, 10, 'the tick is announced')
    assert not relay.consumer.ticked()
    tick(database, 'other')
    assert relay.pulse.wait('a notification', 10, read=[relay.control.fileno()])[0]
    assert not relay.consumer.ticked()


def test_a_disabled_or_missing_trigger_is_not_relied_on(relay: Relay, database: Database) -> None:
    database.execute('alter table pgq.tick disable trigger mikkoo_tick')
    assert not relay.consumer.listen()
    database.execute('drop trigger mikkoo_tick on pgq.tick')
    assert not relay.consumer.listen()
    tick(database)
    assert relay.relay() == []


# Without mikkoo.sql


def test_without_mikkoo_sql(postgres: PostgresServer, open_relay: Callable[..., Relay]) -> None:
    bare = Database(postgres, f'bare_{uuid.uuid4().hex[:8]}')
    login = f'relay_{bare.name}'
    postgres.create_database(bare.name, mikkoo=False)
    postgres.execute(f'create role {login} login')
    try:
        create_queue(bare)
        relay = open_relay(bare.relay_url)
        missing = pgq.missing_privileges(relay.control, QUEUE)
        assert len(missing) == 9  # six functions, three event tables
        assert {text.partition(': ')[2] for text in missing} == {f'GRANT pgq_reader TO {login};'}
        bare.execute(f'grant pgq_reader to {login}')
        assert pgq.missing_privileges(relay.control, QUEUE) == []
        assert relay.consumer.schema_version() is None
        assert not relay.consumer.listen()
        assert relay.consumer.move_retries() == 0
        assert relay.consumer.own()
        relay.consumer.register()
        insert(bare, 'a', 'b')
        tick(bare)
        assert bodies(relay.relay(retry=lambda row: row[5] == 'b')) == ['a', 'b']
        bare.execute('select pgq.maint_retry_events()')
        tick(bare)
        assert [(row[3], row[5]) for row in relay.relay()] == [(1, 'b')]
    finally:
        postgres.drop_database(bare.name)
        postgres.execute(f'drop role {login}')


# Facts


def test_facts(relay: Relay, database: Database) -> None:
    session = relay.control
    assert pgq.pgq_version(session) == '3.5'
    assert pgq.mikkoo_schema_version(session) == relay.consumer.schema_version() == pgq.SCHEMA_VERSION
    assert pgq.queue_exists(session, QUEUE)
    assert not pgq.queue_exists(session, 'nope')
    assert pgq.nearest_queue(session, 'ordres') == QUEUE
    assert pgq.last_tick_age(session, 'nope') is None
    database.execute("update pgq.tick set tick_time = tick_time - interval '1 hour'")
    age = pgq.last_tick_age(session, QUEUE)
    assert age is not None
    assert 3600 <= age < 3700
    pending = relay.consumer.pending()
    assert pending.lag >= 3600
    assert pending.seen < 100
    insert(database, 'the first of a queue is never counted')
    tick(database)
    relay.relay()
    insert(database, 'a', 'b')
    tick(database)
    assert relay.consumer.pending().events == 2


def test_a_database_without_pgq(postgres: PostgresServer, open_relay: Callable[..., Relay]) -> None:
    relay = open_relay(postgres.url('template1'))
    assert pgq.pgq_version(relay.control) is None
    assert pgq.mikkoo_schema_version(relay.control) is None


def test_a_user_without_any_right(database: Database, open_relay: Callable[..., Relay]) -> None:
    create_queue(database)
    relay = open_relay(database.producer_url)
    missing = pgq.missing_privileges(relay.control, QUEUE)
    user = f'producer_{database.name}'
    assert {text.partition(': ')[2] for text in missing} == {f'GRANT mikkoo_relay TO {user};'}
    assert f'mikkoo.move_retries(): GRANT mikkoo_relay TO {user};' in missing
    database.execute(f'grant mikkoo_relay to {user}')
    assert pgq.missing_privileges(relay.control, QUEUE) == []
