"""The servers that all other tests rely on: that they start, do what they are asked, and go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.process import ServerError, program
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until


def test_a_missing_program_is_an_error_that_names_the_package() -> None:
    with pytest.raises(ServerError, match='no-such-program is not installed: install the package some-pack'):
        program('no-such-program', 'some-package')


def test_pgqd_ticks_a_fresh_database(database: Database, pgqd_factory: Callable[..., Pgqd]) -> None:
    pgqd_factory(database.name)
    database.execute("select pgq.create_queue('q'), pgq.register_consumer('q', 'c')")
    database.execute("select pgq.set_queue_config('q', 'ticker_max_lag', '0')")
    database.execute("select pgq.insert_event('q', 'key', 'body')")
    until(lambda: database.execute("select pgq.next_batch('q', 'c')") != [(None,)], 15, 'a batch')


def test_login_roles_are_no_superusers(database: Database) -> None:
    for user in (f'relay_{database.name}', f'producer_{database.name}'):
        opened = database.connect(user)
        with opened.cursor() as cursor:
            cursor.execute('select current_user, rolsuper from pg_roles where rolname = current_user')
            assert cursor.fetchone() == (user, False)
        opened.close()


def test_postgres_comes_back_after_an_immediate_stop_and_leaves_nothing() -> None:
    with PostgresServer() as server:
        server.create_database('kept')
        server.stop('immediate')
        with pytest.raises(ServerError):
            server.pid  # noqa: B018
        server.start()
        assert server.execute('select pgq.version()', dbname='kept')
        pid, folder = server.pid, server.folder
    assert not os.path.exists(f'/proc/{pid}')
    assert not folder.exists()


RUN_UNTIL_SIGNALLED = """
import json, signal
from tests.servers.pgqd import Pgqd
from tests.servers.postgres import PostgresServer
from tests.servers.process import raise_on_signals

raise_on_signals()
with PostgresServer() as postgres:
    postgres.create_database('some')
    with Pgqd(postgres, 'some') as pgqd:
        print(json.dumps({str(server.folder): server.pid for server in (postgres, pgqd)}), flush=True)
        signal.pause()
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_servers_end_with_the_program_however_it_ends(number: signal.Signals) -> None:
    command = [sys.executable, '-c', RUN_UNTIL_SIGNALLED]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        servers: dict[str, int] = json.loads(program.stdout.readline())
        program.send_signal(number)
    until(
        lambda: not any(os.path.exists(f'/proc/{pid}') for pid in servers.values()), 15, 'no server is left'
    )
    for folder in servers:
        if number == signal.SIGKILL:
            shutil.rmtree(folder)
        assert not os.path.exists(folder)


def test_rabbitmq_relays_in_a_fresh_vhost(rabbitmq: RabbitServer, vhost: str) -> None:
    with rabbitmq.connect(vhost) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare('q')
        channel.basic_publish('', 'q', b'body', mandatory=True)
        assert channel.basic_get('q', auto_ack=True)[2] == b'body'


@pytest.mark.parametrize('with_certificate', [False, True])
def test_rabbitmq_speaks_tls_under_its_own_authority(rabbitmq: RabbitServer, with_certificate: bool) -> None:
    context = ssl.create_default_context(cafile=rabbitmq.ca_file)
    if with_certificate:
        context.load_cert_chain(rabbitmq.client_cert, rabbitmq.client_key)
    with (
        socket.create_connection((rabbitmq.host, rabbitmq.tls_port), 10) as plain,
        context.wrap_socket(plain, server_hostname='localhost') as link,
    ):
        link.sendall(b'AMQP\x00\x00\x09\x01')
        assert link.recv(1) == b'\x01'


def test_rabbitmq_refuses_while_its_application_is_stopped(rabbitmq: RabbitServer) -> None:
    rabbitmq.stop_app()
    try:
        with pytest.raises(OSError):
            socket.create_connection((rabbitmq.host, rabbitmq.port), 10).close()
    finally:
        rabbitmq.start_app()
    rabbitmq.connect().close()


def test_proxy_is_transparent(rabbitmq: RabbitServer, proxy_factory: Callable[[str, int], Proxy]) -> None:
    proxy = proxy_factory(rabbitmq.host, rabbitmq.port)
    with socket.create_connection(('127.0.0.1', proxy.port), 10) as link:
        link.sendall(b'AMQP\x00\x00\x09\x01')
        assert link.recv(1) == b'\x01'
