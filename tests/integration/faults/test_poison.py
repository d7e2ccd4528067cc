"""Fault group 6: events that cannot be delivered, among 20,000 good ones, which all arrive at once."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pytest

from tests.integration.faults.traffic import EXCHANGE, POISON_EVERY, PRODUCE, QUEUE, SETTLED, Traffic
from tests.integration.mikkood import proc
from tests.integration.product import Product
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

GOOD = 20_000
SLICES = 1_000  # of the good events; bad ones are between them
MAX_FAILURES = 2
WINDOW = 1_000  # confirm_window, the default
LARGEST = 200_000_000  # bytes
MEMORY = 150_000  # KiB of the worker, at most; 55,000 without bad events
ARRIVE = 500.0  # seconds; half a minute on an idle machine where a thousand channels are closed
BROKER_LIMIT = 20_000  # bytes, set at the broker: Mikkoo cannot know of it

Record = Callable[[str, object], None]

CLOSED = re.compile(
    r"Channel error on connection [^\n]*vhost: '([^']*)'[^\n]*\n[^\n]*operation (\S+) caused a channel"
)
INSERT = """select pgq.insert_event(%s, 'poison.' || %s, repeat('x', %s), %s, null, %s, %s)"""
DEAD = """
    select split_part(routing_key, '.', 2), count(*), min(reason_code), max(reason_code), min(attempts),
        max(attempts), array_agg(distinct reason)
    from mikkoo.dead_letter where starts_with(routing_key, 'poison.') group by 1
