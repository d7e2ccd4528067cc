"""A throwaway RabbitMQ node with an epmd of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.process import Server, ServerError, end, free_port, program, undisturbed
from tests.servers.waiting import until

if TYPE_CHECKING:
    from pika import BlockingConnection

PACKAGE = 'rabbitmq-server'
FOLDER = '/usr/lib/rabbitmq/bin'  # the wrappers in /usr/sbin change the user
START_TIMEOUT = 90.0  # seconds; 12 on an idle machine
PROTOCOL_HEADER = b'AMQP\x00\x00\x09\x01'  # AMQP 0-9-1, section 4.2.2
UNWANTED = ('RABBITMQ_', 'ERL_', 'NOTIFY_SOCKET')  # of the environment
ERLANG_ARGUMENTS = '+S 2:2 +SDcpu 1:1 +SDio 4 +A 16 +sbwt none +sbwtdcpu none +sbwtdio none'


class RabbitServer(Server):
    """RabbitMQ on 127.0.0.1 with guest:guest; `tls` adds a listener with an authority made for the run.

    `settings`: further lines of rabbitmq.conf, with '__' for '.' in their names.
    """

    name = 'rabbitmq'
    host = '127.0.0.1'

    def __init__(self, *, tls: bool = False, **settings: str) -> None:
        self._server = program('rabbitmq-server', PACKAGE, FOLDER)
        self._ctl = program('rabbitmqctl', PACKAGE, FOLDER)
        self._epmd_program = program('epmd', 'erlang-base')
        super().__init__()
        self.port, self._dist_port, self._epmd_port = free_port(), free_port(), free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        lines = {
            'listeners.tcp.1': f'127.0.0.1:{self.port}',
            'vm_memory_high_watermark.absolute': '1GB',
            'disk_free_limit.absolute': '50MB',
            'num_acceptors.tcp': '2',
            'log.file.level': 'info',
            'log.console': 'false',
            **(self._tls_settings() if tls else {}),
            **{key.replace('__', '.'): value for key, value in settings.items()},
        }
        text = ''.join(f'{key} = {value}\n' for key, value in lines.items())
        (self.folder / 'rabbitmq.conf').write_text(text)
        (self.folder / 'enabled_plugins').write_text('[].\n')
        self._env = self._environment()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it printed; ServerError with its words if it fails."""
        command = [self._ctl, '--quiet', *arguments]
        done = subprocess.run(
            command, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise ServerError(f'rabbitmqctl {" ".join(arguments)}: {done.stderr or done.stdout}')
        return done.stdout

    def connect(self, vhost: str = '/') -> BlockingConnection:
        """A connection by pika, a client independent of the one under test."""
        import pika

        credentials = pika.PlainCredentials('guest', 'guest')
        return pika.BlockingConnection(
            pika.ConnectionParameters(self.host, self.port, vhost, credentials, heartbeat=0)
        )

    def url(self, vhost: str = '/') -> str:
        """An AMQP URL of a virtual host."""
        return f'amqp://guest:guest@{self.host}:{self.port}/{vhost.replace("/", "%2F")}'

    def add_vhost(self, name: str) -> None:
        """Make a virtual host in which guest may do everything; one call, as rabbitmqctl is slow."""
        self.ctl(
            'eval',
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"test">>), '
            f'ok = rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).',
        )

    def delete_vhost(self, name: str) -> None:
        self.ctl('delete_vhost', name)

    def stop_app(self) -> None:
        """Stop the broker inside the node: connections close, the port refuses."""
        self.ctl('stop_app')

    def start_app(self) -> None:
        """Start the broker again and wait until it answers."""
        self.ctl('start_app')
        self._await_ready()

    def _end(self, number: signal.Signals) -> None:
        with undisturbed():
            super()._end(number)
            epmd, self._epmd = self._epmd, None
            if epmd is not None:
                end(epmd, number, self.stop_deadline)

    def _tls_settings(self) -> dict[str, str]:
        import trustme

        authority = trustme.CA()
        server = authority.issue_cert('localhost', self.host)
        client = authority.issue_cert('client@example.org')
        self.tls_port = free_port()
        names = ('ca.pem', 'server.pem', 'server.key', 'client.pem', 'client.key')
        self.ca_file, server_cert, server_key, self.client_cert, self.client_key = (
            str(self.folder / name) for name in names
        )
        authority.cert_pem.write_to_path(self.ca_file)
        server.cert_chain_pems[0].write_to_path(server_cert)
        server.private_key_pem.write_to_path(server_key)
        client.cert_chain_pems[0].write_to_path(self.client_cert)
        client.private_key_pem.write_to_path(self.client_key)
        return {
            'listeners.ssl.1': f'127.0.0.1:{self.tls_port}',
            'ssl_options.cacertfile': self.ca_file,
            'ssl_options.certfile': server_cert,
            'ssl_options.keyfile': server_key,
            'ssl_options.verify': 'verify_peer',
            'ssl_options.fail_if_no_peer_cert': 'false',
        }

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNWANTED)}
        return {
            **kept,
            'LANG': 'C.UTF-8',
            'RUNNING_UNDER_SYSTEMD': 'true',  # the node replaces the shell that starts it, so its pid is ours
            'HOME': str(self.folder),  # the Erlang cookie is made there
            'RABBITMQ_NODENAME': f'mikkoo{self.port}@localhost',
            'RABBITMQ_DIST_PORT': str(self._dist_port),
            'RABBITMQ_MNESIA_BASE': str(self.folder / 'mnesia'),
            'RABBITMQ_LOG_BASE': str(self.folder / 'log'),
            'RABBITMQ_ENABLED_PLUGINS_FILE': str(self.folder / 'enabled_plugins'),
            'RABBITMQ_CONFIG_FILE': str(self.folder / 'rabbitmq.conf'),
            'RABBITMQ_PID_FILE': str(self.folder / 'rabbitmq.pid'),
            'RABBITMQ_CONF_ENV_FILE': str(self.folder / 'no-such-file'),
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': ERLANG_ARGUMENTS,
            'ERL_EPMD_PORT': str(self._epmd_port),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
        }

    def _launch(self) -> subprocess.Popen[bytes]:
        self._epmd = self._spawn([self._epmd_program], self._env)  # else the node would leave one running
        until(lambda: answers(self._epmd_port), START_TIMEOUT, 'epmd accepts connections')
        return self._spawn([self._server], self._env)

    def _await_ready(self) -> None:
        until(self._greets, START_TIMEOUT, lambda: f'RabbitMQ greets on port {self.port}:\n{self.log()}', 0.1)
        if hasattr(self, 'tls_port'):
            until(lambda: answers(self.tls_port), START_TIMEOUT, 'RabbitMQ listens for TLS', 0.1)

    def _greets(self) -> bool:
        self.check_alive()
        return answers(self.port, PROTOCOL_HEADER)

    def log(self) -> str:
        """The end of the node's output and of its log files."""
        files = sorted(Path(self.folder / 'log').glob('*.log'))
        return super().log() + ''.join(file.read_text(errors='replace')[-4_000:] for file in files)


def answers(port: int, question: bytes = b'') -> bool:
    """Whether a loopback port accepts a connection, and says anything when asked a question."""
    try:
        with socket.create_connection(('127.0.0.1', port), 2.0) as link:
            if not question:
                return True
            link.sendall(question)
            return bool(link.recv(1))
    except OSError:
        return False
