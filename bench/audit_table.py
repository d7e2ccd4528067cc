"""How fast mikkoo.audit takes records and gives them up, by how many are outstanding already.

python -m bench.audit_table [--sizes 0 1000000] [--layouts shipped] [--actions delete mark] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from bench.relay import machine
from mikkoo.auditor.compare import Memory
from mikkoo.auditor.settling import Settling
from mikkoo.common.audit_settle import Arrival, Records
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.servers.postgres import PostgresServer

BATCH = 500  # messages, as with a prefetch of 1,000
BODY = 'x' * 200
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
INSERT = """
    select count(mikkoo.new_audit_record(gen_random_uuid(), n, 'q', 'shop', 'k', %s, null, null, null))
    from generate_series(1, %s) as n
"""
SIZE = "select pg_total_relation_size('mikkoo.audit') / 1048576.0"


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
    digest = hashlib.sha256(BODY.encode()).digest()
    ids = session.fetch(
        'select message_id::text from mikkoo.audit order by published_at desc, event_id limit %s', (rows,)
    )
    arrivals = [Arrival(one, 'shop', 'k', '', digest, len(BODY), time.monotonic()) for (one,) in ids]
    return [arrivals[at : at + BATCH] for at in range(0, rows // BATCH * BATCH, BATCH)]


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
    parser.add_argument('--shared-buffers', default='512MB', help="PostgreSQL's shared_buffers")
    parser.add_argument('--json', type=Path, help='write every run here')
    options = parser.parse_args(arguments)
    print(
        f'{"layout":14} {"action":7} {"outstanding":>11} {"inserts/s":>9} {"settles/s":>9}'
        f' {"count s":>8} {"MiB":>11}'
    )
    runs = []
    for one in measured(options):
        runs.append(one)
        print(
            f'{one.layout:14} {one.action:7} {one.outstanding:11,} {one.inserts:9,.0f} {one.settles:9,.0f}'
            f' {one.look:8.3f} {one.before:5.0f} {one.after:5.0f}',
            flush=True,
        )
    slowest = min(run.settles for run in runs)
    print(f'10,000 settlements a second: {slowest:,.0f}, {"met" if slowest >= 10_000 else "missed"}')
    if options.json:
        options.json.write_text(json.dumps({**machine(), 'runs': [asdict(one) for one in runs]}, indent=1))


if __name__ == '__main__':
    main()
