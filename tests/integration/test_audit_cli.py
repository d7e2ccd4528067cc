"""`mikkood audit` on real databases: what it counts, names, shows, sends again, deletes and refuses.

Records are settled by the auditor's own code, without its process: that has tests of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mikkoo.auditor.compare import Memory
from mikkoo.auditor.settling import Settling
from mikkoo.common.audit_settle import Arrival, Records
from mikkoo.common.errors import Exit
from mikkoo.common.postgres import Session
from mikkoo.common.pulse import Pulse
from tests.integration.mikkood import Done
from tests.integration.readable import SCRIPT
from tests.servers.process import free_port

if TYPE_CHECKING:
    from tests.conftest import Database

Row = tuple[Any, ...]
AUDITOR = """{{postgres_url: "{url}", bindings: [{{exchange: ex}}], action: {action}, grace: 30}}"""
INSERT = """
    select mikkoo.insert_audited_event(%(queue)s, %(exchange)s, %(key)s, %(body)s, %(content_type)s,
        jsonb_build_object('message_id', %(id)s, 'priority', 3)::text, '{"h": 1}')
"""
GIVEN = {'queue': 'invoices', 'exchange': 'ex', 'key': 'a.key', 'body': 'body', 'content_type': None}
NOBODY = str(uuid.UUID(int=0))


class Shop:
    """A database with a queue, and a configuration with one auditor for it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.path = folder / 'mikkoo.yml'
        self.configure(shop=database.auditor_url)
        self.execute("select pgq.create_queue('invoices')")
        for key in ('ticker_max_lag', 'ticker_idle_period'):
            self.execute("select pgq.set_queue_config('invoices', %s, '0')", (key,))
        self.execute("select pgq.register_consumer('invoices', 'mikkoo')")

    def configure(self, action: str = 'delete', worker: str | None = None, **auditors: str) -> None:
        lines = ['Application:', '  workers:', *([] if worker else ['    {}'])]
        if worker:
            lines.append(f'    invoices: {{postgres_url: "{worker}"}}')
        lines.append('  auditors:' if auditors else '')
        lines += [f'    {name}: {AUDITOR.format(url=url, action=action)}' for name, url in auditors.items()]
        self.path.write_text('\n'.join(lines) + '\n')

    def execute(self, sql: str, parameters: object = None) -> list[Row]:
        return self.database.execute(sql, parameters)

    def record(self, age: float = 0, **changes: object) -> str:
        """An audited event that was published some seconds ago; its message_id."""
        message_id = str(uuid.uuid4())
        self.execute(INSERT, {**GIVEN, 'id': message_id, **changes})
        self.execute(
            "update mikkoo.audit set published_at = published_at - %s * interval '1 second'"
            ' where message_id = %s',
            (age, message_id),
        )
        return message_id

    def settle(self, *message_ids: str, action: Any = 'delete', **changes: str) -> None:
        """As the auditor `shop` does when these messages arrive."""
        with closing(Pulse()) as pulse:
            session = Session.connect(self.database.auditor_url, pulse, application_name='auditor')
            with closing(session):
                body = changes.get('body', 'body').encode()
                arrivals = [
                    Arrival(
                        message_id, changes.get('exchange', 'ex'), 'a.key', '',
                        hashlib.sha256(body).digest(), len(body), time.monotonic(),
                    )
                    for message_id in message_ids
                ]  # fmt: skip
                settling = Settling(Records(session, 'shop'), action, Memory(10))
                settling.run(arrivals, [], time.monotonic())

    def command(self, *arguments: str) -> list[str]:
        return [str(SCRIPT), '-c', str(self.path), 'audit', *arguments]

    def __call__(self, *arguments: str) -> Done:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    def said(self, *arguments: str, code: Exit = Exit.OK) -> str:
        """What a command prints that ends with this code, and without an error."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (code, ''), done
        return done.stdout

    def refused(self, *arguments: str, code: Exit = Exit.FAILURE) -> str:
        """Why a command was refused, nothing having changed."""
        before = self.stored()
        done = self(*arguments)
        assert done.returncode == code and 'a bug in' not in done.stderr, done
        assert self.stored() == before
        return done.stderr

    def report(self, *arguments: str, code: Exit = Exit.OK) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.said('report', '--json', *arguments, code=code))
        return answer

    def shown(self, message_id: str) -> dict[str, Any]:
        answer = json.loads(self.said('show', '--json', message_id))
        assert answer['message_id'] == message_id
        [found] = answer['found']
        assert found['database'].endswith(f'/{self.database.name}')
        return dict(found)

    def stored(self) -> list[list[Row]]:
        """All of the audit's tables."""
        tables = ('audit', 'audit_tally', 'audit_difference')
        return [self.execute(f'select * from mikkoo.{name} order by 1, 2') for name in tables]

    def counts(self) -> list[int]:
        return [len(rows) for rows in self.stored()]

    def tick(self) -> int:
        """The new tick."""
        [(tick,)] = self.execute("select pgq.ticker('invoices')")
        return int(tick)

    def batch(self) -> tuple[int | None, list[Row]]:
        """The next batch of the consumer mikkoo: its id and events (id, data, extra1, extra3)."""
        [(batch,)] = self.execute("select pgq.next_batch('invoices', 'mikkoo')")
        columns = 'ev_id, ev_type, ev_data, ev_extra1, ev_extra2, ev_extra3, ev_extra4'
        return batch, self.execute(
            f'select {columns} from pgq.get_batch_events(%s)', (batch,)
        ) if batch else []


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> Iterator[Shop]:
    yield Shop(database, tmp_path)


