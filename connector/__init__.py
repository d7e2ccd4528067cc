"""What a service that consumes from RabbitMQ writes: see docs/connector.md."""

from mikkoo.connector.config import ConnectionParameters, Credentials, load_config
from mikkoo.connector.connection import Connection
from mikkoo.connector.connector import MQConnector
from mikkoo.connector.consumer import ConsumerThread
from mikkoo.connector.documents import b64_to_dict, dict_to_b64
from mikkoo.connector.errors import (
    AccessRefused,
    ChannelClosed,
    ConfigurationError,
    ConnectionLost,
    ConnectorError,
    PublishFailed,
    Unroutable,
)
from mikkoo.connector.inbox import INBOX_SQL
from mikkoo.connector.properties import BasicProperties

__all__ = [
    'INBOX_SQL', 'AccessRefused', 'BasicProperties', 'ChannelClosed', 'ConfigurationError', 'Connection',
    'ConnectionLost', 'ConnectionParameters', 'ConnectorError', 'ConsumerThread', 'Credentials',
    'MQConnector', 'PublishFailed', 'Unroutable', 'b64_to_dict', 'dict_to_b64', 'load_config',
]  # fmt: skip
