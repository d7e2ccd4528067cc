"""Rule R12: stopping, from everywhere, and what is left behind: nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mikkoo.connector import ConsumerThread
from tests.integration.connector.conftest import PATIENCE, Stage
from tests.integration.connector.test_consuming import Collector, nothing
from tests.servers.proxy import Proxy
from tests.servers.waiting import until
from tests.unit.amqp_peer import open_files

CYCLES = int(os.environ.get('MIKKOO_CYCLES', '2000'))


def test_r12_the_message_in_hand_is_finished_the_others_go_back(stage: Stage) -> None:
    """W20."""
    got, inside = Collector(), threading.Event()

    def handle(*given: Any) -> None:
        inside.set()
        threading.Event().wait(0.5)
        got(*given)

    stage.fill('q', *(b'%d' % n for n in range(30)))
    service = stage.service()
    service.register_consumer('a', None, 'q', handle)
    assert service.run_consumers(timeout=PATIENCE)
    assert inside.wait(PATIENCE)
    service.stop()
    assert len(got.calls) == 1
    assert not service.consumers['a'].is_alive()
    rest = stage.take('q', 29)
    assert [body for _, _, body in rest] == [b'%d' % n for n in range(1, 30)]


def test_r12_idle_consumers_stop_at_once_and_together(stage: Stage) -> None:
    """W17: five seconds for each, one after another."""
    service = stage.service()
    for n in range(8):
        service.register_consumer(f'c{n}', None, f'q{n}', nothing)
    assert service.run_consumers(timeout=PATIENCE)
    started = time.monotonic()
    service.stop_consumers()
    assert time.monotonic() - started < 3 * 1.0
    service.stop()
    service.stop_consumers(['c1'])


def test_r12_the_timeout_is_for_all_together_and_late_ones_end_by_themselves(stage: Stage) -> None:
    go = threading.Event()

    def handle(*given: Any) -> None:
        assert go.wait(PATIENCE)

    service = stage.service()
    for n in range(4):
        stage.fill(f'q{n}', b'x')
        service.register_consumer(f'c{n}', None, f'q{n}', handle)
    assert service.run_consumers(timeout=PATIENCE)
    until(lambda: all(stage.queued(f'q{n}') == 0 for n in range(4)), PATIENCE, 'all are busy')
    started = time.monotonic()
    service.stop_consumers(timeout=1.0)
    assert 0.9 < time.monotonic() - started < 3 * 1.0
    go.set()
    until(lambda: not [t for t in service.consumers.values() if t.is_alive()], PATIENCE, 'all end')
    for n in range(4):
        stage.settled(f'q{n}')


@pytest.mark.parametrize('way', ['thread.stop', 'thread.join', 'stop_consumers', 'stop'])
@pytest.mark.parametrize('place', ['callback', 'error handler'])
def test_r12_from_a_callback_and_from_an_error_handler(stage: Stage, way: str, place: str) -> None:
    """W18."""
    service = stage.service()
    ended: list[float] = []

    def stop() -> None:
        thread = service.consumers['a']
        started = time.monotonic()
        calls: dict[str, Callable[[], object]] = {
            'thread.stop': thread.stop, 'thread.join': thread.join,
            'stop_consumers': service.stop_consumers, 'stop': service.stop,
        }  # fmt: skip
        calls[way]()
        ended.append(time.monotonic() - started)

    def handle(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if place == 'callback':
            stop()
        else:
            raise RuntimeError('for the handler')

    stage.fill('q', b'a', b'b')
    service.register_consumer('a', None, 'q', handle, lambda thread, exception: stop())
    assert service.run_consumers(timeout=PATIENCE)
    until(lambda: not service.consumers['a'].is_alive(), PATIENCE, 'it has ended')
    assert len(ended) == 1
    assert ended[0] < 3
    bodies = [body for _, _, body in stage.take('q', 1 if place == 'callback' else 2)]
    assert bodies == ([b'b'] if place == 'callback' else [b'a', b'b'])


@pytest.mark.parametrize('when', ['before the start', 'refused', 'stalled while connecting', 'stalled'])
def test_r12_at_once_wherever_it_waits(stage: Stage, proxy: Proxy, when: str) -> None:
    thread = ConsumerThread(stage.service(proxy.port).get_connection_params(), 'q', nothing)
    if when == 'before the start':
        thread.stop()
        thread.join()
        thread.start()
    elif when == 'refused':
        proxy.refuse()
        thread.start()
        threading.Event().wait(1)
    elif when == 'stalled while connecting':
        proxy.stall()
        thread.start()
        until(lambda: proxy.connections, PATIENCE, 'it connects')
    else:
        thread.start()
        assert thread.wait_ready(PATIENCE)
        proxy.stall()
    started = time.monotonic()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert time.monotonic() - started < (3 * 5.0 if when == 'stalled' else 3 * 1.0)
    assert thread.exception is None
    proxy.resume()


def test_r12_stalled_while_subscribing(stage: Stage, proxy: Proxy) -> None:
    """The broker does not answer a call: a stop does not wait for the call's deadline."""
    thread = ConsumerThread(stage.service(proxy.port).get_connection_params(), 'q', nothing)
    for amount in (600, 700, 800):
        proxy.throttle(amount)
        thread = thread.renewed()
        thread.start()
        threading.Event().wait(1.0)
        started = time.monotonic()
        thread.join(PATIENCE)
        assert time.monotonic() - started < 3 * 5.0
        assert not thread.is_alive()
    proxy.throttle(0)


