"""The registry, the totals, and what reaches a statsd server by UDP."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mikkoo.common import lookup, metrics
from mikkoo.common.errors import MikkooError
from mikkoo.common.metrics import Metrics
from mikkoo.common.settings import StatsdSettings, Telemetry, telemetry_from_dict, telemetry_to_dict
from tests.servers.statsd import StatsdServer
from tests.servers.waiting import until

OPERATIONS = Path(__file__).parents[2] / 'docs' / 'operations.md'


@pytest.fixture
def server() -> Iterator[StatsdServer]:
    with StatsdServer() as server:
        yield server
    assert server.mistakes == []
    assert max(map(len, server.packets), default=0) < metrics.PACKET


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def flush_until(numbers: Metrics, condition: Callable[[], object], what: str) -> None:
    def flushed() -> object:
        numbers.flush()
        return condition()

    until(flushed, what=what)


def to(server: StatsdServer, host: str = '127.0.0.1') -> StatsdSettings:
    return StatsdSettings(enabled=True, host=host, port=server.port)


PROCESSES = {metrics.WORKER, metrics.AUDITOR, metrics.SUPERVISOR, metrics.CONNECTOR, metrics.EVERY}


def test_every_metric_is_registered_once_and_has_all_its_fields() -> None:
    assert len(metrics.REGISTRY) == len({id(metric) for metric in metrics.REGISTRY.values()}) > 20
    for metric in metrics.REGISTRY.values():
        assert metric.kind in {metrics.COUNTER, metrics.GAUGE, metrics.TIMING}
        assert metric.process in PROCESSES
        assert metric.unit
        assert metric.help
        assert metrics.named(metric.name) is metric


def test_the_documentation_lists_exactly_the_registry() -> None:
    rows = re.findall(r'^\| `([^`]+)` \| (\w+) \| (\w+) \| (\w+) \| (.+) \|$', OPERATIONS.read_text(), re.M)
    assert rows == [(m.name, m.kind, m.unit, m.process, m.help) for m in metrics.REGISTRY.values()]


def test_totals_are_kept_without_statsd() -> None:
    numbers = Metrics(StatsdSettings(), 'worker.test')
    numbers.count(metrics.PROCESSED)
    numbers.count(metrics.PROCESSED, 41)
    numbers.gauge(metrics.LAG, 1.5)
    numbers.timing(metrics.PGQ, 0.25, 'next_batch')
    numbers.timing(metrics.PGQ, 0.75, 'next_batch')
    totals = numbers.totals()
    assert totals['processed'] == 42
    assert totals['failed'] == 0
    assert totals['lag'] == 1.5
    assert totals['pgq.next_batch.count'] == 2
    assert totals['pgq.next_batch.mean'] == 0.5
    assert totals['pgq.next_batch.upper'] == 0.75
    assert 'reloads' not in totals
    assert numbers.due_at() == float('inf')


def test_an_unknown_metric_is_an_error() -> None:
    numbers = Metrics(StatsdSettings(), 'worker.test')
    stranger = metrics.Metric('stranger', metrics.COUNTER, 'events', metrics.WORKER, 'not in the registry')
    for wrong in (
        lambda: numbers.count(stranger),
        lambda: numbers.count(metrics.LAG),
        lambda: numbers.count(metrics.RELOADS),
        lambda: numbers.gauge(metrics.PROCESSED, 1),
        lambda: numbers.gauge(metrics.CHILDREN_RUNNING, 1),
        lambda: numbers.timing(metrics.PROCESSED, 1),
        lambda: numbers.timing(metrics.PGQ, 1),
        lambda: numbers.timing(metrics.LATENCY, 1, 'call'),
        lambda: metrics.named('stranger'),
    ):
        with pytest.raises(MikkooError):
            wrong()


def test_a_second_is_sent_in_aggregate(server: StatsdServer) -> None:
    clock = Clock()
    numbers = Metrics(to(server), 'worker.test', clock)
    for _ in range(5000):
        numbers.count(metrics.PROCESSED)
        numbers.gauge(metrics.IN_FLIGHT, _)
    assert not numbers.flush_due(clock.now + 0.9)
    clock.now += metrics.FLUSH_INTERVAL
    assert numbers.flush_due(clock.now)
    assert not numbers.flush_due(clock.now)
    numbers.count(metrics.PROCESSED, 2)
    numbers.close()
    until(lambda: len(server.named('mikkoo.worker.test.processed')) == 2, what='both counts')
    assert [s.value for s in server.named('mikkoo.worker.test.processed')] == [5000, 2]
    assert {s.value for s in server.named('mikkoo.worker.test.in_flight')} == {4999}
    assert server.named('mikkoo.worker.test.failed') == []
    assert len(server.packets) == 2


def test_a_flood_of_timings_is_a_few_values_that_state_their_rate(server: StatsdServer) -> None:
    numbers = Metrics(to(server), 'worker.test')
    for i in range(100_000):
        numbers.timing(metrics.LATENCY, i / 1000)
    numbers.timing(metrics.PGQ, 0.0125, 'finish_batch')
    numbers.close()
    until(lambda: server.named('mikkoo.worker.test.pgq.finish_batch'), what='the last timing')
    latency = server.named('mikkoo.worker.test.latency')
    assert len(latency) == metrics.SAMPLE
    assert server.total('mikkoo.worker.test.latency') == pytest.approx(100_000)
    assert max(s.value for s in latency) > 10_000  # not the first ten: milliseconds up to 100,000
    [call] = server.named('mikkoo.worker.test.pgq.finish_batch')
    assert (call.value, call.type, call.rate) == (12.5, 'ms', 1)
    assert len(server.packets) == 1


def test_many_metrics_are_split_into_packets(server: StatsdServer) -> None:
    numbers = Metrics(to(server), 'worker.' + 'long' * 20)
    for metric in metrics.REGISTRY.values():
        if metric.kind == metrics.COUNTER and metric.process in (metrics.WORKER, metrics.EVERY):
            numbers.count(metric, 10**12)
    for i in range(30):
        numbers.timing(metrics.PGQ, i, f'call{i}')
    numbers.close()
    until(lambda: len(server.samples) >= 40, what='all samples')
    assert len(server.packets) > 1


def test_names_are_made_fit_for_statsd(server: StatsdServer) -> None:
    settings = StatsdSettings(enabled=True, host='127.0.0.1', port=server.port, prefix='prod.eu-1/ä.')
    numbers = Metrics(settings, 'worker.my.queue:1|c @ö\n')
    numbers.count(metrics.AMQP_CONNECTED)
    numbers.close()
    until(lambda: server.samples, what='a sample')
    assert server.samples[0].name == 'prod.eu-1__.worker.my_queue_1_c____.amqp.connected'


def test_negative_and_small_gauges(server: StatsdServer) -> None:
    numbers = Metrics(to(server), 'worker.test')
    numbers.gauge(metrics.LAG, 0.0000001)
    numbers.gauge(metrics.PENDING_EVENTS, -1)
    numbers.close()
    until(lambda: len(server.samples) >= 3, what='three values')
    # A bare negative value is a decrement in statsd, so zero goes before it.
    assert [s.value for s in server.named('mikkoo.worker.test.pending_events')] == [0, -1]
    assert [s.value for s in server.named('mikkoo.worker.test.lag')] == [0]


def test_statsd_switched_on_moved_and_switched_off(server: StatsdServer) -> None:
    numbers = Metrics(StatsdSettings(), 'supervisor')
    numbers.count(metrics.RELOADS, 100)
    numbers.configure(to(server))
    numbers.count(metrics.RELOADS, 1)
    with StatsdServer() as other:
        numbers.configure(to(other))  # leaves what was counted with the old
        numbers.count(metrics.RELOADS, 2)
        numbers.configure(StatsdSettings())
        numbers.count(metrics.RELOADS, 4)
        numbers.flush()
        until(lambda: other.samples, what='a sample at the second server')
        assert [s.value for s in other.samples] == [2]
    until(lambda: server.samples, what='a sample at the first server')
    assert [s.value for s in server.samples] == [1]
    assert numbers.totals()['reloads'] == 107


def test_a_host_name_is_looked_up(server: StatsdServer) -> None:
    numbers = Metrics(to(server, 'localhost'), 'supervisor')
    numbers.count(metrics.RELOADS)
    numbers.flush()
    flush_until(numbers, lambda: server.samples, 'a sample')
    assert server.total('mikkoo.supervisor.reloads') == 1
    numbers.close()


def test_a_server_on_ipv6() -> None:
    with StatsdServer('::1') as server:
        numbers = Metrics(to(server, '::1'), 'supervisor')
        numbers.count(metrics.RELOADS)
        numbers.close()
        until(lambda: server.samples, what='a sample by IPv6')


def test_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(('127.0.0.1', 0))
        port = holder.getsockname()[1]
    numbers = Metrics(StatsdSettings(enabled=True, host='127.0.0.1', port=port), 'supervisor')
    for _ in range(3):
        numbers.count(metrics.RELOADS)
        numbers.flush()
    numbers.close()


def test_no_socket_to_be_had_is_told_once_and_tried_again(
    server: StatsdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = Metrics(to(server), 'supervisor')
    numbers.count(metrics.RELOADS)
    with monkeypatch.context() as patch:
        patch.setattr(socket, 'socket', _no_descriptor)
        numbers.flush()
        numbers.flush()
    assert caplog.text.count('no descriptor left') == 1
    numbers.close()
    until(lambda: server.total('mikkoo.supervisor.reloads') == 1, what='the count, late')


def _no_descriptor(*_: object, **__: object) -> object:
    raise OSError('no descriptor left')


def test_a_host_without_address_is_told_once_and_nothing_is_lost(
    server: StatsdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    numbers = Metrics(to(server, 'no-such-host.invalid'), 'supervisor', clock)
    for _ in range(3):  # three lookups, one warning
        numbers.count(metrics.RELOADS)
        numbers.flush()
        flush_until(numbers, lambda: lookups() == 0, 'the lookup to end')
        numbers.flush()
        clock.now += lookup.RESOLVE_RETRY
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 'no-such-host.invalid' in warning.getMessage()
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, *rest, **kw: real('127.0.0.1', *rest, **kw))
    flush_until(numbers, lambda: server.samples, 'a sample once the name has an address')
    assert server.total('mikkoo.supervisor.reloads') == 3
    flush_until(numbers, lambda: 'has an address again' in caplog.text, 'the good news')
    numbers.close()


def test_an_address_that_changes_is_followed(
    server: StatsdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    real, addresses = socket.getaddrinfo, ['127.0.0.2', '127.0.0.1']

    def fake(host: str, *rest: int, **kw: int) -> object:
        if host != 'statsd.example':
            return real(host, *rest, **kw)
        if kw.get('flags'):
            raise socket.gaierror('not numeric')
        if not addresses:
            raise socket.gaierror('the name server is out')
        return real(addresses.pop(0), *rest, **kw)

    monkeypatch.setattr(socket, 'getaddrinfo', fake)
    numbers = Metrics(to(server, 'statsd.example'), 'supervisor', clock)
    for _ in range(3):  # the second address is the listener's; at the third time the old one is kept
        numbers.flush()
        flush_until(numbers, lambda: lookups() == 0, 'the lookup to end')
        numbers.flush()
        clock.now += lookup.RESOLVE_EVERY
    numbers.count(metrics.RELOADS, 7)
    numbers.flush()
    until(lambda: server.total('mikkoo.supervisor.reloads') == 7, what='a count at the new address')
    numbers.close()


def test_a_lookup_that_hangs_blocks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, real = threading.Event(), socket.getaddrinfo

    def hanging(*of: Any, **kw: Any) -> object:
        if not kw.get('flags'):
            hang.wait()
        return real(*of, **kw)

    monkeypatch.setattr(socket, 'getaddrinfo', hanging)
    numbers = Metrics(StatsdSettings(enabled=True, host='localhost', port=9), 'supervisor')
    started = time.monotonic()
    for _ in range(100):
        numbers.count(metrics.RELOADS)
        numbers.flush()
    numbers.close()
    assert time.monotonic() - started < 0.3  # 0.1 s, with slack
    assert lookups() == 1
    hang.set()
    until(lambda: lookups() == 0, what='the lookup to end')


def test_telemetry_crosses_the_pipe_unchanged() -> None:
    telemetry = Telemetry(StatsdSettings(True, 'h', 1, 'p'), 'https://k@sentry.example/1', {'': 20}, 2.5)
    assert telemetry_from_dict(telemetry_to_dict(telemetry)) == telemetry
    assert telemetry_from_dict(telemetry_to_dict(Telemetry())) == Telemetry()


def lookups() -> int:
    """How many are under way."""
    return sum(thread.name == 'statsd address' for thread in threading.enumerate())