# Reporting


def test_nothing_was_recorded(shop: Shop) -> None:
    answer = shop.report()
    assert (answer['clean'], answer['groups'], answer['oldest_outstanding']) == (True, [], None)
    assert shop.said('report').startswith('audit clean: 0 recorded')


def test_all_that_is_counted(shop: Shop) -> None:
    """Deleted records are added from the counts; what waits within the grace is not late."""
    arrived = [shop.record(age=10), shop.record(age=20)]
    other = shop.record(queue='invoices', exchange='other')
    waiting = shop.record(age=5)
    shop.settle(*arrived)
    answer = shop.report()
    [group, second] = answer['groups']
    where = group['database']
    assert where.endswith(f'/{shop.database.name}')
    assert 14 < group.pop('latency_mean') < 60 and 19 < group.pop('latency_max') < 60
    assert group == {
        'database': where, 'queue': 'invoices', 'exchange': 'ex', 'auditors': ['shop'], 'recorded': 3,
        'received': 2, 'outstanding': 1, 'late': 0, 'differing': 0, 'duplicate': 0, 'expired': 0,
    }  # fmt: skip
    assert (second['exchange'], second['auditors'], second['outstanding']) == ('other', [], 1)
    assert second['latency_mean'] is None
    assert set(answer) == {
        'clean', 'queue', 'exchange', 'since', 'auditors', 'totals', 'groups', 'oldest_outstanding', 'late',
        'differing', 'failures',
    }  # fmt: skip
    assert answer['auditors'] == [
        {'database': where, 'name': 'shop', 'exchanges': ['ex'], 'grace': 30.0, 'action': 'delete'}
    ]
    assert (answer['totals']['recorded'], answer['totals']['received']) == (4, 2)
    oldest = answer['oldest_outstanding']
    assert (oldest['message_id'], oldest['queue'], oldest['routing_key']) == (waiting, 'invoices', 'a.key')
    assert 5 <= oldest['age'] < 60
    assert other not in str(answer['late']) and answer['clean'] is True


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_recorded_is_the_same_whatever_becomes_of_records(shop: Shop, action: str) -> None:
    shop.configure(action, shop=shop.database.auditor_url)
    shop.settle(shop.record(), shop.record(), action=action)
    shop.record()
    totals = shop.report()['totals']
    assert (totals['recorded'], totals['received'], totals['outstanding']) == (3, 2, 1)
    assert shop.counts()[0] == (1 if action == 'delete' else 3)


