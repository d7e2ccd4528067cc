"""How fast mikkoo.audit takes records and gives them up, by how many are outstanding already.

python -m bench.audit_table [--sizes 0 1000000] [--layouts shipped] [--actions delete mark] [--json FILE]
    [--churn 1000000]

`--churn`: so many are inserted and settled at once, a batch after the other, autovacuum by PostgreSQL's
defaults; then what table and indexes take, and what they take when they are written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bench.report import machine
from mikkoo.auditor.compare import Memory
from mikkoo.auditor.settling import Settling
from mikkoo.common.audit_settle import Arrival, Records
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.servers.postgres import PostgresServer

BATCH = 500  # messages, as with a prefetch of 1,000
BODY = 'x' * 200
DIGEST = hashlib.sha256(BODY.encode()).digest()
LAYOUTS = {
    'shipped': '',
    'full index': """
        drop index mikkoo.audit_outstanding, mikkoo.audit_received;
        create index audit_published_at on mikkoo.audit (published_at)""",
    'fillfactor 80': 'alter table mikkoo.audit set (fillfactor = 80)',
}
FILL = """
    insert into mikkoo.audit (message_id, event_id, queue, exchange, routing_key, payload, published_at)
    select gen_random_uuid(), n, 'q', 'shop', 'k', %s, now() - interval '1 s' from generate_series(1, %s) as n
"""
MAKE = """
    select (mikkoo.new_audit_record(
        gen_random_uuid(), n, 'q', 'shop', 'k', %s, null, null, null)).message_id::text
    from generate_series(1, %s) as n
"""
INSERT = """
    select count(mikkoo.new_audit_record(gen_random_uuid(), n, 'q', 'shop', 'k', %s, null, null, null))
    from generate_series(1, %s) as n
"""
SIZES = """
    select pg_table_size('mikkoo.audit') / 1048576.0, pg_indexes_size('mikkoo.audit') / 1048576.0
