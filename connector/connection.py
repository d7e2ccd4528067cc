"""A connection to a virtual host for a service that publishes and declares."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from mikkoo.common.amqp_shared import SharedLink
from mikkoo.common.errors import BrokerError
from mikkoo.common.pulse import Pulse
from mikkoo.common.settings import BrokerSettings
from mikkoo.connector.channel import Channel
from mikkoo.connector.config import broker_settings
from mikkoo.connector.errors import translated

CONNECT_TIMEOUT = 10.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds for a good leave, before the link is dropped


class Connection:
    """Connects at once. Raises AccessRefused, ConnectionLost, ConfigurationError; tries once.

    `parameters`: ConnectionParameters, or an object with their names. A context manager, for any thread.
    """

    def __init__(self, parameters: Any, name: str = '') -> None:
        self.parameters = parameters
        self._lock = threading.Lock()
        self._closed = False
        pulse = Pulse()
        try:
            self._link = open_link(broker_settings(parameters), pulse, name)
        except BrokerError as error:
            raise translated(error) from None
        finally:
            pulse.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether the link is there, as far as is known: a dead one is noticed after two heartbeats."""
        return self._link.alive

    @property
    def is_closed(self) -> bool:
        """The opposite."""
        return not self.is_open

    def channel(self) -> Channel:
        """Another channel; opened at its first use."""
        return Channel(self._link)

    def close(self) -> None:
        """Leave in good order. Again does nothing; never raises."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._link.close(CLOSE_TIMEOUT)


def open_link(settings: BrokerSettings, pulse: Pulse, name: str) -> SharedLink:
    """A link that the broker shows as `name`. Raises BrokerError, Stopping."""
    properties = {
        'product': 'mikkoo.connector',
        'information': 'A service that consumes from RabbitMQ',
        'connection_name': name or 'mikkoo.connector',
    }
    return SharedLink.open(settings, pulse, properties=properties, timeout=CONNECT_TIMEOUT)