def test_what_is_late_is_named_and_ends_with_1(shop: Shop) -> None:
    late = [shop.record(age=50), shop.record(age=40)]
    shop.record(age=1)
    answer = shop.report(code=Exit.FAILURE)
    assert answer['clean'] is False and answer['totals']['late'] == 2
    assert [one['message_id'] for one in answer['late']] == late
    text = shop.said('report', code=Exit.FAILURE)
    assert text.startswith('audit NOT CLEAN: 3 recorded, 0 received, 3 outstanding, 2 late\n')
    assert text.index(late[0]) < text.index(late[1])


def test_the_grace_is_that_of_the_exchange_s_auditor(shop: Shop) -> None:
    """30 s for what is bound; what is not has the longest of them."""
    slow = AUDITOR.format(url=shop.database.auditor_url, action='mark')
    slow = slow.replace('exchange: ex', 'exchange: slow').replace('grace: 30', 'grace: 1h')
    shop.path.write_text(f'{shop.path.read_text()}    slow: {slow}\n')
    shop.record(age=300, exchange='slow')
    shop.record(age=300, exchange='nobody')
    assert shop.report()['totals']['late'] == 0
    shop.record(age=300)
    assert shop.report(code=Exit.FAILURE)['totals']['late'] == 1


def test_a_list_is_bounded_unless_all_is_asked_for(shop: Shop) -> None:
    for _ in range(22):
        shop.record(age=90)
    answer = shop.report(code=Exit.FAILURE)
    assert (len(answer['late']), answer['totals']['late']) == (20, 22)
    assert 'and 2 more: --all' in shop.said('report', code=Exit.FAILURE)
    assert len(shop.report('--all', code=Exit.FAILURE)['late']) == 22


def test_what_differs_is_named_and_ends_with_1(shop: Shop) -> None:
    changed = shop.record()
    shop.settle(changed, body='changed', exchange='elsewhere')
    answer = shop.report(code=Exit.FAILURE)
    [group] = answer['groups']
    assert (group['exchange'], group['received'], group['differing']) == ('ex', 1, 1)
    [differing] = answer['differing']
    assert (differing['message_id'], differing['auditor']) == (changed, 'shop')
    assert sorted(differing['fields']) == ['body', 'exchange']
    assert changed in shop.said('report', code=Exit.FAILURE)


def test_what_expired_ends_with_1(shop: Shop) -> None:
    shop.execute(
        "insert into mikkoo.audit_tally values ('shop', 'invoices', 'ex', date_trunc('hour', now()),"
        ' 5, 2, 0, 3, 0, 0, 2.5, 1.5)'
    )
    totals = shop.report(code=Exit.FAILURE)['totals']
    assert (totals['recorded'], totals['expired'], totals['duplicate']) == (8, 3, 2)
    assert (totals['latency_mean'], totals['latency_max']) == (0.5, 1.5)


def test_messages_without_a_record_are_counted(shop: Shop) -> None:
    shop.settle(str(uuid.uuid4()), str(uuid.uuid4()))
    answer = shop.report('--queue', 'invoices')
    assert (answer['totals']['unknown'], answer['totals']['unidentified'], answer['groups']) == (2, 0, [])
    assert 'without a record: 2 with an unknown message_id, 0 with none' in shop.said('report')


def test_filters(shop: Shop) -> None:
    shop.execute("select pgq.create_queue('orders')")
    shop.record(age=7200, queue='orders', exchange=None)
    shop.settle(shop.record())
    assert [group['queue'] for group in shop.report('--queue', 'invoices')['groups']] == ['invoices']
    [default] = shop.report('--exchange', '', code=Exit.FAILURE)['groups']
    assert (default['queue'], default['exchange'], default['late']) == ('orders', '', 1)
    assert shop.report('--exchange', 'ex')['totals']['recorded'] == 1
    assert shop.report('--since', '1 h')['totals']['recorded'] == 1
    assert shop.report('--since', '3h', code=Exit.FAILURE)['totals']['recorded'] == 2
    assert shop.report('--since', '2999-01-01')['totals']['recorded'] == 0
    assert shop.report('--since', '2000-01-01T00:00Z', code=Exit.FAILURE)['totals']['recorded'] == 2


