"""RabbitMQ runs short of memory and blocks whoever publishes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.integration.faults.broker import (
    AT_ONCE,
    WINDOW,
    memory_alarm,
    nobody_failed,
    number,
    stays,
    until_number,
    until_shown,
    worker,
)
from tests.integration.faults.traffic import Traffic
from tests.integration.product import STOP, Product
from tests.servers.rabbitmq import RabbitServer

ALARM = 20.0  # seconds
TIMEOUT = 5.0  # confirm_timeout: shorter than the alarm


def test_an_alarm_is_waited_for(
    product: Product, traffic: Callable[..., Traffic], rabbitmq: RabbitServer
) -> None:
    """It is shown; nothing is given up for it, not even where it is longer than confirm_timeout."""
    flow = traffic(confirm_timeout=TIMEOUT)
    product.run()
    flow.flows()
    with memory_alarm(rabbitmq):
        until_shown(product, 'PAUSED', 'RabbitMQ is blocked', 'memory')
        shown = product('status')
        assert 'PAUSED' in shown.stdout and 'blocked' in shown.stdout, shown
        [child] = json.loads(product('status', '--json').stdout)['children']
        assert child['state'] == 'PAUSED' and 'blocked' in child['reason'], child
        stays(ALARM, lambda: worker(product)['state'] == 'PAUSED', product.logged)
    flow.flows_again('memory alarm of 20 s', time.time(), AT_ONCE)
    until_shown(product, 'RUNNING')
    until_number(product, 'amqp.blocked', 1)
    assert (number(product, 'amqp.connected'), number(product, 'amqp.lost')) == (1, 0)
    flow.finish(repeats=0)
    nobody_failed(product)


def test_a_stop_during_an_alarm_is_quick(
    product: Product, traffic: Callable[..., Traffic], rabbitmq: RabbitServer
) -> None:
    """A start during it waits, and goes on where the other left off."""
    flow = traffic()
    product.save()
    product.started()
    flow.flows()
    with memory_alarm(rabbitmq):
        until_shown(product, 'PAUSED', 'RabbitMQ is blocked')
        asked = time.monotonic()
        stopped = product('stop')
        assert (stopped.returncode, stopped.stderr) == (0, '') and time.monotonic() - asked < STOP, stopped
        assert not product.processes()
        product.started()
        until_shown(product, 'PAUSED', 'RabbitMQ is blocked')
    flow.flows_again('stop and start in a memory alarm', time.time(), AT_ONCE)
    flow.finish(repeats=WINDOW)
    nobody_failed(product)
