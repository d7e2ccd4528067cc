"""The audit's word: an injected fault is named by its message_id, nothing else is, and a crash is no loss."""

from __future__ import annotations

import json
import random
import signal
import uuid
from contextlib import closing
from typing import Any

import pytest

from mikkoo.common.errors import Exit
from mikkoo.common.settings import BindingSettings
from tests.integration.auditor.conftest import AUDIT_QUEUE, Audited
from tests.integration.product import ARRIVAL, Product, bodies
from tests.integration.relaying import QUEUE, Worker
from tests.servers.waiting import until

GOOD = 300
SEED = 'audit'  # of the crashes
TURNS = 10
AT_ONCE = 10_000  # events of a turn
RECOVERY = 180.0  # seconds until all is settled after the last crash; some ten on an idle machine


def start(product: Product, action: str) -> None:
    """A daemon with a worker and an auditor: `shop` is audited, and bound to the queue `alpha`."""
    product.create_queue('alpha')
    product.arrivals('alpha', 'shop')
    product.worker('alpha')
    product.auditor('proof', 'shop', grace=1, action=action)
    product.run()


def insert(product: Product, *numbers: int) -> list[str]:
    """Audited events {"n": number}; their message_ids."""
    ids = [str(uuid.uuid4()) for _ in numbers]
    product.sql(
        """select mikkoo.insert_audited_event('alpha', 'shop', 'k', format('{"n": %%s}', n), 'text/json',
               jsonb_build_object('message_id', id)::text, null) from unnest(%s, %s) as given (n, id)""",
        list(numbers), ids,
    )  # fmt: skip
    return ids


def report(product: Product) -> tuple[int, dict[str, Any]]:
    done = product('audit', 'report', '--json', '--all')
    return done.returncode, json.loads(done.stdout)


def await_totals(product: Product, **expected: int) -> dict[str, Any]:
    """Until the report counts so; the report."""

    def counted() -> dict[str, Any] | None:
        answer = report(product)[1]
        totals = answer['totals']
        return answer if {name: totals[name] for name in expected} == expected else None

    found = until(counted, ARRIVAL, lambda: f'{expected}, not {report(product)}', interval=0.2)
    assert found is not None
    return found


def shown(product: Product, message_id: str) -> dict[str, Any]:
    done = product('audit', 'show', '--json', message_id)
    assert done.returncode == Exit.OK, done
    [found] = json.loads(done.stdout)['found']
    return dict(found)


@pytest.mark.parametrize('action', ['delete', 'mark'])
def test_every_injected_fault_is_named_and_nothing_else(product: Product, action: str) -> None:
    """Lost, changed, doubled and rolled back, among others; then each is mended, and the report is clean."""
    start(product, action)
    insert(product, *range(GOOD))
    clean = await_totals(product, recorded=GOOD, received=GOOD, outstanding=0, duplicate=0)
    assert (clean['clean'], clean['totals']['unknown'], clean['totals']['unidentified']) == (True, 0, 0)

    product.channel.queue_unbind('mikkoo.audit.proof', 'shop', '#')
    lost = insert(product, 1001, 1002, 1003)
    product.until_settled()
    product.channel.queue_bind('mikkoo.audit.proof', 'shop', '#')
    rolled_back = roll_back(product)
    changed, doubled = meddle(product, *insert(product, 2001, 2002))

    answer = await_totals(product, recorded=GOOD + 5, received=GOOD + 2, late=3, differing=1, duplicate=2)
    totals = answer['totals']
    assert report(product)[0] == Exit.FAILURE and answer['clean'] is False
    assert {one['message_id'] for one in answer['late']} == set(lost)
    assert [(one['message_id'], one['fields']) for one in answer['differing']] == [(changed, ['body'])]
    assert (totals['outstanding'], totals['expired'], totals['unknown']) == (3, 0, 0)
    said = product('audit', 'report').stdout
    assert said.startswith('audit NOT CLEAN: 305 recorded, 302 received, 3 outstanding, 3 late, 1 differing')
    assert all(message_id in said for message_id in (*lost, changed)) and doubled not in said

    for message_id in lost:
        found = shown(product, message_id)
        [record], [copy] = found['records'], found['copies']
        assert record['received_at'] is None and found['differences'] == []
        assert [(one['consumer'], one['state']) for one in copy['readers']] == [('mikkoo', 'passed')]
    found = shown(product, changed)
    assert len(found['records']) == (0 if action == 'delete' else 1)
    assert [(one['auditor'], one['fields']) for one in found['differences']] == [('proof', ['body'])]
    assert product('audit', 'show', rolled_back).returncode == Exit.FAILURE

    assert product('audit', 'resend', *lost).returncode == Exit.OK
    assert product('audit', 'prune', changed, '--yes').returncode == Exit.OK
    mended = await_totals(product, outstanding=0, late=0, differing=0, expired=0, duplicate=2)
    assert (mended['clean'], mended['totals']['received']) == (True, GOOD + 5)
    assert report(product)[0] == Exit.OK
    arrived = [body['n'] for body in bodies(product.take('alpha'))]
    assert sorted(set(arrived)) == [*range(GOOD), 1001, 1002, 1003, 2001, 2002]


