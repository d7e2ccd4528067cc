"""Fault group 7: what Mikkoo reports to is full, unknown or hangs. The relay goes on, and stops in time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mikkoo.common.errors import Exit
from tests.integration.faults.traffic import QUEUE, Traffic
from tests.integration.mikkood import proc
from tests.integration.product import ARRIVAL, SAVE, STOP, Product
from tests.servers.sentry import SentryServer
from tests.servers.statsd import StatsdServer
from tests.servers.waiting import until

RATE = 500.0  # events a second; one in fifty is a dead letter, which is logged and reported
ROUNDS = 50  # times that an event is inserted, and waited for, during a fault
PROMPT = 3 * 5.0  # seconds until it arrives; a fraction of one on an idle machine
GROWTH = 10_000  # KiB of a process during a fault

Record = Callable[[str, object], None]


@pytest.fixture
def flow(product: Product, traffic: Callable[..., Traffic]) -> Traffic:
    """Traffic through a daemon that runs."""
    made = traffic(rate=RATE)
    product.run()
    made.flows()
    return made


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with SentryServer() as server:
        yield server


def goes_on(flow: Traffic, record: Record) -> None:
    """Event after event arrives, the processes are the same, and they do not grow."""
    product = flow.product
    pids = {**product.pids(), 'supervisor': product.status()['pid']}
    before = {name: memory(pid) for name, pid in pids.items()}
    started = time.monotonic()
    for _ in range(ROUNDS):
        flow.flows(PROMPT)
    record('a round during the fault', f'{(time.monotonic() - started) / ROUNDS:.2f} s')
    growth = {name: memory(pid) - before[name] for name, pid in pids.items()}
    record('growth', f'{growth} KiB')
    assert max(growth.values()) < GROWTH, growth
    assert {**product.pids(), 'supervisor': product.status()['pid']} == pids
    assert numbers(product)['amqp.connected'] == 1


def memory(pid: int) -> int:
    """KiB resident."""
    return int(proc(pid)['VmRSS'].split()[0])


def numbers(product: Product) -> dict[str, float]:
    found: dict[str, float] = product.children()[QUEUE]['numbers']
    return found


def stops_in_time(flow: Traffic) -> None:
    flow.producer.stop()
    started = time.monotonic()
    assert flow.product('stop').returncode == Exit.OK
    assert time.monotonic() - started < STOP


def test_the_disk_of_the_log_is_full(
    product: Product, traffic: Callable[..., Traffic], tmp_path: Path, record_property: Record
) -> None:
    """/dev/full refuses every write as a full disk does; as root or not."""
    flow = traffic(rate=RATE)
    log, product.log = product.log, tmp_path / 'name-of-the-log'
    product.log.symlink_to(log)
    supervisor = product.run()
    product.log = log
    flow.flows()

    point(tmp_path / 'name-of-the-log', Path('/dev/full'), supervisor)
    until(lambda: 'No space left' in product.status()['log_failure'], ARRIVAL, 'the failure is shown')
    goes_on(flow, record_property)
    lost = product.status()['metrics']['log.dropped']
    assert lost > ROUNDS
    flow.flows_again('full disk of the log', time.time(), PROMPT)

    point(tmp_path / 'name-of-the-log', tmp_path / 'new.log', supervisor)
    until(lambda: 'it becomes a dead letter' in (tmp_path / 'new.log').read_text(), ARRIVAL, 'it is logged')
    point(tmp_path / 'name-of-the-log', Path('/dev/full'), supervisor)
    flow.finish(repeats=0)
    stops_in_time(flow)


def point(link: Path, target: Path, supervisor: int) -> None:
    """Make the log's name mean another file, and have it opened, as logrotate does."""
    target.touch()
    new = link.with_suffix('.link')
    new.symlink_to(target)
    new.replace(link)
    os.kill(supervisor, signal.SIGHUP)
    until(lambda: target in opened(supervisor), SAVE, 'it is open')


def opened(pid: int) -> set[Path]:
    return {Path(os.readlink(entry)) for entry in Path(f'/proc/{pid}/fd').iterdir() if entry.is_symlink()}


def test_the_host_of_statsd_does_not_resolve(
    product: Product, flow: Traffic, record_property: Record
) -> None:
    product.application['statsd'] = {'enabled': True, 'host': 'no-such-host.invalid'}
    product.save()
    product.until_logged("statsd host 'no-such-host.invalid' has no address", ARRIVAL)
    goes_on(flow, record_property)
    with StatsdServer() as statsd:
        product.application['statsd'] |= {'host': '127.0.0.1', 'port': statsd.port}
        product.save()
        until(lambda: statsd.total(f'mikkoo.worker.{QUEUE}.processed') > 0, ARRIVAL, 'statsd is told')
        flow.flows_again('statsd host without address', time.time(), PROMPT)
        product.application['statsd'] |= {'host': 'no-such-host.invalid'}
        product.save()
        flow.finish(repeats=0)
        stops_in_time(flow)


def test_sentry_hangs(product: Product, flow: Traffic, sentry: SentryServer, record_property: Record) -> None:
    """It takes the report of the first dead letters, and never answers."""
    sentry.hang()
    product.application['sentry_dsn'] = sentry.dsn
    product.save()
    until(lambda: sentry.requests, ARRIVAL, 'a report is on its way')
    goes_on(flow, record_property)
    assert sentry.events == []
    flow.flows_again('Sentry hangs', time.time(), PROMPT)
    flow.finish(repeats=0)
    stops_in_time(flow)
