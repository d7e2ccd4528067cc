"""One record, or one message, that nobody can make sense of stops the audit of no other."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from mikkoo.common import amqp_methods as methods
from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.pulse import Pulse
from tests.integration.auditor.conftest import AUDIT_QUEUE, PATIENCE, QUEUE, Audited
from tests.servers.waiting import until

HERE = (QUEUE, 'mikkoo')
RANDOM_TEXT = "(select string_agg(md5(random()::text), '') from generate_series(1, 200))"
DEEP = 1000  # levels: the relay's reader of JSON takes 1,024, Python's own fewer


@pytest.mark.parametrize('action', ['delete', 'mark'])
@pytest.mark.parametrize('column', ['queue', 'exchange'])
def test_a_record_with_a_name_that_no_index_holds(audited: Audited, action: str, column: str) -> None:
    """As producers may make it by new_audit_record, with its arguments in the wrong order."""
    audited.auditor(action=action)
    wrong, right = audited.make_record(), audited.make_record()
    audited.sql(f'update mikkoo.audit set {column} = {RANDOM_TEXT} where message_id = %s', wrong)
    [(name,)] = audited.sql(f'select {column} from mikkoo.audit where message_id = %s', wrong)
    for message_id in (wrong, right):
        audited.publish(message_id)
    cut = (name[:255], 'mikkoo') if column == 'queue' else (QUEUE, name[:255])
    differing = {'differing': 1} if column == 'exchange' else {}
    audited.await_counts({HERE: {'received': 1}, cut: {'received': 1, **differing}})
    assert audited.outstanding() == set()
    audited.await_acknowledged()


def test_a_record_with_a_name_that_no_index_holds_expires(audited: Audited) -> None:
    ancient = audited.make_record(age=9_000.0)
    audited.sql(f'update mikkoo.audit set queue = {RANDOM_TEXT}')
    auditor = audited.auditor(keep=10.0)
    auditor.await_log(f'message {ancient} of queue')
    until(lambda: sum(one.get('expired', 0) for one in audited.counts().values()) == 1, PATIENCE, 'counted')


def test_properties_nested_as_deeply_as_the_relay_takes_them(audited: Audited) -> None:
    auditor = audited.auditor()
    audited.relay()
    deep = '[' * DEEP + ']' * DEEP
    audited.record('a', properties=f'{{"content_type": "text/a", "unknown": {deep}}}')
    audited.record('b')
    audited.await_counts({HERE: {'received': 2}})
    assert audited.differences() == []
    assert auditor.process.is_alive()


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_a_record_that_cannot_be_settled(audited: Audited, action: str) -> None:
    """Somebody's trigger refuses it, as bytes on a bad disk would. It stays, and so will be late."""
    auditor = audited.auditor(action=action)
    ids = [audited.make_record() for _ in range(20)]
    audited.sql(
        f"""create function refuse() returns trigger language plpgsql as $$ begin
            if old.message_id = '{ids[7]}' then
                raise exception 'no such thing' using errcode = 'data_exception';
            end if;
            return case tg_op when 'DELETE' then old else new end;
        end $$;
        create trigger refuse before update or delete on mikkoo.audit
            for each row execute function refuse()"""
    )
    for message_id in ids:
        audited.publish(message_id)
    audited.publish(None)
    audited.await_counts({HERE: {'received': 19}, ('', 'mikkoo'): {'unknown': 1, 'unidentified': 1}})
    assert audited.outstanding() == {ids[7]}
    [line] = auditor.await_log(f'message {ids[7]} cannot be settled')
    assert 'no such thing' in line
    audited.await_acknowledged()


def nested(levels: int) -> bytes:
    """Properties of AMQP whose only header is arrays in arrays: property flags, table."""
    value = b''
    for _ in range(levels):
        value = b'A' + struct.pack('>I', len(value)) + value
    header = b'\1h' + value
    return struct.pack('>HI', 0x2000, len(header)) + header


def test_a_message_whose_properties_cannot_be_read(audited: Audited) -> None:
    """It is dropped with those that have no message_id; the login that only audits could not bury it."""
    name = f'auditor_{audited.database.name}'
    audited.rabbitmq.ctl('add_user', name, 'secret')
    own = f'^{AUDIT_QUEUE}$'.replace('.', '\\.')
    audited.rabbitmq.ctl('set_permissions', '-p', audited.vhost, name, own, own, f'{own}|^mikkoo$')
    broker = audited.settings().rabbitmq
    try:
        audited.auditor(rabbitmq=replace(broker, username=name, password='secret'))
        link = SharedLink.open(broker, Pulse(), properties={}, timeout=PATIENCE)
        number, mailbox = link.open_mailbox()
        link.send(mailbox, methods.publish(number, 131_072, 'mikkoo', 'good', False, nested(5_000), b'body'))
        link.close()
        audited.publish(audited.make_record())
        audited.await_counts({HERE: {'received': 1}, ('', 'mikkoo'): {'unidentified': 1}})
        audited.await_acknowledged()
    finally:
        audited.rabbitmq.ctl('delete_user', name)
