"""What a service sees when something is wrong. All of them are ConnectorError."""

from __future__ import annotations

from mikkoo.common import errors
from mikkoo.common.errors import BrokerError, BrokerLost, BrokerRefused, MikkooError


class ConnectorError(MikkooError):
    """Base of all that the connector raises on purpose."""


class ConfigurationError(ConnectorError, errors.ConfigurationError):
    """The configuration cannot be used; `mistakes` holds each one with its file and key."""


class AccessRefused(ConnectorError, BrokerRefused):
    """RabbitMQ said no: credentials, virtual host, TLS, queue. `code` is its reply code or 0."""


class ConnectionLost(ConnectorError, BrokerLost):
    """The connection is gone, or could not be made. What was in hand comes back."""


class ChannelClosed(ConnectorError):
    """RabbitMQ refused a call on a channel: `code` 403, 404, 405, 406 and its `text`."""

    def __init__(self, code: int, text: str, what: str = '') -> None:
        super().__init__(f'{what}: {code} {text}' if what else f'{code} {text}')
        self.code = code
        self.text = text


class PublishFailed(ConnectorError):
    """A message was not taken: Unroutable, or refused by its queue (a full one that rejects)."""


class Unroutable(PublishFailed):
    """A mandatory message that no queue wanted."""


def translated(error: BrokerError) -> ConnectorError:
    """What a service is told of an error of the link."""
    if isinstance(error, ConnectorError):
        return error
    if isinstance(error, BrokerRefused):
        return AccessRefused(str(error), error.code)
    return ConnectionLost(str(error))
