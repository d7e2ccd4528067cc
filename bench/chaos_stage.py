"""What chaos happens to: servers, proxies before them, mikkood with a worker and an auditor, traffic."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mikkoo.common.errors import Exit
from tests.conftest import Database
from tests.integration.faults.traffic import ARRIVALS, EXCHANGE, QUEUE, SETTLED, Traffic
from tests.integration.mikkood import alive
from tests.integration.product import Product
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until

NAME = 'chaos'  # of the database, the virtual host and the users
EXTRA = 'extra'  # a second queue, whose worker comes and goes
AUDITOR = 'proof'
AUDITED = f'mikkoo.audit.{AUDITOR}'  # the auditor's queue
AUDITOR_LOGIN = f'{NAME}_auditor'  # in PostgreSQL
KEY = 'good.#'  # what the recorder's queue and the auditor's are bound by
GRACE = 5  # seconds
FED = 5  # events that are inserted into it at a time
BEGUN = 20  # a batch is begun when one event in so many has arrived
FLOWS = 180.0  # seconds until events flow again, at most: the longest back-off is 60 s
WATERMARK = '1GB'  # vm_memory_high_watermark.absolute of the tests' servers
NEVER = ('outstanding', 'late', 'differing', 'expired', 'unidentified')  # counts of the report at the end
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

    def auditor_pid(self) -> int | None:
        """The process of the auditor, unless it is backing off."""
        return self.product.pids().get(AUDITOR)

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
        """What the worker's and the auditor's user may write to, a regular expression."""
        self.rabbitmq.ctl('set_permissions', '-p', NAME, NAME, '.*', write, '.*')

    def make_exchange(self) -> None:
        """The exchange with both its bindings, while nobody gets through to publish.

        With the auditor's alone a message would count as routed; with the recorder's alone the audit would
        miss one.
        """
        self.to_rabbitmq.stall()
        try:
            with closing(self.rabbitmq.connect(NAME)) as broker:
                channel = broker.channel()
                channel.exchange_declare(EXCHANGE, 'topic', durable=True)
                for queue in (ARRIVALS, AUDITED):
                    channel.queue_bind(queue, EXCHANGE, KEY)
        finally:
            self.to_rabbitmq.resume()

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

    def finish(self, repeats: int) -> tuple[str, str]:
        """All at work until all is settled; the tally, and what the audit says.

        AssertionError where it does not add up.
        """
        self.product.workers[EXTRA] = self.product.workers[QUEUE]
        self.product.save()
        self.product.reconnect()
        tally = self.traffic.finish(repeats)
        return str(tally), self._audit(len(tally.delivered))

    def _audit(self, delivered: int) -> str:
        """The first line of a clean report that has received each event once."""

        def outstanding() -> bool:
            return self.product.sql('select exists (select from mikkoo.audit)') == [(True,)]

        until(lambda: not outstanding(), SETTLED, lambda: f'all is received:\n{self._report()}', interval=1)
        code, answer = self._report()
        totals = answer['totals']
        assert (code, answer['clean']) == (Exit.OK, True), answer
        assert totals['recorded'] == totals['received'] == delivered, f'{delivered} delivered: {totals}'
        assert not any(totals[name] for name in NEVER), totals
        return self.product('audit', 'report').stdout.splitlines()[0]

    def _report(self) -> tuple[int, dict[str, Any]]:
        done = self.product('audit', 'report', '--json', '--all')
        return done.returncode, json.loads(done.stdout)


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
        broker = {**LOGIN, 'host': '127.0.0.1', 'port': to_rabbitmq.port}
        traffic = Traffic(
            product,
            lambda name, value: None,
            rate=rate,
            audited=True,
            postgres_url=_url(to_postgres),
            rabbitmq=broker,
            **PATIENT,
        )
        stack.callback(traffic.close)
        product.auditor(
            AUDITOR,
            postgres_url=_url(to_postgres, AUDITOR_LOGIN),
            rabbitmq=broker,
            bindings=[{'exchange': EXCHANGE, 'routing_key': KEY}],
            grace=GRACE,
        )
        product.create_queue(EXTRA)
        product.channel.queue_declare(AUDITED, durable=True, arguments={'x-queue-type': 'quorum'})
        product.channel.queue_bind(AUDITED, EXCHANGE, KEY)  # before the first event, whoever starts first
        made = Stage(postgres, rabbitmq, to_postgres, to_rabbitmq, product, traffic)
        made.limit_queue()
        product.save()
        product.started()
        product.until_running()
        yield made


@contextmanager
def _product(folder: Path, postgres: PostgresServer, rabbitmq: RabbitServer) -> Iterator[Product]:
    """A database that is ticked, a virtual host, and mikkood's folder; the logins in both servers."""
    postgres.create_database(NAME)
    postgres.execute(f'create role {LOGIN["username"]} login in role mikkoo_relay')
    postgres.execute(f'create role {AUDITOR_LOGIN} login in role mikkoo_auditor')
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


def _url(proxy: Proxy, user: str = NAME) -> str:
    return f'postgresql://{user}@127.0.0.1:{proxy.port}/{NAME}'
