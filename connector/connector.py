"""A service: its configuration, its consumers, and the messages that it sends by itself."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from mikkoo.common import reports
from mikkoo.common.errors import Mistake
from mikkoo.common.pulse import Pulse
from mikkoo.connector import config as configuration
from mikkoo.connector.attempts import Callback
from mikkoo.connector.channel import declare_leniently
from mikkoo.connector.config import HEARTBEAT, ConnectionParameters
from mikkoo.connector.connection import Connection
from mikkoo.connector.consumer import ConsumerThread, ErrorHandler, default_error_handler
from mikkoo.connector.documents import dict_to_b64
from mikkoo.connector.errors import ConfigurationError, ConnectorError
from mikkoo.connector.inbox import KEEP, Inbox
from mikkoo.connector.properties import BasicProperties

LOGGER = logging.getLogger('mikkoo.connector')


class MQConnector:
    """Extend it by a class for each service, which gives `service_name` (whose credentials) and `vhost`.

    `config` None: what `load_config()` reads; a dictionary stands alone. `consumers`: name to ConsumerThread.
    Use it as a context manager, or `run_consumers` and `stop`. Its methods are for one thread, and for the
    callbacks. Raises ConfigurationError: the file cannot be read.
    """

    service_name: str | None = None
    vhost: str = '/'

    def __init__(self, config: Mapping[str, Any] | None = None, service_name: str | None = None) -> None:
        if config is None:
            self._source = str(configuration.config_path())
            self.config = configuration.load_config()
        else:
            self._source = configuration.GIVEN
            self.config = configuration.unwrapped(config)
        if service_name is not None:
            self.service_name = service_name
        self.service_id = self.create_unique_id()
        self.consumers: dict[str, ConsumerThread] = {}
        self._reports = False  # to Sentry
        self._leaving: list[ConsumerThread] = []  # replaced, and asked to stop

    def get_connection_params(
        self, vhost: str | None = None, *, heartbeat: int = HEARTBEAT
    ) -> ConnectionParameters:
        """How to reach a virtual host, the service's own by default. Raises ConfigurationError."""
        return configuration.parameters(
            self.config,
            self.service_name,
            self.vhost if vhost is None else vhost,
            source=self._source,
            heartbeat=heartbeat,
        )

    def create_mq_connection(self, vhost: str | None = None, *, heartbeat: int = HEARTBEAT) -> Connection:
        """A connection, made at once. Raises ConfigurationError, AccessRefused, ConnectionLost."""
        given = self.get_connection_params(vhost, heartbeat=heartbeat)
        return Connection(given, name=str(self.service_name))

    def register_consumer(
        self,
        name: str,
        vhost: str | None,
        queue: str,
        callback: Callback,
        on_error: ErrorHandler | None = None,
        auto_ack: bool = True,
        *,
        prefetch: int = 10,
        max_attempts: int = 3,
        dead_letter_queue: str | None = None,
        deduplicate: str | None = None,
        keep: float = KEEP,
    ) -> ConsumerThread:
        """A consumer for `run_consumers` to start; one of the same name is stopped and replaced. No I/O.

        `vhost` None: the service's. `deduplicate`: drop messages whose message_id this consumer has handled
        within `keep` seconds; 'postgres': remembered in the transaction of the callback (`transaction`), in
        the database `postgres_url` of the configuration; 'sqlite': in the file `inbox_file`, which only
        narrows the window. The rest as in ConsumerThread. Raises ConfigurationError, ValueError.
        """
        made = ConsumerThread(
            self.get_connection_params(vhost),
            queue,
            callback,
            on_error or self.default_error_handler,
            auto_ack,
            prefetch=prefetch,
            max_attempts=max_attempts,
            dead_letter_queue=dead_letter_queue,
            name=f'{self.service_name}.{name}',
            inbox=self._inbox(deduplicate, f'{self.service_name}.{name}', keep),
            statsd=configuration.statsd_settings(self.config, self._source),
        )
        self._replace(name, made)
        return made

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """In a callback with deduplicate='postgres': a cursor in the transaction of the message in hand.

        It is committed after the callback has returned and before the message is acked; an exception undoes
        what was done inside. Raises ConnectorError anywhere else; DatabaseError.
        """
        thread = threading.current_thread()
        inbox = thread.inbox if isinstance(thread, ConsumerThread) else None
        begin = getattr(inbox, 'transaction', None)
        if begin is None:
            raise ConnectorError("transaction() is for callbacks of a consumer with deduplicate='postgres'")
        with begin() as cursor:
            yield cursor

    def run_consumers(self, names: Iterable[str] = (), daemon: bool = True, timeout: float = 10.0) -> bool:
        """Start these consumers, or all, where they do not run, and wait until each is subscribed.

        False: not within `timeout` seconds; they go on trying. Raises what made one give up (AccessRefused);
        the others run. Those that were stopped are made anew.
        """
        self._report()
        deadline = time.monotonic() + timeout
        started = [self._start(name, daemon) for name in self._named(names)]
        ready = [thread.wait_ready(max(0.0, deadline - time.monotonic())) for thread in started]
        for thread in started:
            if thread.exception is not None:
                raise thread.exception
        return all(ready)

    def stop_consumers(self, names: Iterable[str] = (), timeout: float = 10.0) -> None:
        """Stop these consumers, or all: each finishes the message in hand; those only prefetched go back.

        All are told first and then waited for, `timeout` seconds together. Called by a consumer's own
        callback or error handler it does not wait for that one.
        """
        wanted = list(names)
        threads = [self.consumers[name] for name in self._named(wanted)] + ([] if wanted else self._leaving)
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in threads if _waited_for(thread)]
        if late:
            LOGGER.warning('still busy after %g s, and will end later: %s', timeout, ', '.join(late))
        self._forget_the_ended()

    def stop(self) -> None:
        """Stop all consumers."""
        self.stop_consumers()
        if self._reports:
            reports.flush()

    def check_health(self) -> bool:
        """Whether every registered consumer is subscribed at this moment and can handle messages."""
        return all(
            thread.is_consuming and not thread.is_starved and not thread.waits_for
            for thread in self.consumers.values()
        )

    def __enter__(self) -> Self:
        try:
            self.run_consumers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @classmethod
    def emit_mq_message(
        cls,
        connection: Connection,
        queue: str,
        request_data: dict[str, Any],
        exchange: str = '',
        expiration: int | None = 1000,
    ) -> str:
        """Publish a document to `queue`, the routing key; its message_id, made where it has none.

        `expiration` in milliseconds, None for ever. The queue is declared where `exchange` is empty. Raises
        ValueError (no dictionary with content), ConnectionLost, ChannelClosed, PublishFailed.
        """
        if not isinstance(request_data, dict) or not request_data:
            raise ValueError('request_data is a dictionary with content')
        message_id = str(request_data.get('message_id') or cls.create_unique_id())
        document = {**request_data, 'message_id': request_data.get('message_id') or message_id}
        body = dict_to_b64(document)
        properties = BasicProperties(expiration=None if expiration is None else str(expiration))
        channel = connection.channel()
        try:
            if not exchange:
                declare_leniently(channel, queue)
            channel.basic_publish(exchange, queue, body, properties)
        finally:
            channel.close()
        return message_id

    @staticmethod
    def create_unique_id() -> str:
        """32 hexadecimal digits."""
        return uuid.uuid4().hex

    @staticmethod
    def default_error_handler(thread: ConsumerThread, exception: BaseException) -> None:
        """Logs it."""
        default_error_handler(thread, exception)

    def _inbox(self, kind: str | None, consumer: str, keep: float) -> Callable[[Pulse], Inbox] | None:
        """What makes the memory of a consumer's thread. The libraries are loaded where they are used."""
        if kind is None:
            return None
        if kind == 'sqlite':
            from mikkoo.connector.inbox_sqlite import DEFAULT_PATH, SqliteInbox

            file = configuration.optional_text(self.config, 'inbox_file', self._source) or DEFAULT_PATH
            return lambda pulse: SqliteInbox(file, consumer, keep)
        if kind != 'postgres':
            raise ValueError(f"deduplicate is 'postgres', 'sqlite' or None, not {kind!r}")
        from mikkoo.connector.inbox_postgres import PostgresInbox

        url = configuration.optional_text(self.config, 'postgres_url', self._source)
        if url is None:
            allowed = "is missing: deduplicate='postgres' needs the URL (libpq) of a database"
            raise ConfigurationError(Mistake(self._source, 0, 0, 'postgres_url', '', allowed))
        return lambda pulse: PostgresInbox(url, consumer, keep, pulse)

    def _report(self) -> None:
        """Reports to Sentry, where the configuration has a DSN; the first service of a process decides."""
        dsn = configuration.optional_text(self.config, 'sentry_dsn', self._source)
        if dsn is not None and not self._reports:
            self._reports = True
            reports.init(dsn, process='connector', worker=str(self.service_name))

    def _named(self, names: Iterable[str]) -> list[str]:
        wanted = [names] if isinstance(names, str) else list(names)
        for name in wanted:
            if name not in self.consumers:
                known = ', '.join(sorted(self.consumers)) or 'none'
                raise ConnectorError(f'no consumer is called {name!r}; registered: {known}')
        return wanted or list(self.consumers)

    def _start(self, name: str, daemon: bool) -> ConsumerThread:
        thread = self.consumers[name]
        if thread.is_stopping:
            thread = thread.renewed()
            self._replace(name, thread)
        if thread.ident is None:
            thread.daemon = daemon
            thread.start()
        return thread

    def _replace(self, name: str, made: ConsumerThread) -> None:
        old = self.consumers.get(name)
        self.consumers[name] = made
        if old is not None:
            old.stop()
            self._leaving.append(old)
            self._forget_the_ended()

    def _forget_the_ended(self) -> None:
        self._leaving = [thread for thread in self._leaving if thread.is_alive()]


def _waited_for(thread: ConsumerThread) -> bool:
    return thread.is_alive() and thread is not threading.current_thread()
