"""Properties of a message, under pika's names."""

from __future__ import annotations

from typing import Any

NAMES = (
    'content_type', 'content_encoding', 'headers', 'delivery_mode', 'priority', 'correlation_id', 'reply_to',
    'expiration', 'message_id', 'timestamp', 'type', 'user_id', 'app_id', 'cluster_id',
)  # fmt: skip


_ABSENT: dict[str, Any] = dict.fromkeys(NAMES)


class BasicProperties:
    """The 14 properties of AMQP 0-9-1; None: absent. `timestamp` in seconds, `expiration` in ms as a text."""

    @classmethod
    def received(cls, given: dict[str, Any]) -> BasicProperties:
        """Those of a delivery, by name; quicker than the constructor."""
        made = cls.__new__(cls)
        made.__dict__ = {**_ABSENT, **given} if given else _ABSENT.copy()
        return made

    def __init__(
        self,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        delivery_mode: int | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        expiration: str | None = None,
        message_id: str | None = None,
        timestamp: int | None = None,
        type: str | None = None,
        user_id: str | None = None,
        app_id: str | None = None,
        cluster_id: str | None = None,
    ) -> None:
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.delivery_mode = delivery_mode
        self.priority = priority
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self.expiration = expiration
        self.message_id = message_id
        self.timestamp = timestamp
        self.type = type
        self.user_id = user_id
        self.app_id = app_id
        self.cluster_id = cluster_id

    def __repr__(self) -> str:
        given = (f'{name}={value!r}' for name in NAMES if (value := getattr(self, name)) is not None)
        return f'BasicProperties({", ".join(given)})'

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BasicProperties):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in NAMES)

    __hash__ = None  # type: ignore[assignment]