def roll_back(product: Product) -> str:
    """An audited event whose transaction is rolled back; its message_id."""
    connection = product.database.connect()
    connection.autocommit = False
    with connection.cursor() as cursor:
        cursor.execute("select mikkoo.insert_audited_event('alpha', 'shop', 'k', '{\"n\": 0}', null)")
        cursor.execute('select message_id::text from mikkoo.audit where event_id = %s', cursor.fetchone())
        [message_id] = cursor.fetchone() or ()
    connection.rollback()
    connection.close()
    return str(message_id)


def meddle(product: Product, changed: str, doubled: str) -> tuple[str, str]:
    """A consumer takes these two from its queue and publishes them again, the first with another body."""
    wanted = {changed, doubled}
    with closing(product.rabbitmq.connect(product.vhost)) as broker:
        channel = broker.channel()
        for _, properties, body in channel.consume('alpha', inactivity_timeout=ARRIVAL):
            assert properties is not None, f'{wanted} do not come'
            if properties.message_id in wanted:
                wanted.remove(properties.message_id)
                again = body + b' ' if properties.message_id == changed else body
                channel.basic_publish('shop', 'k', again, properties)
            if not wanted:
                break  # what it took goes back to the queue
    return changed, doubled


def test_crashes_at_random_moments_lose_no_event_of_100_000(audited: Audited) -> None:
    """The relay, the auditor, or both, killed in each turn; at the end all is counted, and once."""
    chance = random.Random(SEED)
    makers = {'relay': audited.relay, 'auditor': audited.auditor}
    running: dict[str, Worker] = {name: make() for name, make in makers.items()}
    for turn in range(TURNS):
        audited.sql(
            """select count(mikkoo.insert_audited_event(%s, 'mikkoo', 'good', format('{"n": %%s}', n),
                   'application/json')) from generate_series(%s, %s) as n""",
            QUEUE, turn * AT_ONCE + 1, (turn + 1) * AT_ONCE,
        )  # fmt: skip
        audited.tick()
        received = int(AT_ONCE * (turn + chance.random()))
        until(lambda n=received: count(audited) >= n, RECOVERY, f'{received} are received', interval=0.005)  # type: ignore[misc]
        for name in chance.choice([('relay',), ('auditor',), ('relay', 'auditor')]):
            running[name].stop(signal.SIGKILL)
            running[name] = makers[name]()

    until(lambda: count(audited) == TURNS * AT_ONCE, RECOVERY, lambda: f'all, not {audited.counts()}')
    audited.await_settled()
    audited.await_acknowledged()
    code, answer = audited.report()
    totals = answer['totals']
    assert (code, answer['clean'], answer['late'], answer['differing']) == (Exit.OK, True, [], [])
    assert (totals['recorded'], totals['received']) == (TURNS * AT_ONCE, TURNS * AT_ONCE)
    names = ('outstanding', 'late', 'differing', 'expired', 'unidentified')
    assert not any(totals[name] for name in names), totals
    assert audited.queued() >= TURNS * AT_ONCE, 'the consumer has them too'
    assert audited.queued(AUDIT_QUEUE) == audited.kept() == 0
    assert audited.sql('select count(*) from mikkoo.dead_letter') == [(0,)]


@pytest.mark.parametrize(('key', 'arrives'), [('#', True), ('good.#', False)])
def test_what_only_the_audit_s_queue_gets_counts_as_routed(audited: Audited, key: str, arrives: bool) -> None:
    """So docs/audit.md says to bind it by no more than what the real queues are bound by."""
    audited.auditor(bindings=(BindingSettings('mikkoo', key),))
    audited.relay(max_failures=1)
    [nowhere, good] = [*audited.record('body', key='bad'), *audited.record('body')]
    audited.await_counts({(QUEUE, 'mikkoo'): {'received': 1 + arrives}})
    audited.await_settled()
    dead = audited.sql("select reason_code, properties::json ->> 'message_id' from mikkoo.dead_letter")
    assert dead == ([] if arrives else [('returned', nowhere)])
    assert audited.outstanding() == (set() if arrives else {nowhere})
    assert [properties.message_id for _, properties, _ in audited.take()] == [good]


def count(audited: Audited) -> int:
    """Records that the auditor has settled so far."""
    [(received,)] = audited.sql('select coalesce(sum(received), 0) from mikkoo.audit_tally')
    return int(received)
