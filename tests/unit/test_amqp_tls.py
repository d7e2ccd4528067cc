"""TLS on real loopback sockets, with authorities made for the test."""

from __future__ import annotations

import dataclasses
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pamqp import commands

from mikkoo.common.amqp import Link
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings, SslOptions
from mikkoo.common.tls import make_context
from tests.unit.amqp_peer import Conversation, Peer, open_files


class Authority:
    """A CA with a server's and a client's certificate, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        client = self.ca.issue_cert('client@example.org')
        self.ca_file, self.client_cert = folder / 'ca.pem', folder / 'client.pem'
        self.client_key, self.locked_key = folder / 'client.key', folder / 'locked.key'
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        client.cert_chain_pems[0].write_to_path(str(self.client_cert))
        client.private_key_pem.write_to_path(str(self.client_key))
        key = load_pem_private_key(client.private_key_pem.bytes(), None)
        locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b'sesame'))
        self.locked_key.write_bytes(locked)

    def context(self, *names: str, **given: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ('127.0.0.1', 'localhost')), **given).configure_cert(context)
        return context


@pytest.fixture(scope='module')
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp('authority'))


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    files = open_files()
    yield made
    assert open_files() == files
    made.close()


def greet(talk: Conversation) -> None:
    talk.greet()
    talk.expect(commands.Connection.Close)
    talk.say(commands.Connection.CloseOk())


def connect(peer: Peer, pulse: Pulse, options: SslOptions, timeout: float = 5.0) -> Link:
    return Link.open(
        BrokerSettings(nodes=(('127.0.0.1', peer.port),), ssl_options=options),
        pulse,
        properties={},
        timeout=timeout,
    )


def attempt(context: ssl.SSLContext | None, pulse: Pulse, options: SslOptions) -> str:
    """The version of TLS, once connected."""
    with Peer(greet, context=context) as peer:
        link = connect(peer, pulse, options)
        sock = link._io.stream.sock
        assert isinstance(sock, ssl.SSLSocket)
        version = sock.version()
        link.close()
    return version or ''


def failure(context: ssl.SSLContext | None, pulse: Pulse, options: SslOptions) -> BrokerError:
    with Peer(lambda talk: None, context=context) as peer:
        with pytest.raises(BrokerError) as caught:
            connect(peer, pulse, options)
        assert str(peer.port) in str(caught.value)
    return caught.value


def test_verified_by_file_folder_and_data(authority: Authority, pulse: Pulse, tmp_path: Path) -> None:
    command = ['openssl', 'x509', '-subject_hash', '-noout', '-in', str(authority.ca_file)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f'{name}.0').write_text(authority.ca_file.read_text())
    for options in (
        SslOptions(ca_certs=str(authority.ca_file)),
        SslOptions(ca_path=str(tmp_path)),
        SslOptions(ca_data=authority.ca_file.read_text()),
    ):
        assert attempt(authority.context(), pulse, options) == 'TLSv1.3'


def test_unknown_authority(authority: Authority, pulse: Pulse, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    error = failure(other.context(), pulse, SslOptions(ca_certs=str(authority.ca_file)))
    assert isinstance(error, BrokerRefused)
    assert "the broker's certificate was not accepted" in str(error)
    assert 'issuer' in str(error)


def test_systems_authorities_are_the_default(authority: Authority, pulse: Pulse) -> None:
    assert 'certificate was not accepted' in str(failure(authority.context(), pulse, SslOptions()))


def test_wrong_host_name(authority: Authority, pulse: Pulse) -> None:
    error = failure(authority.context('rabbit.example'), pulse, SslOptions(ca_certs=str(authority.ca_file)))
    assert isinstance(error, BrokerRefused)
    assert "not valid for '127.0.0.1'" in str(error)


def test_expired_certificate(authority: Authority, pulse: Pulse) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    context = authority.context('127.0.0.1', not_before=past - timedelta(days=9), not_after=past)
    error = failure(context, pulse, SslOptions(ca_certs=str(authority.ca_file)))
    assert isinstance(error, BrokerRefused)
    assert 'expired' in str(error)


def test_verify_false_accepts_all_of_these(authority: Authority, pulse: Pulse) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    context = authority.context('rabbit.example', not_before=past - timedelta(days=9), not_after=past)
    assert attempt(context, pulse, SslOptions(verify=False))


@pytest.mark.parametrize('locked', [False, True])
def test_client_certificate(authority: Authority, pulse: Pulse, locked: bool) -> None:
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    options = SslOptions(
        ca_certs=str(authority.ca_file),
        certfile=str(authority.client_cert),
        keyfile=str(authority.locked_key if locked else authority.client_key),
        password='sesame' if locked else None,
    )
    assert attempt(context, pulse, options)
    error = failure(context, pulse, SslOptions(ca_certs=str(authority.ca_file)))
    assert isinstance(error, BrokerRefused)
    assert 'certificate required' in str(error)


def test_protocol_is_the_only_one_spoken(authority: Authority, pulse: Pulse) -> None:
    options = SslOptions(ca_certs=str(authority.ca_file), protocol=5)
    assert attempt(authority.context(), pulse, options) == 'TLSv1.2'
    context = authority.context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    assert 'TLS: ' in str(failure(context, pulse, options))


def test_ciphers(authority: Authority, pulse: Pulse) -> None:
    options = SslOptions(ca_certs=str(authority.ca_file), protocol=5, ciphers='ECDHE-ECDSA-AES256-GCM-SHA384')
    assert attempt(authority.context(), pulse, options) == 'TLSv1.2'
    with pytest.raises(BrokerRefused, match=r"ssl_options.ciphers: 'nonsense' selects no cipher"):
        make_context(SslOptions(ciphers='nonsense'))


def test_old_protocols_are_set_as_asked_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        context = make_context(SslOptions(protocol=3))
    assert context.maximum_version == ssl.TLSVersion.TLSv1
    for protocol in (0, 1, 17):
        with pytest.raises(BrokerRefused, match=f'protocol: {protocol} is no protocol of a TLS client'):
            make_context(SslOptions(protocol=protocol))


@pytest.mark.parametrize('option', ['ca_certs', 'ca_path', 'certfile', 'keyfile'])
def test_missing_file_is_named(authority: Authority, option: str) -> None:
    options = SslOptions(certfile=str(authority.client_cert)) if option == 'keyfile' else SslOptions()
    missing: dict[str, Any] = {option: '/nowhere/x.pem'}
    with pytest.raises(BrokerRefused, match=f'ssl_options.{option}: /nowhere/x.pem: No such file'):
        make_context(dataclasses.replace(options, **missing))


@pytest.mark.parametrize(
    'given',
    [
        {'ca_data': 'no certificate'},
        {'ca_certs': __file__},
        {'certfile': __file__},
        {'keyfile': 'x'},
    ],
)
def test_file_that_holds_something_else(given: dict[str, str]) -> None:
    with pytest.raises(BrokerRefused, match='ssl_options'):
        make_context(SslOptions(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize('password', [None, 'wrong secret'])
def test_locked_key_without_its_password(authority: Authority, password: str | None) -> None:
    options = SslOptions(
        certfile=str(authority.client_cert), keyfile=str(authority.locked_key), password=password
    )
    with pytest.raises(BrokerRefused, match='password wrong or missing') as caught:
        make_context(options)
    assert 'wrong secret' not in str(caught.value)


def test_port_without_tls(pulse: Pulse) -> None:
    def script(talk: Conversation) -> None:
        talk.sock.sendall(b'AMQP\0\0\x09\x01')
        talk.wait_for_end_of_bytes()

    with Peer(script) as peer:
        with pytest.raises(BrokerRefused, match='is this a port without TLS'):
            connect(peer, pulse, SslOptions(verify=False))


def test_handshake_that_never_ends(pulse: Pulse) -> None:
    started = time.monotonic()
    with Peer(lambda talk: talk.wait_for_end_of_bytes()) as peer:
        with pytest.raises(BrokerLost, match='TLS handshake in time'):
            connect(peer, pulse, SslOptions(verify=False), 0.5)
        assert time.monotonic() - started < 1.5


def test_peer_that_hangs_up_in_the_handshake(pulse: Pulse) -> None:
    with Peer(lambda talk: None) as peer:
        with pytest.raises(BrokerLost, match='during the TLS handshake'):
            connect(peer, pulse, SslOptions(verify=False))
