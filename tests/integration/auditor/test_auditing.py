"""What arrives is settled; what arrives otherwise, again, or from nowhere is counted, and named."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import pytest

from mikkoo.common.settings import BindingSettings
from tests.integration.auditor.conftest import PATIENCE, QUEUE, Audited
from tests.servers.waiting import until

HERE = (QUEUE, 'mikkoo')


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_what_the_relay_delivers_is_settled(audited: Audited, action: str) -> None:
    """Events as docs/mapping.md knows them: none of them differs from its record."""
    audited.auditor(action=action)
    audited.relay()
    audited.record('{"n": 1}', 'ü€😀', '', None, 'x' * 300_000, content_type='application/json')
    audited.record('plain', key='good.' + 'k' * 200)
    audited.record('a', content_type='text/a', properties='{"content_type": "text/b", "type": "t"}')
    audited.record('a', content_type='text/a', properties='{"content_type": null}')
    audited.record('a', content_type='', properties='{"content_type": 7}')
    audited.record('a', properties='{"content\\u005ftype": "escaped"}')
    audited.record('a', properties=f'{{"message_id": "{str(uuid.uuid4()).upper()}"}}')
    audited.await_counts({HERE: {'received': 11}})
    assert audited.outstanding() == set()
    assert audited.kept() == (0 if action == 'delete' else 11)
    assert audited.differences() == []
    [(low, high, total)] = audited.sql(
        'select sum(latency_total) / 11, max(latency_max), sum(latency_total) from mikkoo.audit_tally'
    )
    assert 0 < low <= high <= total < 11 * PATIENCE
    if action == 'mark':
        late = 'select count(*) from mikkoo.audit where received_at < published_at or received_at > now()'
        assert audited.sql(late) == [(0,)]
    audited.await_acknowledged()


@pytest.mark.parametrize('action', ['delete', 'mark'])
@pytest.mark.parametrize(
    ('field', 'changed'),
    [
        ('body', {'body': 'bodY'}),
        ('exchange', {'exchange': 'other'}),
        ('routing_key', {'key': 'good.not'}),
        ('routing_key', {'key': 'a\0b'}),
        ('content_type', {'content_type': 'text/html'}),
        ('content_type', {}),
    ],
)
def test_what_arrives_otherwise_is_kept_and_said(
    audited: Audited, action: str, field: str, changed: dict[str, Any]
) -> None:
    audited.channel.exchange_declare('other', 'topic')
    audited.auditor(action=action, bindings=(BindingSettings('mikkoo'), BindingSettings('other')))
    given = {} if not changed else {'content_type': 'text/plain'}
    wrong, right = (audited.make_record(content_type='text/plain') for _ in range(2))
    audited.publish(wrong, **{**given, **changed})
    audited.publish(right, content_type='text/plain')
    audited.await_counts({HERE: {'received': 2, 'differing': 1}})
    [(message_id, fields, exchange, key, content_type, size)] = audited.differences()
    assert (message_id, fields, size) == (wrong, [field], 4)
    assert exchange == changed.get('exchange', 'mikkoo')
    assert key == changed.get('key', 'good').replace('\0', '\\x00')
    assert content_type == changed.get('content_type', given.get('content_type'))
    body = changed.get('body', 'body').encode()
    assert audited.sql('select body_sha256 from mikkoo.audit_difference')[0][0].tobytes() == (
        hashlib.sha256(body).digest()
    )
    kept = audited.sql('select message_id::text, received_at is null from mikkoo.audit order by 1')
    assert kept == sorted((one, False) for one in ((wrong,) if action == 'delete' else (wrong, right)))
    audited.publish(wrong, **{**given, **changed})
    audited.await_counts({HERE: {'received': 2, 'differing': 1, 'duplicates': 1}})
    assert len(audited.differences()) == 1, 'the same difference once'


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_a_message_that_comes_again(audited: Audited, action: str) -> None:
    """In one batch, later, and later with another body, as a meddling consumer would put it back."""
    audited.auditor(action=action)
    message_id = audited.make_record()
    for _ in range(3):
        audited.publish(message_id)
    audited.await_counts({HERE: {'received': 1, 'duplicates': 2}})
    audited.publish(message_id)
    audited.await_counts({HERE: {'received': 1, 'duplicates': 3}})
    audited.publish(message_id, body='meddled')
    audited.await_counts({HERE: {'received': 1, 'duplicates': 4, 'differing': 1}})
    assert [row[:2] for row in audited.differences()] == [(message_id, ['body'])]


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_an_id_that_is_recorded_twice_has_to_arrive_twice(audited: Audited, action: str) -> None:
    audited.auditor(action=action)
    message_id = audited.make_record(age=2.0)
    audited.sql(
        """insert into mikkoo.audit (message_id, event_id, queue, exchange, routing_key, payload)
           select message_id, 2, queue, exchange, routing_key, payload from mikkoo.audit"""
    )
    audited.publish(message_id)
    audited.await_counts({HERE: {'received': 1}})
    assert audited.sql('select event_id from mikkoo.audit where received_at is null') == [(2,)]
    audited.publish(message_id)
    audited.await_counts({HERE: {'received': 2}})
    audited.publish(message_id)
    audited.await_counts({HERE: {'received': 2, 'duplicates': 1}})


def test_messages_without_a_record_are_counted_and_dropped(audited: Audited) -> None:
    audited.auditor()
    for message_id in (str(uuid.uuid4()), None, '', 'no UUID', 'a\0b'):
        audited.publish(message_id)
    audited.await_counts({('', 'mikkoo'): {'unknown': 1, 'unidentified': 4}})
    audited.await_acknowledged()


def test_a_rolled_back_transaction_leaves_nothing_to_wait_for(audited: Audited) -> None:
    audited.auditor()
    audited.relay()
    with audited.database.connect() as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute("select mikkoo.insert_audited_event(%s, 'mikkoo', 'good', 'b', null)", (QUEUE,))
        connection.rollback()
    connection.close()
    audited.record('after')
    audited.await_counts({HERE: {'received': 1}})
    assert audited.kept() == 0


def test_what_is_lost_stays_outstanding_and_is_late(audited: Audited) -> None:
    """The auditor's binding, taken away for a while: the injected losses, by their ids, and no others."""
    auditor = audited.auditor(grace=0.5)
    audited.relay()
    audited.record('one')
    audited.await_counts({HERE: {'received': 1}})
    audited.channel.queue_unbind('mikkoo.audit.proof', 'mikkoo', '#')
    lost = audited.record('two', 'three')
    audited.await_settled()
    audited.channel.queue_bind('mikkoo.audit.proof', 'mikkoo', '#')
    audited.record('four')
    audited.await_counts({HERE: {'received': 2}})
    assert audited.outstanding() == set(lost)
    [line] = auditor.await_log('2 records are older than 0.5 s')
    assert lost[0] in line
    until(lambda: (auditor.hear(), auditor.numbers.get('audit.late'))[1] == 2, PATIENCE, 'two are late')
    assert auditor.numbers['audit.outstanding'] == 2
    for message_id, body in zip(lost, ('two', 'three'), strict=True):
        audited.publish(message_id, body)
    auditor.await_log('no record is late any more')
    audited.await_counts({HERE: {'received': 4}})


