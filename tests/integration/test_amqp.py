"""The link against a real RabbitMQ, alone and behind a proxy that misbehaves."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pamqp.frame
import pytest
from pamqp import body, commands, header

from mikkoo.common import dial
from mikkoo.common.amqp import Ack, ChannelClosed, Link, PublisherChannel, Returned, Signal, Synced
from mikkoo.common.errors import BrokerLost, BrokerRefused
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings, SslOptions
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer
from tests.servers.waiting import until
from tests.unit.amqp_peer import open_files

PATIENCE = 30.0  # seconds for anything that a broker under load may take its time for
Opener = Callable[..., Link]


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    made = Pulse()
    yield made
    made.close()


@pytest.fixture
def opened(rabbitmq: RabbitServer, vhost: str, pulse: Pulse) -> Iterator[Opener]:
    """`opened(port=..., properties=..., **settings)`: a link to the test's vhost, disposed of at the end."""
    links: list[Link] = []

    def open_link(port: int = 0, properties: dict[str, str] | None = None, **given: Any) -> Link:
        settings = BrokerSettings(
            **{'nodes': ((rabbitmq.host, port or rabbitmq.port),), 'vhost': vhost, **given}
        )
        links.append(Link.open(settings, pulse, properties=properties or {}))
        return links[-1]

    yield open_link
    for link in links:
        link.dispose()


@pytest.fixture
def proxy(rabbitmq: RabbitServer, proxy_factory: Callable[[str, int], Proxy]) -> Proxy:
    return proxy_factory(rabbitmq.host, rabbitmq.port)


def message(channel: PublisherChannel, key: str, data: bytes, exchange: str = '', **properties: Any) -> bytes:
    """One mandatory message as frames, cut to the frame size."""
    parts = [data[at : at + 131_064] for at in range(0, len(data), 131_064)]
    made: tuple[Any, ...] = (
        commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True),
        header.ContentHeader(0, len(data), commands.Basic.Properties(**properties)),
        *(body.ContentBody(part) for part in parts),
    )
    return b''.join(pamqp.frame.marshal(frame, channel.number) for frame in made)


def collect(
    link: Link, channel: PublisherChannel, pulse: Pulse, done: Callable[[list[Signal]], bool]
) -> list[Signal]:
    """Signals until `done` says that they are enough."""
    signals = channel.signals()
    deadline = time.monotonic() + PATIENCE
    while not done(signals):
        assert time.monotonic() < deadline, signals[-3:]
        pulse.wait('test', 1, read=[link.fileno()])
        signals += channel.signals()
    return signals


def confirmed(signals: list[Signal]) -> set[int]:
    tags: set[int] = set()
    for signal in signals:
        assert isinstance(signal, Ack), signal
        tags.update(range(1, signal.tag + 1) if signal.multiple else (signal.tag,))
    return tags


def reason(link: Link, pulse: Pulse) -> str:
    deadline = time.monotonic() + PATIENCE
    while link.alive:
        assert time.monotonic() < deadline
        pulse.wait('test', 1, read=[link.fileno()])
    with pytest.raises(BrokerLost) as caught:
        link.raise_if_lost()
    return str(caught.value)


def make_queue(rabbitmq: RabbitServer, vhost: str, name: str) -> None:
    with rabbitmq.connect(vhost) as connection:
        connection.channel().queue_declare(name, durable=True)


def fetch(rabbitmq: RabbitServer, vhost: str, name: str, count: int) -> list[bytes]:
    """The first `count` bodies of a queue, by another client."""
    bodies: list[bytes] = []
    with rabbitmq.connect(vhost) as connection:
        for _, _, data in connection.channel().consume(name, auto_ack=True, inactivity_timeout=PATIENCE):
            assert data is not None, f'{len(bodies)} of {count}'
            bodies.append(data)
            if len(bodies) == count:
                return bodies
    raise AssertionError


@pytest.mark.parametrize('secure', [False, True])
def test_thousands_in_flight_arrive_in_order(
    rabbitmq: RabbitServer, vhost: str, opened: Opener, pulse: Pulse, secure: bool
) -> None:
    make_queue(rabbitmq, vhost, 'many')
    link = opened()
    if secure:
        link = opened(rabbitmq.tls_port, ssl_options=SslOptions(ca_certs=rabbitmq.ca_file))
    channel = link.publisher_channel(confirm=True)
    for start in range(0, 5000, 100):
        channel.send(b''.join(message(channel, 'many', b'%d' % n) for n in range(start, start + 100)))
    signals = collect(link, channel, pulse, lambda signals: len(confirmed(signals)) == 5000)
    tags = [signal.tag for signal in signals if isinstance(signal, Ack)]
    assert tags == sorted(tags)
    assert fetch(rabbitmq, vhost, 'many', 5000) == [b'%d' % n for n in range(5000)]
    link.close()


