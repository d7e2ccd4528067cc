"""An event of PgQ becomes a message of AMQP. Pure: no I/O, no clock but the one in `sequence`.

docs/mapping.md tells the mapping to its users. What this refuses, no retry can cure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mikkoo.common.errors import EventError
from mikkoo.worker.event import Event, Message
from mikkoo.worker.identity import Sequence, event_ids
from mikkoo.worker.properties import KINDS, read_json, read_properties, short_text

APP_ID = 'mikkoo'
PERSISTENT = 2  # delivery_mode
LARGEST_BODY = 128 * 1024 * 1024  # bytes; RabbitMQ's own default, max_message_size
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ROUTE_HEADERS = (
    'CC',
    'BCC',
)  # more routing keys; arrays of texts, or RabbitMQ closes the channel

DEDUPLICATION_HEADER = 'x-deduplication-header'  # of the plugin rabbitmq_message_deduplication

Marks = tuple[str, int, str, int]  # id, seconds since 1970, time as text, sequence number

UNKNOWN_PROPERTY = 'unknown_property'
HEADERS_NOT_OBJECT = 'headers_not_object'


class Translator:
    """Makes a Message of an Event. Raises EventError; its field is 'ev_type', 'ev_extra3.priority', ....

    `database`, `queue`: what makes an ev_id unique; part of message_id, so keep them as they are.
    `origin`: the host's name. `persistent` False: delivery_mode only where the event gives it.
    `largest_body`: bytes. `username`: the broker's login; RabbitMQ refuses any other user_id (None: not
    checked, for a login with the tag `impersonator`). `on_warning` hears (kind, text) of what was ignored;
    the kind is UNKNOWN_PROPERTY or HEADERS_NOT_OBJECT.
    """

    def __init__(
        self,
        *,
        database: str,
        queue: str,
        origin: str,
        persistent: bool = True,
        largest_body: int = LARGEST_BODY,
        username: str | None = None,
        sequence: Callable[[], int] | None = None,
        on_warning: Callable[[str, str], None] | None = None,
    ) -> None:
        self._event_id = event_ids(database, queue)
        self._origin = origin
        self._automatic = {'app_id': APP_ID, **({'delivery_mode': PERSISTENT} if persistent else {})}
        self._largest_body = largest_body
        self._username = username
        self._sequence = Sequence() if sequence is None else sequence
        self._on_warning = on_warning
        self.warned = 0  # how many times something was ignored
        self._second = -1
        self._second_text = ''

    def __call__(self, event: Event) -> Message:
        return self.compose(event, self.mark(event))

    def compose(self, event: Event, marks: Marks) -> Message:
        """The message of an event and what `mark` gave for it."""
        event_id, seconds, moment, sequence = marks
        given, headers = self._given(event)
        if 'origin' not in headers:
            headers['origin'] = self._origin
        if 'sequence' not in headers:
            headers['sequence'] = sequence
        if 'timestamp' not in headers:
            headers['timestamp'] = moment
        if 'txid' not in headers:
            headers['txid'] = event.txid
        properties = {
            **self._automatic,
            'correlation_id': event_id,
            'timestamp': seconds,
            **given,
            'headers': headers,
        }
        if not given.get('message_id'):  # an empty one would make equals of different messages
            properties['message_id'] = event_id
        exchange = _name('ev_extra1', event.extra1)
        return Message(exchange, _name('ev_type', event.type), properties, self.body(event.data))

    def mark(self, event: Event) -> Marks:
        """What this event alone has in its properties; keeps the second's text, which neighbours share."""
        delta = event.time - EPOCH
        seconds = delta.days * 86_400 + delta.seconds
        if seconds != self._second:
            if seconds < 0:
                raise EventError('ev_time', f'{event.time} is before 1970, and no AMQP timestamp is')
            try:
                self._second_text = (EPOCH + timedelta(seconds=seconds)).isoformat(' ')[:19]
            except OverflowError:
                raise EventError('ev_time', f'{event.time} is past the year 9999 in UTC') from None
            self._second = seconds
        microseconds = delta.microseconds
        event_id = self._event_id(event.id, seconds * 1_000_000 + microseconds)
        return event_id, seconds, f'{self._second_text}.{microseconds:06d}+00:00', self._sequence()

    def _given(self, event: Event) -> tuple[dict[str, Any], dict[str, Any]]:
        """The properties and the headers that the event itself gives."""
        properties: dict[str, Any] = {}
        headers = None
        if event.extra3:
            properties, headers = read_properties(event.extra3, lambda name: self._warn_unknown(event, name))
            user_id = properties.get('user_id', self._username)
            if user_id != self._username and self._username is not None:
                text = f'is {user_id!r}, and the login is {self._username!r}'
                raise EventError('ev_extra3.user_id', text, permanent=False)  # the login may change
        if event.extra2 and 'content_type' not in properties:
            properties['content_type'] = _name('ev_extra2', event.extra2)
        if headers is not None:
            _check_routes('ev_extra3.headers', headers)
        else:
            headers = self._headers(event)
        return properties, headers

    def _headers(self, event: Event) -> dict[str, Any]:
        if not event.extra4:
            return {}
        headers = read_json('ev_extra4', event.extra4)
        if type(headers) is dict:
            _check_routes('ev_extra4', headers)
            return headers
        found = KINDS[type(headers)]
        self._warn(HEADERS_NOT_OBJECT, f'event {event.id}: ev_extra4 is {found}, not an object: ignored')
        return {}

    def body(self, data: str | None) -> bytes:
        """The message body of ev_data."""
        try:
            body = data.encode() if data else b''
        except UnicodeEncodeError as error:
            raise EventError('ev_data', f'is not Unicode: {error}') from None
        if len(body) > self._largest_body:
            raise EventError('ev_data', f'has {len(body):,} bytes, and may have {self._largest_body:,}')
        return body

    def _warn_unknown(self, event: Event, name: str) -> None:
        self._warn(UNKNOWN_PROPERTY, f'event {event.id}: ev_extra3: no property is {name[:80]!r}: ignored')

    def _warn(self, kind: str, text: str) -> None:
        self.warned += 1
        if self._on_warning is not None:
            self._on_warning(kind, text)


class DeduplicatingTranslator(Translator):
    """Adds RabbitMQ's deduplication header, the message_id, where the event has no header of that name."""

    def compose(self, event: Event, marks: Marks) -> Message:
        message = super().compose(event, marks)
        properties = message.properties
        properties['headers'].setdefault(DEDUPLICATION_HEADER, properties['message_id'])
        return message


def _name(field: str, text: str | None) -> str:
    try:
        return short_text(text) if text else ''
    except ValueError as error:
        raise EventError(field, str(error)) from None


def _check_routes(field: str, headers: Mapping[str, Any]) -> None:
    for name in ROUTE_HEADERS:
        if name in headers:
            routes = headers[name]
            if type(routes) is not list or not all(type(route) is str for route in routes):
                raise EventError(f'{field}.{name}', 'has to be an array of texts')