def test_records_of_other_exchanges_are_not_waited_for(audited: Audited) -> None:
    auditor = audited.auditor(grace=0.1)
    audited.make_record(exchange='elsewhere', age=9.0)
    audited.make_record(exchange=None, age=9.0)
    audited.make_record(age=9.0)
    until(lambda: (auditor.hear(), auditor.numbers.get('audit.late'))[1] == 1, PATIENCE, 'one is late')
    assert auditor.numbers['audit.outstanding'] == 1


def test_what_is_old_is_pruned_and_what_never_came_expires_by_name(audited: Audited) -> None:
    ancient = audited.make_record(age=9_000.0)
    elsewhere = audited.make_record(exchange='elsewhere', age=9_000.0)
    fresh = audited.make_record()
    audited.make_record(age=9_000.0)
    audited.sql(
        "update mikkoo.audit set received_at = now() - interval '8000 s' where message_id <> all(%s::uuid[])",
        [ancient, elsewhere, fresh],
    )
    audited.sql(
        """insert into mikkoo.audit_tally (auditor, queue, exchange, hour)
           select name, queue, 'e', now() - age::interval
           from (values ('proof', 'gone', '3 h'), ('proof', 'going', '59 min'), ('other', 'kept', '3 h'))
               as given (name, queue, age)"""
    )
    audited.sql(
        """insert into mikkoo.audit_difference (message_id, auditor, queue, seen_at, fields, exchange,
               routing_key, body_sha256, body_size)
           select gen_random_uuid(), name, 'q', now() - n * interval '7000 s', '{body}', 'e', 'k', '', 0
           from generate_series(0, 2) as n, (values ('proof'), ('other')) as given (name)"""
    )
    auditor = audited.auditor(keep=40.0)  # prunes after 4 s
    [line] = auditor.await_log('never arrived')
    assert f'message {ancient} of queue events, exchange mikkoo' in line
    auditor.await_log('records expired: 1')
    assert audited.counts()[HERE] == {'expired': 1}
    assert audited.outstanding() == {elsewhere, fresh}
    assert audited.kept() == 2
    differences = 'select auditor, count(*) from mikkoo.audit_difference group by 1 order by 1'
    assert audited.sql(differences) == [('other', 3), ('proof', 1)], 'each auditor has its own `keep`'
    tallies = "select queue from mikkoo.audit_tally where exchange = 'e' order by 1"
    assert audited.sql(tallies) == [('going',), ('kept',)]
