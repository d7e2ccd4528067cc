"""The kinds of faults: what each does to the stage, for how long, and how many events it may repeat."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from bench.chaos_stage import AUDITOR_LOGIN, EXTRA, LOGIN, NAME, WATERMARK, Stage
from tests.integration.faults.traffic import EXCHANGE, QUEUE
from tests.servers.proxy import Proxy, Side

NOTHING = 0
WINDOW = 1_000  # in flight: what a lost link or a closed channel repeats at most
A_KILL = 3_000  # a window and a saving interval: what a killed worker or a lost database repeats at most

Act = Callable[[Stage, random.Random], AbstractContextManager[None]]


@dataclass(frozen=True)
class Kind:
    """`place`: two faults of one place are not at work at once. `seconds`: shortest and longest duration."""

    place: str
    act: Act
    bound: int
    seconds: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0


# Processes


@contextmanager
def worker_killed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.kill(stage.worker_pid())
    yield


@contextmanager
def auditor_killed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.kill(stage.auditor_pid())
    yield


@contextmanager
def auditor_stopped(stage: Stage, chance: random.Random) -> Iterator[None]:
    with _stopped(stage.auditor_pid()):
        yield


@contextmanager
def supervisor_killed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.kill(stage.product.pid)
    yield
    stage.product.started()


@contextmanager
def both_killed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.kill(stage.product.pid, stage.worker_pid(), stage.auditor_pid())
    yield
    stage.product.started()


@contextmanager
def worker_stopped(stage: Stage, chance: random.Random) -> Iterator[None]:
    """Past the 30 s of silence it is killed."""
    with _stopped(stage.worker_pid()):
        yield


@contextmanager
def supervisor_stopped(stage: Stage, chance: random.Random) -> Iterator[None]:
    with _stopped(stage.product.pid):
        yield


@contextmanager
def _stopped(pid: int | None) -> Iterator[None]:
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)
    yield
    if pid is not None:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass  # killed for its silence


@contextmanager
def daemon_restarted(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.command('stop')
    yield
    stage.product.started()


@contextmanager
def reloaded(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.command('reload')
    yield


@contextmanager
def window_edited(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.product.workers[QUEUE]['confirm_window'] = chance.randint(50, WINDOW)
    stage.product.save()
    yield


@contextmanager
def worker_added(stage: Stage, chance: random.Random) -> Iterator[None]:
    """And removed."""
    stage.product.workers[EXTRA] = stage.product.workers[QUEUE]
    stage.product.save()
    yield
    del stage.product.workers[EXTRA]
    stage.product.save()


# The way to a server


def link_kinds(name: str, proxy: Callable[[Stage], Proxy], bound: int) -> dict[str, Kind]:
    """What a network does, on the way to one of the servers."""

    @contextmanager
    def cut(stage: Stage, chance: random.Random) -> Iterator[None]:
        proxy(stage).cut(reset=False)
        yield

    @contextmanager
    def reset(stage: Stage, chance: random.Random) -> Iterator[None]:
        proxy(stage).cut()
        yield

    @contextmanager
    def refused(stage: Stage, chance: random.Random) -> Iterator[None]:
        proxy(stage).refuse()
        proxy(stage).cut()
        yield
        proxy(stage).accept()

    @contextmanager
    def stalled(stage: Stage, chance: random.Random) -> Iterator[None]:
        proxy(stage).stall()
        yield
        proxy(stage).resume()

    @contextmanager
    def half_closed(stage: Stage, chance: random.Random) -> Iterator[None]:
        side: Side = chance.choice(['client', 'server'])
        proxy(stage).half_close(side)
        yield

    @contextmanager
    def throttled(stage: Stage, chance: random.Random) -> Iterator[None]:
        proxy(stage).throttle(20_000)
        yield
        proxy(stage).throttle(0)

    @contextmanager
    def cut_in_a_frame(stage: Stage, chance: random.Random) -> Iterator[None]:
        """After some bytes; what has not been cut by then is cut at the end."""
        side: Side = chance.choice(['client', 'server'])
        proxy(stage).cut_after(chance.randint(1, 5_000), side)
        yield
        proxy(stage).cut()

    place = f'the way to {name}'
    return {
        f'{name}_cut': Kind(place, cut, bound),
        f'{name}_reset': Kind(place, reset, bound),
        f'{name}_refused': Kind(place, refused, bound, (1, 10)),
        f'{name}_stalled': Kind(place, stalled, bound, (1, 25)),
        f'{name}_half_closed': Kind(place, half_closed, bound),
        f'{name}_throttled': Kind(place, throttled, bound, (5, 15)),
        f'{name}_cut_in_a_frame': Kind(place, cut_in_a_frame, 2 * bound, (2, 2)),
    }


# RabbitMQ


@contextmanager
def app_stopped(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.rabbitmq.stop_app()
    yield
    stage.rabbitmq.start_app()


@contextmanager
def connections_closed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.rabbitmq.ctl('close_all_connections', '--vhost', NAME, 'by chaos')
    yield


@contextmanager
def node_killed(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.rabbitmq.kill()
    yield
    stage.rabbitmq.start()


@contextmanager
def memory_alarm(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.rabbitmq.ctl('set_vm_memory_high_watermark', '0.00001')
    yield
    stage.rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', WATERMARK)


@contextmanager
def exchange_deleted(stage: Stage, chance: random.Random) -> Iterator[None]:
    with closing(stage.rabbitmq.connect(NAME)) as broker:
        broker.channel().exchange_delete(EXCHANGE)
    yield
    stage.make_exchange()


@contextmanager
def queue_full(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.limit_queue(max_length=50)
    stage.traffic.recorder.pause()
    yield
    stage.traffic.recorder.resume()
    stage.limit_queue()


@contextmanager
def permission_taken(stage: Stage, chance: random.Random) -> Iterator[None]:
    """RabbitMQ remembers what a channel was allowed, so there has to be another one."""
    stage.permit('^$')
    stage.to_rabbitmq.cut()
    yield
    stage.permit('.*')


# PostgreSQL


@contextmanager
def postgres_stopped(stage: Stage, chance: random.Random) -> Iterator[None]:
    """As if it had crashed."""
    stage.postgres.stop('immediate')
    yield
    stage.postgres.start()
    stage.restart_pgqd()


@contextmanager
def sessions_terminated(stage: Stage, chance: random.Random) -> Iterator[None]:
    stage.postgres.execute(
        'select pg_terminate_backend(pid) from pg_stat_activity where usename = any(%s)',
        ([LOGIN['username'], AUDITOR_LOGIN],),
    )
    yield


KINDS: Mapping[str, Kind] = MappingProxyType({
    'worker_killed': Kind('the daemon', worker_killed, A_KILL),
    'supervisor_killed': Kind('the daemon', supervisor_killed, A_KILL, (0, 6)),
    'both_killed': Kind('the daemon', both_killed, A_KILL, (0, 6)),
    'worker_stopped': Kind('the daemon', worker_stopped, A_KILL, (1, 40)),
    'supervisor_stopped': Kind('the daemon', supervisor_stopped, NOTHING, (1, 15)),
    'daemon_restarted': Kind('the daemon', daemon_restarted, NOTHING, (0, 3)),
    'auditor_killed': Kind('the daemon', auditor_killed, NOTHING),
    'auditor_stopped': Kind('the daemon', auditor_stopped, NOTHING, (1, 40)),
    'reloaded': Kind('the daemon', reloaded, NOTHING),
    'window_edited': Kind('the daemon', window_edited, NOTHING, (2, 2)),
    'worker_added': Kind('the daemon', worker_added, NOTHING, (3, 6)),
    **link_kinds('rabbitmq', lambda stage: stage.to_rabbitmq, WINDOW),
    'app_stopped': Kind('RabbitMQ', app_stopped, WINDOW, (0, 5), 0.5),
    'connections_closed': Kind('RabbitMQ', connections_closed, WINDOW),
    'node_killed': Kind('RabbitMQ', node_killed, WINDOW, (0, 5), 0.5),
    'memory_alarm': Kind('RabbitMQ', memory_alarm, NOTHING, (3, 20)),
    'exchange_deleted': Kind('RabbitMQ', exchange_deleted, WINDOW, (1, 10)),
    'queue_full': Kind('RabbitMQ', queue_full, NOTHING, (5, 20)),
    'permission_taken': Kind('RabbitMQ', permission_taken, 2 * WINDOW, (2, 10)),
    **link_kinds('postgres', lambda stage: stage.to_postgres, A_KILL),
    'postgres_stopped': Kind('PostgreSQL', postgres_stopped, A_KILL, (0, 5), 0.5),
    'sessions_terminated': Kind('PostgreSQL', sessions_terminated, A_KILL),
})  # fmt: skip