def test_returned_message_comes_back_whole_before_its_ack(opened: Opener, pulse: Pulse) -> None:
    link = opened()
    channel = link.publisher_channel(confirm=True)
    data = bytes(range(256)) * 2000
    properties: dict[str, Any] = {
        'content_type': 'application/json', 'message_id': 'm', 'delivery_mode': 2, 'app_id': 'mikkoo',
        'headers': {'n': 1, 'deep': {'list': [1.5, None, True, 'é', -(2**40)]}},
    }  # fmt: skip
    channel.send(message(channel, 'nowhere.é', data, **properties))
    signals = collect(link, channel, pulse, lambda signals: any(isinstance(s, Ack) for s in signals))
    assert signals == [Returned(312, 'NO_ROUTE', '', 'nowhere.é', properties, data), Ack(1, False)]


def test_sync_follows_returns_without_confirms(opened: Opener, pulse: Pulse) -> None:
    link = opened()
    channel = link.publisher_channel(confirm=False)
    for n in range(50):
        channel.send(message(channel, 'nowhere', b'%d' % n))
    channel.sync()
    signals = collect(link, channel, pulse, lambda signals: Synced() in signals)
    assert [s.body for s in signals if isinstance(s, Returned)] == [b'%d' % n for n in range(50)]
    assert signals[-1] == Synced()


def test_missing_exchange_closes_the_channel_and_only_that(
    rabbitmq: RabbitServer, vhost: str, opened: Opener, pulse: Pulse
) -> None:
    make_queue(rabbitmq, vhost, 'q')
    link = opened()
    for _ in range(3):
        channel = link.publisher_channel(confirm=True)
        channel.send(message(channel, 'k', b'x', exchange='missing'))
        channel.send(message(channel, 'q', b'x') * 2000)
        signals = collect(link, channel, pulse, lambda signals: bool(signals))
        closed = signals[-1]
        assert isinstance(closed, ChannelClosed)
        assert (closed.code, closed.class_id, closed.method_id) == (404, 60, 40)
        assert "no exchange 'missing'" in closed.text
        assert not channel.open
    good = link.publisher_channel(confirm=True)
    good.send(message(good, 'q', b'good'))
    assert confirmed(collect(link, good, pulse, bool)) == {1}


def test_exchange_exists(rabbitmq: RabbitServer, vhost: str, opened: Opener, pulse: Pulse) -> None:
    link = opened()
    publisher = link.publisher_channel(confirm=True)
    assert link.exchange_exists('') is None
    for round_ in range(30):
        assert link.exchange_exists('amq.topic') is None
        missing = link.exchange_exists(f'né pas {round_}')
        assert missing is not None
        assert missing.code == 404
    assert max(link._io.inboxes) <= 2
    publisher.send(message(publisher, 'nowhere', b'x'))
    assert len(collect(link, publisher, pulse, lambda signals: len(signals) == 2)) == 2


def test_exchange_without_permission(rabbitmq: RabbitServer, vhost: str, opened: Opener) -> None:
    rabbitmq.ctl('add_user', vhost, 'quote"% é')
    try:
        rabbitmq.ctl('set_permissions', '-p', vhost, vhost, '^$', '^$', '^$')
        link = opened(username=vhost, password='quote"% é')
        assert link.exchange_exists('amq.topic') is None  # RabbitMQ asks for no right to a passive declare
        channel = link.publisher_channel(confirm=True)
        channel.send(message(channel, 'k', b'x', exchange='amq.topic'))
        until(lambda: not channel.open, PATIENCE, 'the refusal')
        (closed,) = channel.signals()
        assert isinstance(closed, ChannelClosed)
        assert closed.code == 403
    finally:
        rabbitmq.ctl('delete_user', vhost)