def test_stopping_leaves_the_broker_without_consumer_and_connection(stage: Stage) -> None:
    thread = stage.thread('q', nothing)
    connection = stage.connection()
    connection.channel().queue_declare('q')
    thread.join(PATIENCE)
    connection.close()
    connection.close()

    def gone() -> bool:
        listed = stage.rabbitmq.ctl('list_connections', 'vhost')
        return stage.vhost not in listed

    until(gone, PATIENCE, 'no connection is left', 0.2)

    def told() -> list[str]:
        return [line for line in stage.rabbitmq.log().splitlines() if f"vhost: '{stage.vhost}'" in line]

    until(lambda: len([line for line in told() if 'closing' in line]) >= 2, PATIENCE, 'both ends are logged')
    assert not [line for line in told() if '[warning]' in line], 'nobody left without a word'
    assert 'q\t0' in stage.rabbitmq.ctl('list_queues', '--vhost', stage.vhost, 'name', 'consumers')


def test_a_context_manager_hides_nothing(stage: Stage) -> None:
    service = stage.service()
    service.register_consumer('a', None, 'q', nothing)
    with pytest.raises(KeyError, match='mine'), service as entered:
        assert entered is service
        assert service.check_health()
        raise KeyError('mine')
    assert not service.consumers['a'].is_alive()


def test_many_cycles_leave_no_thread_no_socket_and_no_descriptor(
    stage: Stage, record_property: Callable[[str, object], None]
) -> None:
    service, got = stage.service(), Collector()
    service.register_consumer('a', None, 'q', got)

    def cycle() -> None:
        assert service.run_consumers(timeout=PATIENCE)
        service.stop_consumers(timeout=PATIENCE)
        with service.create_mq_connection() as connection:
            connection.channel().basic_publish('', 'q', b'x')

    cycle()
    threads, files = threading.active_count(), open_files()
    for _ in range(CYCLES):
        cycle()
    assert threading.active_count() == threads, threading.enumerate()
    assert open_files() == files
    assert service.run_consumers(timeout=PATIENCE)
    got.wait(CYCLES + 1)
    stage.settled('q')
    record_property('cycles', CYCLES)


def test_cuts_leave_no_thread_no_socket_and_no_descriptor(stage: Stage, proxy: Proxy) -> None:
    thread = stage.thread('q', nothing, proxy.port)
    threads, files = threading.active_count(), open_files()
    for _ in range(10):
        proxy.cut()
        until(lambda: not thread.is_consuming, PATIENCE, 'lost')
        until(lambda: thread.is_consuming, PATIENCE, 'back')
    until(lambda: threading.active_count() <= threads, PATIENCE, lambda: str(threading.enumerate()))
    until(lambda: open_files() <= files, PATIENCE, 'no descriptor left')