"""
SIZE = "select pg_total_relation_size('mikkoo.audit') / 1048576.0"


@dataclass(frozen=True)
class Churn:
    """Sizes in MiB, of the table and of its indexes: after it all, and fresh."""

    layout: str
    action: str
    records: int
    table: float
    indexes: float
    fresh_table: float
    fresh_indexes: float


@dataclass(frozen=True)
class Run:
    """Rates a second; `look`: seconds to count what is outstanding and late; sizes in MiB."""

    layout: str
    action: str
    outstanding: int
    inserts: float
    settles: float
    look: float
    before: float
    after: float


def run(server: PostgresServer, layout: str, action: Literal['delete', 'mark'], size: int, rows: int) -> Run:
    """A database of its own; `rows` records are inserted and then settled, in an order of no meaning."""
    name = 'bench'
    url = server.create_database(name)
    try:
        if LAYOUTS[layout]:
            server.execute(LAYOUTS[layout], dbname=name)
        fill(server, name, size)
        pulse = Pulse()
        session = Session.connect(url, pulse, application_name='bench')
        inserting = time.perf_counter()
        for _ in range(rows // BATCH):
            session.execute(INSERT, (BODY, BATCH))
        inserting = time.perf_counter() - inserting
        arrivals = arriving(session, rows)
        [(before,)] = session.fetch(SIZE)
        records = Records(session, 'bench')
        settling = Settling(records, action, Memory(100_000))
        started = time.perf_counter()
        received = sum(settling.run(batch, (), time.monotonic()).sum('received') for batch in arrivals)
        took = time.perf_counter() - started
        assert received == rows // BATCH * BATCH
        looking = time.perf_counter()
        records.outstanding(['shop'], 60.0)
        looking = time.perf_counter() - looking
        [(after,)] = session.fetch(SIZE)
        session.close()
        pulse.close()
        return Run(
            layout, action, size, rows / inserting, received / took, looking, float(before), float(after)
        )
    finally:
        server.drop_database(name)


def churn(server: PostgresServer, layout: str, action: Literal['delete', 'mark'], count: int) -> Churn:
    """Each batch is settled before the next is inserted: few are outstanding at any time."""
    url = server.create_database('bench')
    pulse = Pulse()
    try:
        if LAYOUTS[layout]:
            server.execute(LAYOUTS[layout], dbname='bench')
        with closing(Session.connect(url, pulse, application_name='bench')) as session:
            settling = Settling(Records(session, 'bench'), action, Memory(100_000))
            for _ in range(count // BATCH):
                made = session.fetch(MAKE, (BODY, BATCH))
                settling.run([arrival(message_id) for (message_id,) in made], (), time.monotonic())
            [(table, indexes)] = session.fetch(SIZES)
            server.execute('vacuum full mikkoo.audit', dbname='bench')
            [(fresh_table, fresh_indexes)] = session.fetch(SIZES)
        return Churn(layout, action, count, *map(float, (table, indexes, fresh_table, fresh_indexes)))
    finally:
        pulse.close()
        server.drop_database('bench')


def fill(server: PostgresServer, name: str, size: int) -> None:
    """Outstanding records, before the indexes: that is quicker."""
    if size:
        definitions = server.execute(
            """select indexdef, indexname from pg_indexes
               where tablename = 'audit' and indexname <> 'audit_pkey'""",
            dbname=name,
        )
        server.execute('alter table mikkoo.audit drop constraint audit_pkey', dbname=name)
        for _, index in definitions:
            server.execute(f'drop index mikkoo.{index}', dbname=name)
        server.execute(FILL, (BODY, size), dbname=name)
        server.execute(
            'alter table mikkoo.audit add constraint audit_pkey primary key (message_id, published_at)',
            dbname=name,
        )
        for definition, _ in definitions:
            server.execute(definition, dbname=name)
        server.execute('vacuum analyze mikkoo.audit', dbname=name)
        server.execute('checkpoint', dbname=name)


def arriving(session: Session, rows: int) -> list[list[Arrival]]:
    """The newest records as messages, in batches."""
    ids = session.fetch(
        'select message_id::text from mikkoo.audit order by published_at desc, event_id limit %s', (rows,)
    )
    arrivals = [arrival(one) for (one,) in ids]
    return [arrivals[at : at + BATCH] for at in range(0, rows // BATCH * BATCH, BATCH)]


def arrival(message_id: str) -> Arrival:
    return Arrival(message_id, 'shop', 'k', '', DIGEST, len(BODY), time.monotonic())


def churned(options: argparse.Namespace) -> Iterator[Churn]:
    with PostgresServer(fsync=True, shared_buffers=options.shared_buffers) as server:
        for layout in options.layouts:
            for action in options.actions:
                yield churn(server, layout, action, options.churn)


def measured(options: argparse.Namespace) -> Iterator[Run]:
    with PostgresServer(fsync=True, shared_buffers=options.shared_buffers, max_wal_size='4GB') as server:
        for size in options.sizes:
            for layout in options.layouts:
                for action in options.actions:
                    yield run(server, layout, action, size, options.rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Inserting and settling audit records, by outstanding ones.')
    parser.add_argument('--sizes', type=int, nargs='+', default=[0, 1_000_000], help='outstanding records')
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=['shipped'])
    parser.add_argument('--actions', nargs='+', choices=('delete', 'mark'), default=['delete', 'mark'])
    parser.add_argument('--rows', type=int, default=50_000, help='records inserted and settled')
    parser.add_argument('--churn', type=int, help='instead: records to insert and settle at once')
    parser.add_argument('--shared-buffers', default='512MB', help="PostgreSQL's shared_buffers")
    parser.add_argument('--json', type=Path, help='write every run here')
    options = parser.parse_args(arguments)
    if options.churn:
        figures = {'churns': [asdict(one) for one in tabled(churned(options))]}
    else:
        figures = {'runs': [asdict(one) for one in rated(measured(options))]}
    if options.json:
        options.json.write_text(json.dumps({**machine(), **figures}, indent=1))


def tabled(churns: Iterator[Churn]) -> Iterator[Churn]:
    """The same, printed."""
    print(f'{"layout":14} {"action":7} {"records":>10} {"table MiB, fresh":>17} {"indexes MiB, fresh":>19}')
    for one in churns:
        sizes = f'{one.table:10.1f} {one.fresh_table:6.1f} {one.indexes:12.1f} {one.fresh_indexes:6.1f}'
        print(f'{one.layout:14} {one.action:7} {one.records:10,} {sizes}', flush=True)
        yield one


def rated(measured: Iterator[Run]) -> Iterator[Run]:
    """The same, printed, and whether they are fast enough."""
    print(
        f'{"layout":14} {"action":7} {"outstanding":>11} {"inserts/s":>9} {"settles/s":>9}'
        f' {"count s":>8} {"MiB":>11}'
    )
    slowest = float('inf')
    for one in measured:
        slowest = min(slowest, one.settles)
        print(
            f'{one.layout:14} {one.action:7} {one.outstanding:11,} {one.inserts:9,.0f} {one.settles:9,.0f}'
            f' {one.look:8.3f} {one.before:5.0f} {one.after:5.0f}',
            flush=True,
        )
        yield one
    print(f'10,000 settlements a second: {slowest:,.0f}, {"met" if slowest >= 10_000 else "missed"}')


if __name__ == '__main__':
    main()
