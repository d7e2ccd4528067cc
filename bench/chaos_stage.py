"""What chaos happens to: servers, proxies before them, mikkood with a worker, traffic through all of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.faults.traffic import ARRIVALS, QUEUE, Traffic
from tests.integration.mikkood import alive
from tests.integration.product import Product
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

NAME = 'chaos'  # of the database, the virtual host and the users
EXTRA = 'extra'  # a second queue, whose worker comes and goes
FED = 5  # events that are inserted into it at a time
BEGUN = 20  # a batch is begun when one event in so many has arrived
FLOWS = 180.0  # seconds until events flow again, at most: the longest back-off is 60 s
WATERMARK = '1GB'  # vm_memory_high_watermark.absolute of the tests' servers
NO_DROPS = '"overflow": "reject-publish"'
LOGIN = {'vhost': NAME, 'username': NAME, 'password': NAME}
# Nothing but the poison may become a dead letter, however long an exchange is away.
PATIENT = {'max_failures': 30_000, 'confirm_timeout': 10}


@dataclass(frozen=True)
class Stage:
    postgres: PostgresServer
    rabbitmq: RabbitServer
    to_postgres: Proxy
    to_rabbitmq: Proxy
    product: Product
    traffic: Traffic

    def worker_pid(self) -> int | None:
        """The process of the worker, unless it is backing off."""
        return self.product.pids().get(QUEUE)

    def kill(self, *pids: int | None) -> None:
        for pid in filter(None, pids):
            if alive(pid):
                os.kill(pid, 9)

    def restart_pgqd(self) -> None:
        """It comes back to a server that was away only after a minute."""
        self.product.pgqd.stop()
        self.product.pgqd.start()

    def limit_queue(self, **limits: int) -> None:
        """How many messages the recorder's queue holds; it rejects what comes beyond."""
        fields = ', '.join([NO_DROPS, *(f'"{key.replace("_", "-")}": {limits[key]}' for key in limits)])
        self.rabbitmq.ctl('set_policy', '-p', NAME, 'limit', f'^{ARRIVALS}$', f'{{{fields}}}')

    def permit(self, write: str) -> None:
        """What the worker's user may write to, a regular expression."""
        self.rabbitmq.ctl('set_permissions', '-p', NAME, NAME, '.*', write, '.*')

    def feed_extra(self) -> None:
        """A few events for the worker that comes and goes."""
        self.traffic.burst(FED, EXTRA)

    def begin_batch(self, events: int) -> None:
        """Insert so many at once; return when some of them have arrived."""
        self.traffic.burst(events)
        arrived = self.traffic.recorder.arrived
        enough = len(arrived) + events // BEGUN
        until(lambda: len(arrived) >= enough, FLOWS, 'the batch is begun', interval=0.001)

    def command(self, *words: str) -> None:
        """A mikkood command, which has to succeed."""
        done = self.product(*words)
        assert done.returncode == Exit.OK, done

    def until_flows(self, fault: str, over: float) -> float:
        """Seconds from `over` until an event that was inserted later arrives. A FATAL worker is restarted."""
        try:
            return self.traffic.flows_again(fault, over, FLOWS)
        except AssertionError:
            if self.product.children()[QUEUE]['state'] != 'FATAL':
                raise
            print(f'{QUEUE} is FATAL, and restarted as by its operator', flush=True)
            self.command('restart', QUEUE)
            return self.traffic.flows_again(fault, over, FLOWS)

    def finish(self, repeats: int) -> str:
        """Both workers at work until all is settled; the tally. AssertionError where it does not add up."""
        self.product.workers[EXTRA] = self.product.workers[QUEUE]
        self.product.save()
        self.product.reconnect()
        return str(self.traffic.finish(repeats))


@contextmanager
def stage(rate: float) -> Iterator[Stage]:
    """Everything running, `rate` events a second flowing."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mikkoo-chaos-')))
        postgres = stack.enter_context(PostgresServer())
        rabbitmq = stack.enter_context(RabbitServer())
        to_postgres = stack.enter_context(Proxy('127.0.0.1', postgres.port))
        to_rabbitmq = stack.enter_context(Proxy(rabbitmq.host, rabbitmq.port))
        product = stack.enter_context(_product(folder, postgres, rabbitmq))
        traffic = Traffic(
            product,
            lambda name, value: None,
            rate=rate,
            postgres_url=_url(to_postgres),
            rabbitmq={**LOGIN, 'host': '127.0.0.1', 'port': to_rabbitmq.port},
            **PATIENT,
        )
        stack.callback(traffic.close)
        product.create_queue(EXTRA)
        made = Stage(postgres, rabbitmq, to_postgres, to_rabbitmq, product, traffic)
        made.limit_queue()
        product.save()
        product.started()
        product.until_running()
        yield made


@contextmanager
def _product(folder: Path, postgres: PostgresServer, rabbitmq: RabbitServer) -> Iterator[Product]:
    """A database that is ticked, a virtual host, and mikkood's folder; the worker's login in both servers."""
    postgres.create_database(NAME)
    postgres.execute(f'create role {LOGIN["username"]} login in role mikkoo_relay')
    rabbitmq.add_vhost(NAME)
    rabbitmq.ctl('add_user', LOGIN['username'], LOGIN['password'])
    rabbitmq.ctl('set_permissions', '-p', NAME, LOGIN['username'], '.*', '.*', '.*')
    product = Product(folder, Database(postgres, NAME), rabbitmq, NAME)
    product.pgqd = Pgqd(postgres, NAME)
    try:
        product.pgqd.start()
        yield product
    finally:
        product.close()
        product.pgqd.close()


def _url(proxy: Proxy) -> str:
    return f'postgresql://{LOGIN["username"]}@127.0.0.1:{proxy.port}/{NAME}'