def test_nobody_audits(shop: Shop) -> None:
    """The workers' databases are read, and 60 s are the grace; a relay's login has to be let in."""
    shop.configure(worker=shop.database.relay_url)
    shop.record(age=59)
    login = f'relay_{shop.database.name}'
    done = shop('report')
    assert done.returncode == Exit.UNAVAILABLE
    assert 'not asked: ' in done.stdout and f'GRANT mikkoo_auditor TO {login};' in done.stdout
    shop.execute(f'grant mikkoo_auditor to {login}')
    assert shop.report('--exchange', 'ex')['auditors'] == []
    late = shop.record(age=61)
    text = shop.said('report', code=Exit.FAILURE)
    assert 'nobody audits' in text and late in text


def test_two_auditors_of_one_database_are_asked_once(shop: Shop) -> None:
    shop.configure(shop=shop.database.auditor_url, second=f'{shop.database.auditor_url}?connect_timeout=9')
    text = shop.path.read_text()
    shop.path.write_text('exchange: other'.join(text.rsplit('exchange: ex', 1)))
    shop.record()
    answer = shop.report()
    assert [one['name'] for one in answer['auditors']] == ['shop', 'second']
    assert answer['totals']['outstanding'] == 1


def test_a_database_that_cannot_be_reached(shop: Shop) -> None:
    """The others are told all the same; what is known to be wrong there wins."""
    gone = f'postgresql://x:geheim@127.0.0.1:{free_port()}/x'
    shop.configure(gone=gone, shop=shop.database.auditor_url)
    shop.record()
    done = shop('report', '--json')
    assert done.returncode == Exit.UNAVAILABLE
    answer = json.loads(done.stdout)
    assert answer['clean'] is False and answer['totals']['outstanding'] == 1
    assert '127.0.0.1' in answer['failures'][0] and 'geheim' not in done.stdout
    assert shop('report').stdout.startswith('audit UNKNOWN: 1 recorded')
    for command in (['show', NOBODY], ['resend', NOBODY], ['prune', '--received', '--yes']):
        assert '127.0.0.1' in shop.refused(*command, code=Exit.UNAVAILABLE)
    shop.record(age=100)
    assert shop('report').returncode == Exit.FAILURE


def test_a_database_without_the_audit(shop: Shop) -> None:
    shop.execute('delete from mikkoo.schema_version where version > 4')
    done = shop('report')
    assert done.returncode == Exit.UNAVAILABLE and 'the audit needs version 5' in done.stdout


# Showing one event


def test_all_of_one(shop: Shop) -> None:
    message_id = shop.record(body='first\nsecond\x07')
    found = shop.shown(message_id)
    [record] = found['records']
    [(event_id,)] = shop.execute('select event_id from mikkoo.audit')
    assert (record['event_id'], record['queue'], record['exchange']) == (event_id, 'invoices', 'ex')
    assert (record['payload'], record['received_at']) == ('first\nsecond\x07', None)
    [copy] = found['copies']
    assert (copy['event_id'], copy['consumer'], copy['until']) == (event_id, None, None)
    assert found['differences'] == found['dead_letters'] == found['retries'] == []
    text = shop.said('show', message_id)
    assert 'first\nsecond\\x07\n' in text
    assert 'not recorded: outstanding for' in text and ': no tick yet (the last is ' in text
    for name, nothing in (('difference', 'none'), ('retry queue', 'not there'), ('dead letter', 'none')):
        assert f'\n  {name:15} {nothing}\n' in text


