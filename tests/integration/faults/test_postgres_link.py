"""The link to PostgreSQL cut, stalled, half-closed and throttled: nothing lost, and soon it flows again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.conftest import Database
from tests.integration.faults.traffic import Traffic
from tests.integration.product import Product
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy, Side
from tests.servers.waiting import until

LOST = 3000  # repeats, at most, each time that PostgreSQL is lost
NOTICED = (
    30.0  # seconds within which a relay at work meets what was done to its link; at once on an idle machine
)
BACK = 3 * 3.0  # seconds until it flows again behind a cut: a back-off of half a second, two logins, a tick
# A statement is silent for 15 s, a look takes 10 at most, then as behind a cut.
BACK_AFTER_SILENCE = 3 * (15.0 + 10.0 + 3.0)
OUT = 'PostgreSQL is out'
SLOW = 20_000  # bytes a second
BIG = 'x' * 150_000  # the body of an event that takes 7.5 s at that rate


@dataclass
class Scene:
    """Events that flow through a proxy before PostgreSQL."""

    product: Product
    flow: Traffic
    proxy: Proxy

    def outages(self) -> int:
        """How often the relay has said that it lost PostgreSQL."""
        return self.product.logged().count(OUT)

    def until_noticed(self, timeout: float = NOTICED) -> None:
        until(
            lambda: self.outages() == 1, timeout, lambda: f'it is noticed:\n{self.product.logged()[-5000:]}'
        )


@pytest.fixture
def scene(
    product: Product,
    traffic: Callable[..., Traffic],
    postgres: PostgresServer,
    proxy_factory: Callable[[str, int], Proxy],
) -> Scene:
    proxy = proxy_factory('127.0.0.1', postgres.port)
    made = Scene(product, traffic(postgres_url=through(proxy, product.database)), proxy)
    product.run()
    made.flow.flows()
    assert made.outages() == 0
    return made


def through(proxy: Proxy, database: Database) -> str:
    return database.relay_url.replace(f':{database.server.port}/', f':{proxy.port}/')


@pytest.mark.parametrize('reset', [True, False], ids=['RST', 'FIN'])
def test_cut(scene: Scene, reset: bool) -> None:
    scene.proxy.cut(reset=reset)
    over = time.time()
    scene.flow.flows_again(f'link to PostgreSQL cut, {"RST" if reset else "FIN"}', over, BACK)
    scene.until_noticed()
    scene.flow.finish(repeats=LOST)


@pytest.mark.parametrize('towards', ['client', 'server'])
def test_half_closed(scene: Scene, towards: Side) -> None:
    """Either side takes the end of one direction for the end of the session."""
    scene.proxy.half_close(towards)
    over = time.time()
    scene.flow.flows_again(f'link to PostgreSQL half-closed, {towards}', over, BACK)
    scene.until_noticed()
    scene.flow.finish(repeats=LOST)


@pytest.mark.parametrize('towards', ['client', 'server'])
def test_cut_in_the_middle_of_a_message(scene: Scene, towards: Side) -> None:
    """A message has at least five bytes (type and length) before what it says."""
    scene.proxy.cut_after(3, towards)
    scene.until_noticed()
    scene.flow.flows_again(f'link to PostgreSQL cut in a message, {towards}', time.time(), BACK)
    scene.flow.finish(repeats=LOST)


def test_cut_between_commit_and_its_answer(scene: Scene) -> None:
    """What was settled is settled: nothing of it comes again, though the relay never heard so."""
    scene.proxy.cut_answer(b'finish_batch', b'commit')
    scene.until_noticed()
    scene.flow.flows_again('link to PostgreSQL cut instead of the answer to COMMIT', time.time(), BACK)
    scene.flow.finish(repeats=0)


def test_cut_before_commit(scene: Scene) -> None:
    """The batch was delivered and is not settled: it comes again."""
    scene.proxy.cut_answer(b'finish_batch')
    scene.until_noticed()
    scene.flow.flows_again('link to PostgreSQL cut before COMMIT', time.time(), BACK)
    assert scene.flow.finish(repeats=LOST).repeats > 0


def test_stalled_and_never_resumed_while_others_get_through(scene: Scene) -> None:
    """Something on the way has forgotten our connections and answers for both ends: TCP never tells.

    The look of another session ends it: 15 s of silence, and the server is not at work. Its end of the lost
    session, with the lock on the queue, lives on, until the relay that comes back ends it.
    """
    scene.proxy.hold()
    over = time.time()
    scene.until_noticed(BACK_AFTER_SILENCE)
    scene.flow.flows_again('link to PostgreSQL stalled for good', over, BACK_AFTER_SILENCE)
    assert 'no answer in time' in scene.product.until_logged(OUT)
    scene.product.until_logged('ended a session of ours that the server still took for alive')
    scene.flow.finish(repeats=LOST)


def test_stalled_for_everybody(scene: Scene) -> None:
    """The look gets through as little as all else; new connections are tried until one does."""
    scene.proxy.stall()
    scene.until_noticed(BACK_AFTER_SILENCE)
    assert scene.product.children()['events']['state'] == 'PAUSED'
    scene.proxy.resume()
    scene.flow.flows_again('way to PostgreSQL stalled', time.time(), BACK_AFTER_SILENCE)
    scene.flow.finish(repeats=LOST)


def test_throttled(scene: Scene) -> None:
    """Slow is not lost, however long an answer takes."""
    scene.proxy.throttle(SLOW)
    scene.product.sql("select pgq.insert_event('events', 'big', %s, '', null, null, null)", BIG)
    scene.product.arrivals('big')
    until(lambda: scene.product.queued('big') == 1, 180, 'what takes 7.5 s arrives')
    scene.flow.flows()
    scene.proxy.throttle(0)
    scene.flow.flows_again('link to PostgreSQL throttled', time.time(), BACK)
    assert scene.outages() == 0
    scene.flow.finish(repeats=0)
