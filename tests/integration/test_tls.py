"""TLS as its user sees it: a broker that is not the right one is refused, with a reason that says so."""

from __future__ import annotations

import json
import ssl
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from mikkoo.common.errors import Exit
from tests.integration.product import ARRIVAL, Product
from tests.servers.waiting import until
from tests.unit.amqp_peer import Peer

DAY = timedelta(days=1)
REASONS = {
    'authority': 'unable to get local issuer certificate',
    'expired': 'certificate has expired',
    'name': "certificate is not valid for '127.0.0.1'",
}


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """In the file ca.pem."""
    made = trustme.CA()
    made.cert_pem.write_to_path(str(tmp_path / 'ca.pem'))
    return made


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_check_tells_what_is_wrong_with_a_certificate(
    product: Product, authority: trustme.CA, tmp_path: Path
) -> None:
    yesterday = datetime.now(UTC) - DAY
    certificates = {
        'authority': trustme.CA().issue_cert('127.0.0.1'),
        'expired': authority.issue_cert('127.0.0.1', not_before=yesterday - DAY, not_after=yesterday),
        'name': authority.issue_cert('rabbit.example'),
    }
    product.create_queue('alpha')
    with ExitStack() as stack:
        for name, certificate in certificates.items():
            peer = stack.enter_context(Peer(lambda talk: None, context=serving(certificate)))
            product.worker(name, queue='alpha', consumer_name=name)
            options = {'ca_certs': str(tmp_path / 'ca.pem')}
            product.workers[name]['rabbitmq'] |= {'port': peer.port, 'ssl_options': options}
        product.save()
        done = product('check', '--connect', '--json')
    assert done.returncode == Exit.FAILURE
    failed = {
        probe['subject'].rpartition(' ')[2]: probe['text']
        for probe in json.loads(done.stdout)['probes']
        if probe['outcome'] == 'failed'
    }
    assert failed.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert "TLS: the broker's certificate was not accepted: " in failed[name] and reason in failed[name]


def test_a_worker_shows_why_it_pauses(product: Product, authority: trustme.CA, tmp_path: Path) -> None:
    """It tries again, and goes on once the authority is the right one."""
    product.create_queue('alpha')
    product.arrivals('alpha')
    product.worker('alpha')
    tls = {'ca_certs': str(tmp_path / 'ca.pem')}
    product.workers['alpha']['rabbitmq'] |= {'port': product.rabbitmq.tls_port, 'ssl_options': tls}
    product.save()
    product.foreground()

    def refused() -> bool:
        child = product.children()['alpha']
        return child['state'] == 'PAUSED' and "the broker's certificate was not accepted" in child['reason']

    until(refused, ARRIVAL, lambda: f'it is refused: {product.children()}')
    tls['ca_certs'] = product.rabbitmq.ca_file
    product.save()
    product.until_running('alpha')
    product.sql("select mikkoo.insert_event('alpha', '', 'alpha', '{}', null)")
    until(lambda: product.queued('alpha') == 1, ARRIVAL, 'it relays over TLS')
