"""`ssl_options` to an ssl.SSLContext, and TLS errors to sentences."""

from __future__ import annotations

import ssl
from pathlib import Path

from mikkoo.common.errors import BrokerRefused
from mikkoo.common.settings import SslOptions

# ssl.PROTOCOL_* integers, as `protocol` has them, to the only version allowed; None: the newest both speak.
VERSIONS: dict[int, ssl.TLSVersion | None] = {
    2: None,  # PROTOCOL_TLS, once PROTOCOL_SSLv23
    3: ssl.TLSVersion.TLSv1,
    4: ssl.TLSVersion.TLSv1_1,
    5: ssl.TLSVersion.TLSv1_2,
    16: None,  # PROTOCOL_TLS_CLIENT
}


def make_context(options: SslOptions) -> ssl.SSLContext:
    """A client's context. Verifies chain and host name unless `verify` is False.

    Raises BrokerRefused naming the option, and the file, that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    _limit_versions(context, options.protocol)
    _load_authorities(context, options)
    _load_certificate(context, options)
    if options.ciphers:
        try:
            context.set_ciphers(options.ciphers)
        except ssl.SSLError:
            raise BrokerRefused(f'ssl_options.ciphers: {options.ciphers!r} selects no cipher') from None
    return context


def explain(error: ssl.SSLError) -> str:
    """One sentence for a handshake that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the broker's certificate was not accepted: {error.verify_message}"
    reason = (error.reason or str(error)).replace('_', ' ').lower()
    if 'wrong version number' in reason:
        reason += ' (is this a port without TLS?)'
    return f'TLS: {reason}'


def _limit_versions(context: ssl.SSLContext, protocol: int) -> None:
    if protocol not in VERSIONS:
        known = ', '.join(map(str, VERSIONS))
        raise BrokerRefused(
            f'ssl_options.protocol: {protocol} is no protocol of a TLS client; known: {known}'
        )
    version = VERSIONS[protocol]
    if version is not None:
        context.minimum_version = context.maximum_version = version


def _load_authorities(context: ssl.SSLContext, options: SslOptions) -> None:
    if not (options.ca_certs or options.ca_path or options.ca_data):
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return
    for name, path in (('ca_certs', options.ca_certs), ('ca_path', options.ca_path)):
        if path:
            _must_exist(name, path)
    try:
        context.load_verify_locations(options.ca_certs, options.ca_path, options.ca_data)
    except (OSError, ValueError) as error:
        given = options.ca_certs or 'ca_data'
        raise BrokerRefused(f'ssl_options: no certificates of authorities in {given}: {error}') from None


def _load_certificate(context: ssl.SSLContext, options: SslOptions) -> None:
    if not options.certfile:
        if options.keyfile:
            raise BrokerRefused('ssl_options.keyfile: given without certfile')
        return
    _must_exist('certfile', options.certfile)
    if options.keyfile:
        _must_exist('keyfile', options.keyfile)
    try:
        # A callable, because OpenSSL would ask on the terminal for the password of an encrypted key.
        context.load_cert_chain(options.certfile, options.keyfile, lambda: options.password or '')
    except OSError as error:
        why = getattr(error, 'reason', None) or error
        raise BrokerRefused(
            f'ssl_options.certfile {options.certfile}, keyfile {options.keyfile}: cannot be loaded ({why}):'
            f' no PEM file, a key of another certificate, or its password wrong or missing'
        ) from None


def _must_exist(option: str, path: str) -> None:
    try:
        with Path(path).open('rb'):
            pass
    except IsADirectoryError:
        if option != 'ca_path':
            raise BrokerRefused(f'ssl_options.{option}: {path}: is a folder') from None
    except OSError as error:
        raise BrokerRefused(f'ssl_options.{option}: {path}: {error.strerror}') from None