"""


class Poison(NamedTuple):
    """What is wrong with an event, and which dead letter it becomes. '{}' in the exchange: a number."""

    reason: str  # how it begins
    attempts: int = 1
    key: str = ''  # more of the routing key
    size: int = 10
    exchange: str = EXCHANGE
    properties: str | None = None
    headers: str | None = None


BAD = {
    'properties': Poison('untranslatable: ev_extra3: is not JSON: ', properties='{"priority": '),
    'headers': Poison('untranslatable: ev_extra4: is not JSON: ', headers='no JSON'),
    'integer': Poison(
        f'untranslatable: ev_extra4: the integer {2**70} needs more than 64 bits', headers=f'{{"n": {2**70}}}'
    ),
    'key': Poison('untranslatable: ev_type: has 300 bytes, and may have 255', key='.' + 289 * 'k'),
    'exchange': Poison("refused 404: NOT_FOUND - no exchange 'nowhere.", 2, exchange='nowhere.{}'),
    'user': Poison(
        "untranslatable: ev_extra3.user_id: is 'me', and the login is 'guest'",
        2,
        properties='{"user_id": "me"}',
    ),
    'expiration': Poison(
        "untranslatable: ev_extra3.expiration: is 'soon', and has to be", properties='{"expiration": "soon"}'
    ),
    'priority': Poison(
        'untranslatable: ev_extra3.priority: is 300, and has to be', properties='{"priority": 300}'
    ),
}
LARGE = {
    'large': Poison(f'untranslatable: event: a text of {LARGEST:,} bytes, not shown here', size=LARGEST),
}
TOO_LARGE_HERE = {
    'refused': Poison('refused 406: PRECONDITION_FAILED - message size ', size=BROKER_LIMIT + 1),
}
HARMLESS = {
    'nul': Poison('', headers='{"text": "a\\u0000b", "n\\u0000me": "x"}'),
    'array': Poison('', headers='["JSON", "but no object"]'),
}


def insert(product: Product, poison: dict[str, Poison], number: int) -> None:
    for name, bad in poison.items():
        exchange = bad.exchange.replace('{}', str(number))
        product.sql(INSERT, QUEUE, name + bad.key, bad.size, exchange, bad.properties, bad.headers)


def among_good_ones(product: Product, poison: dict[str, Poison], count: int) -> None:
    """In one transaction 20,000 good events and, evenly between them, `count` of each bad one."""
    product.sql('begin')
    for number in range(SLICES):
        product.sql(PRODUCE, GOOD // SLICES, QUEUE, EXCHANGE, POISON_EVERY)
        if number % (SLICES // count) == SLICES // count // 2:
            insert(product, poison, number)
    product.sql('commit')


def until_good_ones_arrive(flow: Traffic, record: Record) -> None:
    """All that are committed by now."""
    start = time.monotonic()
    rows = flow.product.sql('select n from produced where n %% %s <> 0', POISON_EVERY)
    wanted = {n for (n,) in rows}
    assert len(wanted) > GOOD * 0.9
    until(lambda: wanted <= flow.recorder.counts().keys(), ARRIVE, 'every good event arrives', 0.1)
    record('good events have arrived', f'{time.monotonic() - start:.1f} s')


def check_dead(product: Product, poison: dict[str, Poison], counts: Mapping[str, int]) -> None:
    """Each bad event is a dead letter, after as many attempts as it deserves, with its reason."""
    found = {name: row for name, *row in product.sql(DEAD)}
    assert {name: row[0] for name, row in found.items()} == counts
    for name, bad in poison.items():
        _, *facts, reasons = found[name]
        code = bad.reason.split()[0].strip(':')
        assert facts == [code, code, bad.attempts, bad.attempts], name
        assert all(reason.startswith(bad.reason) for reason in reasons), (name, reasons[:3])


def closed_channels(rabbitmq: RabbitServer, vhost: str) -> Counter[str]:
    """The operations over which the broker closed a channel, by its own log."""
    files = (rabbitmq.folder / 'log').glob('*.log')
    text = '\n'.join(file.read_text(errors='replace') for file in files)
    return Counter(operation for where, operation in CLOSED.findall(text) if where == vhost)


def numbers(product: Product, *names: str) -> list[int]:
    return [product.children()[QUEUE]['numbers'].get(name, 0) for name in names]


@pytest.mark.parametrize('count', [1, 1_000])
def test_what_can_be_refused_beforehand_closes_no_channel(
    product: Product, traffic: Callable[..., Traffic], record_property: Record, count: int
) -> None:
    """One of 200 MB; a thousand would be more disk than a test may take."""
    flow = traffic(max_failures=MAX_FAILURES, retry_delay=600)
    product.arrivals('harmless', EXCHANGE, 'poison.#')
    product.run()
    flow.flows()
    among_good_ones(product, BAD | HARMLESS, count)
    insert(product, LARGE, 0)
    until_good_ones_arrive(flow, record_property)

    retried = [name for name, bad in BAD.items() if bad.attempts > 1]
    waiting = [(len(retried) * count,)]
    until(lambda: product.sql('select count(*) from pgq.retry_queue') == waiting, SETTLED, 'retries wait')
    product.sql('update pgq.retry_queue set ev_retry_after = now()')  # else due in ten minutes
    until(lambda: product.sql('select pgq.maint_retry_events()') == [(0,)], SETTLED, 'they come back')
    flow.finish(repeats=0)

    check_dead(product, BAD | LARGE, dict.fromkeys(BAD, count) | {'large': 1})
    assert Counter(method.routing_key for method, _, _ in product.take('harmless')) == {
        f'poison.{name}': count for name in HARMLESS
    }
    # Whether an exchange exists only the broker knows. It is asked on a channel of its own.
    assert closed_channels(product.rabbitmq, product.vhost) == {'exchange.declare': count}
    assert numbers(product, 'amqp.connected', 'amqp.lost', 'repeats') == [1, 0, 0]
    assert int(proc(product.pids()[QUEUE])['VmHWM'].split()[0]) < MEMORY


@pytest.fixture
def small_messages(rabbitmq: RabbitServer) -> Iterator[None]:
    """A broker whose max_message_size is small, on channels that are opened from now on."""
    setting = 'ok = application:set_env(rabbit, max_message_size, {}).'
    before = rabbitmq.ctl('eval', '{ok, Size} = application:get_env(rabbit, max_message_size), Size.')
    rabbitmq.ctl('eval', setting.format(BROKER_LIMIT))
    yield
    rabbitmq.ctl('eval', setting.format(int(before)))


@pytest.mark.usefixtures('small_messages')
@pytest.mark.parametrize('count', [1, 1_000])
def test_what_only_the_broker_can_know(
    product: Product, traffic: Callable[..., Traffic], record_property: Record, count: int
) -> None:
    """It closes the channel over each, and the neighbours arrive."""
    flow = traffic(max_failures=1, rate=50)
    product.run()
    flow.flows()
    among_good_ones(product, TOO_LARGE_HERE, count)
    until_good_ones_arrive(flow, record_property)
    tally = flow.finish(repeats=GOOD)
    check_dead(product, TOO_LARGE_HERE, {'refused': count})
    closed = closed_channels(product.rabbitmq, product.vhost)
    record_property('channels closed', str(dict(closed)))
    # Repeated is what was stored before a bad one and not yet confirmed. Then all in flight are sent one by
    # one, so that each bad one closes a channel on which nothing else is.
    while_in_flight = closed['basic.publish'] - count
    assert while_in_flight >= 1 and closed.keys() == {'basic.publish'}
    assert tally.repeats <= while_in_flight * min(WINDOW, 3 * GOOD // count)
    assert numbers(product, 'amqp.connected', 'amqp.lost') == [1, 0]
