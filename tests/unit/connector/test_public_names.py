"""The names that a service may rely on: as they were specified, with a docstring each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mikkoo import connector


class MQConnector:
    """The specification."""

    def __init__(self, config=None, service_name=None): ...
    def get_connection_params(self, vhost=None, *, heartbeat=60): ...
    def create_mq_connection(self, vhost=None, *, heartbeat=60): ...
    def register_consumer(
        self, name, vhost, queue, callback, on_error=None, auto_ack=True, *,
        prefetch=10, max_attempts=3, dead_letter_queue=None, deduplicate=None, keep=7 * 24 * 3600.0,
    ): ...  # fmt: skip
    def run_consumers(self, names=(), daemon=True, timeout=10.0): ...
    def stop_consumers(self, names=(), timeout=10.0): ...
    def stop(self): ...
    def check_health(self): ...
    def __enter__(self): ...
    @classmethod
    def emit_mq_message(cls, connection, queue, request_data, exchange='', expiration=1000): ...
    @staticmethod
    def create_unique_id(): ...
    @staticmethod
    def default_error_handler(thread, exception): ...


class ConsumerThread:
    """The specification."""

    def __init__(
        self, connection, queue, callback_func, error_func=None, auto_ack=True, *,
        prefetch=10, max_attempts=3, dead_letter_queue=None, name=None,
    ): ...  # fmt: skip
    def wait_ready(self, timeout=None): ...
    def stop(self): ...
    def join(self, timeout=None): ...


def load_config(path=None): ...
def dict_to_b64(data, charset='utf-8', *, legacy=False): ...
def b64_to_dict(data, charset='utf-8'): ...


CLASSES = (MQConnector, ConsumerThread)
CALLS = [
    f'{kind.__name__}.{name}'
    for kind in CLASSES
    for name, one in vars(kind).items()
    if inspect.isroutine(one)
]
SPECIFIED = {
    **{call: getattr(globals()[call.split('.')[0]], call.split('.')[1]) for call in CALLS},
    **{one.__name__: one for one in (load_config, dict_to_b64, b64_to_dict)},
}
KINDS = [one for name in connector.__all__ if inspect.isclass(one := getattr(connector, name))]


def parameters(call: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(call).parameters.values()]


@pytest.mark.parametrize('name', SPECIFIED)
def test_as_specified_and_anything_more_is_optional(name: str) -> None:
    found: Any = connector
    for part in name.split('.'):
        found = getattr(found, part)
    specified, real = parameters(SPECIFIED[name]), parameters(found)
    assert real[: len(specified)] == specified
    for _, kind, default in real[len(specified) :]:
        assert kind == inspect.Parameter.KEYWORD_ONLY and default is not inspect.Parameter.empty


def test_the_errors_are_connector_errors() -> None:
    for error in (connector.ConfigurationError, connector.AccessRefused, connector.ConnectionLost):
        assert issubclass(error, connector.ConnectorError)


def public(kind: type) -> Iterator[tuple[str, Any]]:
    for name, one in vars(kind).items():
        made_by_us = callable(one) or isinstance(one, property | staticmethod | classmethod)
        if made_by_us and not name.startswith('_'):
            yield f'{kind.__name__}.{name}', one


@pytest.mark.parametrize('kind', [*KINDS, connector.channel.Channel])
def test_every_public_name_says_what_it_is(kind: type) -> None:
    assert kind.__doc__
    assert [name for name, one in public(kind) if not one.__doc__ and name != 'ConsumerThread.run'] == []
