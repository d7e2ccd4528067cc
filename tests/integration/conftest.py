"""Fixtures of the integration tests beside the servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Database
from tests.integration.product import Product
from tests.integration.relaying import Scene
from tests.integration.supervised import Supervised
from tests.servers.pgqd import Pgqd
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitServer


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """`supervise({name: settings}, **policy)`: a running supervisor whose children all run."""
    made: list[Supervised] = []

    def start(workers: dict[str, dict[str, Any]], *, running: bool = True, **policy: float) -> Supervised:
        made.append(Supervised(tmp_path, workers, **policy))
        if running:
            made[-1].until_running()
        else:
            made[-1].until_ready()
        return made[-1]

    yield start
    for supervised in made:
        supervised.close()


@pytest.fixture
def product(
    tmp_path: Path,
    database: Database,
    rabbitmq: RabbitServer,
    vhost: str,
    pgqd_factory: Callable[..., Pgqd],
) -> Iterator[Product]:
    """Servers that tick, and a mikkood that a test starts. Its log is shown where the test fails."""
    made = Product(tmp_path, database, rabbitmq, vhost)
    made.pgqd = pgqd_factory(database.url)
    yield made
    made.close()
    print(made.logged()[-20_000:])


@pytest.fixture
def scene(database: Database, rabbitmq: RabbitServer, vhost: str) -> Iterator[Scene]:
    """A PgQ queue, an exchange and a queue, for a worker without a supervisor."""
    made = Scene(database, rabbitmq, vhost)
    yield made
    made.close()


@pytest.fixture
def to_broker(rabbitmq: RabbitServer, proxy_factory: Callable[[str, int], Proxy]) -> Proxy:
    """A proxy before the broker."""
    return proxy_factory(rabbitmq.host, rabbitmq.port)