def test_the_batch_of_an_event_and_who_has_passed_it(shop: Shop) -> None:
    shop.execute("select pgq.register_consumer('invoices', 'slow')")
    before = shop.tick()
    message_id = shop.record()
    tick = shop.tick()
    shop.tick()

    def seen() -> dict[str, tuple[str, int | None]]:
        [copy] = shop.shown(message_id)['copies']
        assert (copy['after'], copy['until']) == (before, tick)
        return {one['consumer']: (one['state'], one['batch']) for one in copy['readers']}

    assert seen() == {'mikkoo': ('to come', None), 'slow': ('to come', None)}
    while not (batch := shop.batch())[1]:
        shop.execute('select pgq.finish_batch(%s)', (batch[0],))
    assert seen()['mikkoo'] == ('in its batch', batch[0])
    shop.execute('select pgq.finish_batch(%s)', (batch[0],))
    assert seen() == {'mikkoo': ('passed', None), 'slow': ('to come', None)}
    text = shop.said('show', message_id)
    assert f'behind tick {before}, up to tick {tick}; consumer mikkoo: passed; consumer slow: to come' in text


def test_an_event_that_is_retried_and_given_up(shop: Shop) -> None:
    message_id = shop.record()
    shop.tick()
    while not (batch := shop.batch())[1]:
        shop.execute('select pgq.finish_batch(%s)', (batch[0],))
    [(event_id, *_)] = batch[1]
    shop.execute('select pgq.event_retry(%s, %s, 0)', (batch[0], event_id))
    [retry] = shop.shown(message_id)['retries']
    assert (retry['queue'], retry['event_id'], retry['consumer']) == ('invoices', event_id, 'mikkoo')
    shop.execute('select pgq.finish_batch(%s)', (batch[0],))
    shop.execute('select pgq.maint_retry_events()')
    found = shop.shown(message_id)
    assert found['retries'] == [] and len(found['copies']) == 2
    [again] = [copy for copy in found['copies'] if copy['consumer'] == 'mikkoo']
    assert (again['attempt'], again['until']) == (1, None)
    shop.execute(
        'insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts,'
        ' reason_code, reason, first_failed_at) values'
        " ('invoices', 'mikkoo', %s, now(), 1, 10, 'returned', '312 NO_ROUTE', now())",
        (event_id,),
    )
    [letter] = shop.shown(message_id)['dead_letters']
    assert (letter['attempts'], letter['reason_code']) == (10, 'returned')
    assert 'returned: 312 NO_ROUTE' in shop.said('show', message_id)


def test_a_dead_letter_whose_record_is_gone(shop: Shop) -> None:
    """It is found by the message_id in its properties, however that is written."""
    message_id = shop.record()
    [(event_id,)] = shop.execute('delete from mikkoo.audit returning event_id')
    shop.execute(
        'insert into mikkoo.dead_letter (queue, consumer, event_id, event_time, event_txid, attempts,'
        ' properties, reason_code, reason, first_failed_at) values'
        " ('invoices', 'mikkoo', %s, now(), 1, 10, %s, 'returned', '', now())",
        (event_id, json.dumps({'message_id': message_id.upper()})),
    )
    found = shop.shown(message_id)
    assert (found['records'], len(found['dead_letters']), len(found['copies'])) == ([], 1, 1)
    text = shop.said('show', message_id)
    assert '\n  record          not recorded: never made, or deleted on arrival or by age\n' in text


def test_a_receipt_and_a_difference(shop: Shop) -> None:
    message_id = shop.record(age=5)
    shop.settle(message_id, body='changed')
    found = shop.shown(message_id)
    [difference] = found['differences']
    assert (difference['fields'], difference['body_size']) == (['body'], 7)
    assert difference['body_sha256'] == hashlib.sha256(b'changed').hexdigest()
    assert found['records'][0]['received_at'] is not None and found['records'][0]['age'] >= 5
    text = shop.said('show', message_id)
    assert '+00:00, after 5.' in text and difference['body_sha256'] in text


def test_one_that_is_stored_nowhere(shop: Shop) -> None:
    assert f'nothing is stored of {NOBODY} in ' in shop.refused('show', NOBODY)
    assert shop('show', '--json', NOBODY).stdout == ''


# Sending again


