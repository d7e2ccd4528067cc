"""Plain frozen settings: what `config` makes of the YAML file and what crosses to children.

Nothing here validates, reads or imports pydantic. Secrets are left out of every repr.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SslOptions:
    """TLS towards RabbitMQ. `protocol`: the ssl.PROTOCOL_* integer; 2 (any) means the newest both speak."""

    ca_certs: str | None = None
    ca_path: str | None = None
    ca_data: str | None = None
    protocol: int = 2
    certfile: str | None = None
    keyfile: str | None = None
    password: str | None = field(default=None, repr=False)
    ciphers: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """How to reach RabbitMQ. `nodes`: (host, port), in random order; `heartbeat_interval` in seconds."""

    nodes: tuple[tuple[str, int], ...] = (('localhost', 5672),)
    vhost: str = '/'
    username: str = 'guest'
    password: str = field(default='guest', repr=False)
    ssl_options: SslOptions | None = None
    heartbeat_interval: int = 300


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One entry of Application/workers: one PgQ queue to one broker. Times in seconds."""

    name: str
    queue: str
    postgres_url: str = field(repr=False)
    rabbitmq: BrokerSettings = BrokerSettings()
    confirm: bool = True
    consumer_name: str = 'mikkoo'
    max_failures: int = 10
    retry_delay: float = 10.0
    unregister: bool = False
    wait_duration: float = 10.0
    create_queue: bool = False
    persistent: bool = True
    deduplication_header: bool = False
    confirm_window: int = 1000
    confirm_timeout: float = 60.0
    window_bytes: int = 16 * 1024 * 1024

    @property
    def kind(self) -> str:
        return 'worker'


@dataclass(frozen=True, slots=True)
class BindingSettings:
    """What an auditor taps: an exchange, and which of its messages. `arguments`: of a headers exchange."""

    exchange: str
    routing_key: str = '#'
    arguments: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditorSettings:
    """One entry of Application/auditors: the records of one database against one broker. Times in seconds.

    `action`: what becomes of a record whose message has arrived, 'delete' or 'mark'. `queue_type`: 'quorum'
    (classic where the broker has none) or 'classic'.
    """

    name: str
    queue: str
    postgres_url: str = field(repr=False)
    bindings: tuple[BindingSettings, ...]
    rabbitmq: BrokerSettings = BrokerSettings()
    queue_type: str = 'quorum'
    grace: float = 60.0
    keep: float = 604_800.0
    action: str = 'delete'
    prefetch: int = 1000

    @property
    def kind(self) -> str:
        return 'auditor'

    @property
    def exchanges(self) -> tuple[str, ...]:
        """The exchanges that it audits, each once."""
        return tuple(dict.fromkeys(binding.exchange for binding in self.bindings))


ProcessSettings = WorkerSettings | AuditorSettings  # what a child of the supervisor is given


def audit_queue(name: str) -> str:
    """The RabbitMQ queue of an auditor that gives none."""
    return f'mikkoo.audit.{name}'


@dataclass(frozen=True, slots=True)
class StatsdSettings:
    """Where metrics go: UDP, off unless enabled."""

    enabled: bool = False
    host: str = 'localhost'
    port: int = 8125
    prefix: str = 'mikkoo'


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What every process needs to report about itself; told to running children on a reload.

    `levels`: logger name to level number, from the Logging section ('' is the root).
    `poll_interval`: seconds between a child's reports to the supervisor.
    """

    statsd: StatsdSettings = StatsdSettings()
    sentry_dsn: str | None = field(default=None, repr=False)
    levels: Mapping[str, int] = field(default_factory=dict)
    poll_interval: float = 10.0


def telemetry_to_dict(telemetry: Telemetry) -> dict[str, Any]:
    """As JSON takes it, for the pipe. Bears the Sentry DSN: not for a log."""
    statsd = telemetry.statsd
    return {
        'statsd': {name: getattr(statsd, name) for name in statsd.__dataclass_fields__},
        'sentry_dsn': telemetry.sentry_dsn,
        'levels': dict(telemetry.levels),
        'poll_interval': telemetry.poll_interval,
    }


def telemetry_from_dict(fields: Mapping[str, Any]) -> Telemetry:
    """What `telemetry_to_dict` was given."""
    return Telemetry(**{**fields, 'statsd': StatsdSettings(**fields['statsd'])})


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The Daemon section. None: not given (no change of user or group, default pidfile, umask 0o022)."""

    user: str | None = None
    group: str | None = None
    pidfile: str | None = None
    umask: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole, valid configuration. `logging`: for dictConfig, with `debug_only` on handlers.

    `warnings`: what is allowed but worth saying, ready to print (file:line:column: text).
    """

    workers: tuple[WorkerSettings, ...] = ()
    auditors: tuple[AuditorSettings, ...] = ()
    telemetry: Telemetry = Telemetry()
    daemon: DaemonSettings = DaemonSettings()
    logging: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def processes(self) -> tuple[ProcessSettings, ...]:
        """All that the supervisor keeps running; no two have one name."""
        return (*self.workers, *self.auditors)