@pytest.mark.parametrize(
    ('given', 'code', 'text'),
    [
        ({'password': 'wrong secret'}, 403, 'ACCESS_REFUSED'),
        ({'username': 'nobody'}, 403, 'ACCESS_REFUSED'),
        ({'vhost': '/no%2Fsuch vhost'}, 530, '/no%2Fsuch vhost'),
    ],
)
def test_refused_login(
    rabbitmq: RabbitServer, opened: Opener, given: dict[str, str], code: int, text: str
) -> None:
    with pytest.raises(BrokerRefused) as caught:
        opened(**given)
    assert caught.value.code == code
    assert text in str(caught.value)
    assert f'{rabbitmq.host}:{rabbitmq.port}' in str(caught.value)
    assert 'secret' not in str(caught.value)


def test_vhost_is_verbatim(rabbitmq: RabbitServer, opened: Opener) -> None:
    rabbitmq.add_vhost('/a%2Fb c')
    try:
        assert opened(vhost='/a%2Fb c').server_version.startswith('3.')
    finally:
        rabbitmq.delete_vhost('/a%2Fb c')


def test_client_properties_are_shown_by_the_broker(
    rabbitmq: RabbitServer, opened: Opener, vhost: str
) -> None:
    link = opened(properties={'worker': 'w1', 'queue': 'orders', 'connection_name': f'mikkoo {vhost}'})
    assert link.frame_max == 131_072
    shown = rabbitmq.ctl('list_connections', 'vhost', 'client_properties')
    (line,) = [line for line in shown.splitlines() if vhost in line.split('\t')[0]]
    for text in ('"product","mikkoo"', '"worker","w1"', '"queue","orders"', f'mikkoo {vhost}', 'version'):
        assert text in line, line
    assert '"connection.blocked",true' in line


def test_tls_refusals(rabbitmq: RabbitServer, opened: Opener, tmp_path: Any) -> None:
    import trustme

    stranger = tmp_path / 'ca.pem'
    trustme.CA().cert_pem.write_to_path(str(stranger))
    with pytest.raises(BrokerRefused, match='certificate was not accepted'):
        opened(rabbitmq.tls_port, ssl_options=SslOptions(ca_certs=str(stranger)))
    with pytest.raises(BrokerRefused, match='port without TLS'):
        opened(rabbitmq.port, ssl_options=SslOptions(verify=False))
    with pytest.raises(BrokerLost):
        opened(rabbitmq.tls_port)
    options = SslOptions(
        ca_certs=rabbitmq.ca_file, certfile=rabbitmq.client_cert, keyfile=rabbitmq.client_key, protocol=5
    )
    opened(rabbitmq.tls_port, ssl_options=options).close()


def test_blocked_by_a_memory_alarm(
    rabbitmq: RabbitServer, vhost: str, opened: Opener, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, 'USER_TIMEOUT', 2.0)  # the kernel must not give up a link that is only blocked
    make_queue(rabbitmq, vhost, 'q')
    link = opened()
    channel = link.publisher_channel(confirm=True)
    rabbitmq.ctl('set_vm_memory_high_watermark', '0')
    try:
        channel.send(message(channel, 'q', b'x'))
        until(lambda: link.blocked, PATIENCE, 'blocked')
        assert 'memory' in str(link.blocked)
        channel.send(message(channel, 'q', bytes(20_000_000)))
        assert link.unsent > 0
        pulse.wait('test', 5)  # longer than USER_TIMEOUT
        assert link.alive
    finally:
        rabbitmq.ctl('set_vm_memory_high_watermark', 'absolute', '1GB')
    until(lambda: not link.blocked, PATIENCE, 'unblocked')
    collect(link, channel, pulse, lambda signals: confirmed(signals) == {1, 2})
    assert link.unsent == 0


def test_cut_link_is_lost_at_once(proxy: Proxy, opened: Opener, pulse: Pulse) -> None:
    for reset in (True, False):
        link = opened(proxy.port)
        channel = link.publisher_channel(confirm=True)
        started = time.monotonic()
        proxy.cut(reset=reset)
        assert f':{proxy.port}: ' in reason(link, pulse)
        assert time.monotonic() - started < 3
        with pytest.raises(BrokerLost):
            channel.send(b'')
        with pytest.raises(BrokerLost):
            link.exchange_exists('x')


def test_half_closed_link_is_lost(proxy: Proxy, opened: Opener, pulse: Pulse) -> None:
    link = opened(proxy.port)
    proxy.half_close('client')
    assert 'closed by the other side' in reason(link, pulse)