def test_an_event_is_sent_again_as_it_was(shop: Shop) -> None:
    message_id = shop.record(age=100, content_type='text/plain')
    [(first,)] = shop.execute('select event_id from mikkoo.audit')
    said = shop.said('resend', message_id)
    [(second, received, age)] = shop.execute(
        'select event_id, received_at, extract(epoch from now() - published_at)::float8 from mikkoo.audit'
    )
    assert second > first and received is None and 0 <= age < 60
    assert said.endswith(f'{message_id} is inserted again as event {second}\n')
    shop.tick()
    _, events = shop.batch()
    assert [event[0] for event in events] == [first, second]
    assert events[0][1:] == events[1][1:]
    assert json.loads(events[1][5])['message_id'] == message_id
    assert shop.report()['totals']['late'] == 0
    assert [copy['event_id'] for copy in shop.shown(message_id)['copies']] == [second]


def test_a_received_record_is_outstanding_again(shop: Shop) -> None:
    message_id = shop.record()
    shop.settle(message_id, action='mark')
    assert shop.report()['totals']['outstanding'] == 0
    shop.said('resend', message_id.upper())
    assert shop.report()['totals']['outstanding'] == 1


def test_a_record_by_new_audit_record_is_sent_with_its_message_id(shop: Shop) -> None:
    """Its properties may not have it."""
    message_id = str(uuid.uuid4())
    for properties in (None, '', '{"type": "t"}'):
        shop.execute('delete from mikkoo.audit')
        shop.execute(
            "select mikkoo.new_audit_record(%s, 1, 'invoices', null, 'key', null, null, %s, null)",
            (message_id, properties),
        )
        shop.said('resend', message_id)
    shop.tick()
    sent = [json.loads(event[5]) for event in shop.batch()[1]]
    assert sent == [{'message_id': message_id}] * 2 + [{'type': 't', 'message_id': message_id}]


def test_several_are_sent_all_or_none(shop: Shop) -> None:
    first, second = shop.record(), shop.record()
    said = shop.refused('resend', first, NOBODY, str(uuid.UUID(int=1)))
    assert f'{NOBODY} has no record in ' in said and str(uuid.UUID(int=1)) in said
    assert first not in said and said.endswith('nothing was done\n')
    shop.execute("select pgq.drop_queue('invoices', true)")
    assert 'PgQ has no queue "invoices"' in shop.refused('resend', first)
    shop.execute("select pgq.create_queue('invoices')")
    assert shop.said('resend', second, first, second).count('is inserted again') == 2


def test_an_auditor_s_login_may_insert_by_records_only(shop: Shop) -> None:
    """What `resend` takes is one function; it gives no way to events of one's own."""
    connection = shop.database.connect(f'auditor_{shop.database.name}')
    with closing(connection), connection.cursor() as cursor:
        for sql in (
            "select mikkoo.insert_event('invoices', '', 'k', 'x', null)",
            'insert into mikkoo.audit (message_id, event_id, queue, routing_key)'
            " values (gen_random_uuid(), 1, 'invoices', 'k')",
            "update mikkoo.audit set payload = 'x'",
            "select pgq.insert_event('invoices', 'k', 'x')",
        ):
            with pytest.raises(Exception, match='permission denied'):
                cursor.execute(sql)
        cursor.execute('select * from mikkoo.resend_audited(%s)', (NOBODY,))
        assert cursor.fetchall() == []


# Pruning


def test_records_are_deleted_by_age(shop: Shop) -> None:
    old, new = shop.record(age=7200), shop.record()
    shop.settle(shop.record(), action='mark')
    shop.execute("update mikkoo.audit set received_at = received_at - interval '2 h'")
    assert 'nothing matches' in shop.said('prune', '--before', '1 d', '--yes')
    said = shop.said('prune', '--before', '1 h', '--yes')
    phrase = '1 received and 1 outstanding record, 0 differences, 0 hours of counts'
    assert f': {phrase}\n' in said and f': deleted {phrase}\n' in said
    assert [row[0] for row in shop.stored()[0]] == [new] and old != new


def test_all_kinds_go_where_none_is_chosen(shop: Shop) -> None:
    """The counts too: so what has expired, and was seen to, leaves the report."""
    shop.record()
    shop.settle(shop.record(), body='changed')
    shop.execute('update mikkoo.audit_tally set expired = 1')
    shop.report(code=Exit.FAILURE)
    shop.said('prune', '--before', '0s', '--yes')
    assert shop.counts() == [0, 0, 0]
    shop.report()