def test_stalled_link_is_lost_by_its_heartbeats(proxy: Proxy, opened: Opener, pulse: Pulse) -> None:
    link = opened(proxy.port, heartbeat_interval=1)
    pulse.wait('test', 3)
    assert link.alive
    proxy.stall()
    started = time.monotonic()
    assert '2 heartbeats missed' in reason(link, pulse)
    assert time.monotonic() - started < 2 * 3
    link.dispose()
    proxy.resume()


def test_stalled_negotiation_ends_at_its_deadline(
    proxy: Proxy, rabbitmq: RabbitServer, pulse: Pulse, vhost: str
) -> None:
    proxy.stall()
    started = time.monotonic()
    with pytest.raises(BrokerLost, match=r'no answer within 0\.5 s'):
        settings = BrokerSettings(nodes=(('127.0.0.1', proxy.port),), vhost=vhost)
        Link.open(settings, pulse, properties={}, timeout=0.5)
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize('secure', [False, True])
def test_throttled_link_delivers_every_byte_once(
    rabbitmq: RabbitServer,
    vhost: str,
    opened: Opener,
    pulse: Pulse,
    proxy_factory: Callable[[str, int], Proxy],
    secure: bool,
) -> None:
    make_queue(rabbitmq, vhost, 'q')
    options = SslOptions(ca_certs=rabbitmq.ca_file) if secure else None
    proxy = proxy_factory(rabbitmq.host, rabbitmq.tls_port if secure else rabbitmq.port)
    link = opened(proxy.port, ssl_options=options)
    channel = link.publisher_channel(confirm=True)
    proxy.throttle(4_000_000)
    bodies = [hashlib.sha256(b'%d' % n).digest() * 12_500 for n in range(40)]  # 16 MB
    for data in bodies:
        channel.send(message(channel, 'q', data))
    assert link.unsent > 0
    collect(link, channel, pulse, lambda signals: len(confirmed(signals)) == len(bodies))
    assert link.unsent == 0
    assert fetch(rabbitmq, vhost, 'q', len(bodies)) == bodies


def test_connections_closed_by_an_operator(
    rabbitmq: RabbitServer, opened: Opener, pulse: Pulse, vhost: str
) -> None:
    link = opened()
    rabbitmq.ctl('close_all_connections', '--vhost', vhost, 'for the test')
    assert '320' in (text := reason(link, pulse))
    assert 'for the test' in text


def test_good_leave(rabbitmq: RabbitServer, vhost: str, opened: Opener) -> None:
    """What was sent without confirms is at the broker, which has seen no connection die."""
    make_queue(rabbitmq, vhost, 'q')
    link = opened()
    port = link._io.stream.sock.getsockname()[1]
    channel = link.publisher_channel(confirm=False)
    channel.send(b''.join(message(channel, 'q', b'%d' % n) for n in range(500)))
    link.close()
    assert not link.alive
    assert fetch(rabbitmq, vhost, 'q', 500) == [b'%d' % n for n in range(500)]

    def told() -> list[str]:
        return [line for line in rabbitmq.log().splitlines() if 'closing' in line and f':{port} ->' in line]

    (line,) = until(told, PATIENCE, 'the end of the connection in the log')
    assert '[info]' in line


def test_many_links_leave_no_thread_and_no_descriptor(proxy: Proxy, opened: Opener, pulse: Pulse) -> None:
    def cycle(end: Callable[[Link], None]) -> None:
        link = opened(proxy.port, heartbeat_interval=1)
        channel = link.publisher_channel(confirm=True)
        channel.send(message(channel, 'nowhere', b'x' * 10_000))
        link.exchange_exists('missing')
        end(link)

    def cut(link: Link) -> None:
        proxy.cut()
        link.dispose()

    cycle(Link.close)
    proxy.cut()
    threads, files = threading.active_count(), open_files()
    for _ in range(20):
        cycle(Link.close)
        cycle(Link.dispose)
        cycle(cut)
    proxy.cut()
    until(lambda: threading.active_count() <= threads, PATIENCE, lambda: str(threading.enumerate()))
    until(lambda: open_files() <= files, PATIENCE, 'no descriptor left')


def test_idle_link_costs_less_than_a_hundredth_of_a_core(opened: Opener, pulse: Pulse) -> None:
    link = opened(heartbeat_interval=2)
    link.publisher_channel(confirm=True)
    before, started = time.process_time(), time.monotonic()
    pulse.wait('test', 4.0)
    share = (time.process_time() - before) / (time.monotonic() - started)
    assert share < 0.03