def test_an_hour_goes_when_it_is_over(shop: Shop) -> None:
    shop.execute(
        'insert into mikkoo.audit_tally (auditor, queue, exchange, hour)'
        " select 'shop', 'q', 'e', date_trunc('hour', now()) - n * interval '1 h'"
        ' from generate_series(0, 3) as n'
    )
    shop.execute("create table moment as select date_trunc('hour', now()) - interval '30 min' as at")
    [(moment,)] = shop.execute("select (at at time zone 'UTC')::text || '+00:00' from moment")
    shop.said('prune', '--before', moment, '--yes')
    assert shop.execute(
        "select count(*) from mikkoo.audit_tally, moment where hour > at - interval '1 h'"
    ) == [(2,)]
    assert shop.counts()[1] == 2


@pytest.mark.parametrize(('kind', 'left'), [('--received', [1, 1, 1]), ('--outstanding', [1, 1, 1])])
def test_one_kind_of_records(shop: Shop, kind: str, left: list[int]) -> None:
    shop.settle(shop.record(), body='changed')
    waiting = shop.record()
    shop.said('prune', kind, '--yes')
    assert shop.counts() == left
    assert (str(shop.stored()[0][0][0]) == waiting) is (kind == '--received')


def test_by_id_with_its_difference(shop: Shop) -> None:
    """What was seen to leaves the report."""
    changed, kept = shop.record(), shop.record()
    shop.settle(changed, kept, body='changed')
    assert f'{NOBODY} has no record in ' in shop.refused('prune', changed, NOBODY, '--yes')
    said = shop.said('prune', changed, '--yes')
    assert 'deleted 1 received and 0 outstanding records, 1 difference, 0 hours of counts' in said
    answer = shop.report(code=Exit.FAILURE)
    assert [one['message_id'] for one in answer['differing']] == [kept]
    shop.said('prune', kept, '--yes')
    assert shop.report()['totals']['received'] == 2


def test_a_question_before_more_than_one_goes(shop: Shop) -> None:
    shop.record()
    shop.record()
    assert 'give --yes' in shop.refused('prune', '--outstanding', code=Exit.USAGE)
    for answer, code, left in (('n', Exit.FAILURE, 2), ('y', Exit.OK, 0)):
        ours, theirs = pty.openpty()
        with os.fdopen(ours, 'w') as terminal:
            terminal.write(f'{answer}\n')
            terminal.flush()
            done = subprocess.run(
                shop.command('prune', '--outstanding'),
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=60,
            )
            os.close(theirs)
        assert (done.returncode, shop.counts()[0]) == (code, left)
        assert 'Delete them? [y/N]' in done.stdout
    assert ('nothing was done' in done.stdout) is False
    shop.record()
    assert shop.said('prune', '--outstanding').count('0 received and 1 outstanding record,') == 2


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['prune', '--yes'], 'give MESSAGE_IDs, --before'),
        (['prune', NOBODY, '--received'], 'give either MESSAGE_IDs, or'),
        (['prune', NOBODY, '--before', '1 h'], 'give either MESSAGE_IDs, or'),
        (['prune', '--received', '--outstanding'], 'not allowed with'),
        (['show', 'nonsense'], "'nonsense' is no message_id"),
        (['resend'], 'MESSAGE_ID'),
        (['report', '--since', 'soon'], "'soon' is neither a duration"),
        ([], 'ACTION'),
    ],
)
def test_wrong_usage(shop: Shop, arguments: list[str], said: str) -> None:
    assert said in shop.refused(*arguments, code=Exit.USAGE)


def test_a_broken_configuration(shop: Shop) -> None:
    shop.path.write_text('Application: {workers: {x: {nonsense: 1}}}')
    assert 'nonsense' in shop.refused('report', code=Exit.CONFIG)
    shop.path.write_text('Application: {workers: {}}')
    assert 'neither an auditor nor a worker' in shop.refused('report')
