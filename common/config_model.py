"""What a configuration file may hold: every key with its type, range, unit, default and meaning.

Defaults come from the records of `settings`; the JSON Schema and docs/configuration.md follow this file. With
config_types, the home of pydantic. Its lines are many because they are the whole list of keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mikkoo.common import config_types as types
from mikkoo.common import settings
from mikkoo.common.config_tree import KeyPath, Scalar, Section

DAY = 86_400
KIB, GIB = 1024, 1024**3
PORT, TLS_PORT = 5672, 5671


def _options(record: type[Any]) -> Callable[..., Any]:
    """A maker of fields whose defaults are those of a record of `settings`."""
    defaults = {field.name: field.default for field in dataclasses.fields(record)}

    def option(name: str, meaning: str, unit: str = '') -> Any:
        extra: Any = {'x-unit': unit} if unit else None
        return Field(default=defaults[name], description=meaning, json_schema_extra=extra)

    return option


class Part(BaseModel):
    """A mapping of the file. A key without a value counts as not given."""

    model_config = ConfigDict(extra='forbid', frozen=True)
    second_names: ClassVar[dict[str, str]] = {}  # of keys that have two: the second, and the one used here

    @model_validator(mode='before')
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, Scalar) and data.null:
            return {}
        if isinstance(data, Section):
            return {
                key: value for key, value in data.items() if not (isinstance(value, Scalar) and value.null)
            }
        return data


_tls = _options(settings.SslOptions)


class SslOptions(Part):
    """TLS towards RabbitMQ. `true` or `{}`: with the defaults."""

    second_names = {'prototcol': 'protocol'}

    ca_certs: Annotated[str | None, types.FILE_PATH] = _tls(
        'ca_certs', 'File of concatenated CA certificates, PEM'
    )
    ca_path: Annotated[str | None, types.FILE_PATH] = _tls(
        'ca_path', "Folder of CA certificates, PEM, named by OpenSSL's hash"
    )
    ca_data: Annotated[str | None, types.TEXT] = _tls('ca_data', 'CA certificates themselves, PEM')
    protocol: Annotated[int, types.TLS_PROTOCOL] = _tls(
        'protocol',
        'ssl.PROTOCOL_* number. 2: the newest version that both speak; 3, 4, 5: TLS 1.0, 1.1, 1.2 only',
    )
    certfile: Annotated[str | None, types.FILE_PATH] = _tls(
        'certfile', 'File of our own certificate (chain), PEM'
    )
    keyfile: Annotated[str | None, types.FILE_PATH] = _tls(
        'keyfile', 'File of its private key, PEM; may be in certfile'
    )
    password: Annotated[str | None, types.TEXT] = _tls('password', 'Password of the private key')
    ciphers: Annotated[str | None, types.TEXT] = _tls(
        'ciphers', "Ciphers for TLS up to 1.2, OpenSSL's list format"
    )
    verify: Annotated[bool, types.FLAG] = _tls('verify', "Verify the broker's certificate and its name")


_broker = _options(settings.BrokerSettings)


class RabbitMQ(Part):
    """How to reach RabbitMQ."""

    second_names = {'hosts': 'host'}

    host: Annotated[tuple[tuple[str, int | None], ...], types.BROKER_HOSTS] = Field(
        default=(('localhost', None),),
        description='Name or address, "host:port", or a list of them, tried in random order',
    )
    port: Annotated[int | None, types.PORT] = Field(
        default=None, description=f'Port of the hosts that bring none; {TLS_PORT} where ssl_options is given'
    )
    vhost: Annotated[str, types.VIRTUAL_HOST] = _broker('vhost', 'Virtual host')
    username: Annotated[str, types.TEXT] = _broker('username', 'User to log in as')
    password: Annotated[str, types.TEXT] = _broker('password', 'Password of the user')
    ssl_options: Annotated[SslOptions | None, BeforeValidator(types.switchable)] = _broker(
        'ssl_options', 'TLS; true for the defaults'
    )
    heartbeat_interval: Annotated[int, types.seconds(0, 65535, whole=True)] = _broker(
        'heartbeat_interval', 'Time between AMQP heartbeats; 0: none', 'seconds'
    )

    def record(self) -> settings.BrokerSettings:
        tls = None if self.ssl_options is None else settings.SslOptions(**dict(self.ssl_options))
        default = self.port or (TLS_PORT if tls else PORT)
        nodes = tuple((host, port or default) for host, port in self.host)
        return settings.BrokerSettings(
            tuple(dict.fromkeys(nodes)),
            self.vhost,
            self.username,
            self.password,
            tls,
            self.heartbeat_interval,
        )


_worker = _options(settings.WorkerSettings)


class Worker(Part):
    """One PgQ queue to one RabbitMQ."""

    second_names = {'postgresql_url': 'postgres_url', 'retry_interval': 'retry_delay'}

    postgres_url: Annotated[str, types.DATABASE_URL] = Field(
        description='URL (or conninfo) of the database that holds the queue'
    )
    queue: Annotated[str | None, types.NAME] = Field(
        default=None, description='PgQ queue to relay; the name of the worker if not given'
    )
    rabbitmq: RabbitMQ = Field(default_factory=RabbitMQ, description='How to reach RabbitMQ')
    confirm: Annotated[bool, types.FLAG] = _worker(
        'confirm', 'Publisher confirms; without them an event may be lost'
    )
    consumer_name: Annotated[str, types.NAME] = _worker('consumer_name', 'Name of the PgQ consumer')
    max_failures: Annotated[int, types.count(1, 32_767)] = _worker(
        'max_failures', 'Failures of an event before it is given up', 'attempts'
    )
    retry_delay: Annotated[float, types.seconds(0.001, 365 * DAY)] = _worker(
        'retry_delay', 'Time until a failed event is tried again', 'seconds'
    )
    unregister: Annotated[bool, types.FLAG] = _worker(
        'unregister',
        'Unregister the consumer when retired or at the stop of the daemon; loses events meanwhile',
    )
    wait_duration: Annotated[float, types.seconds(0.001, DAY)] = _worker(
        'wait_duration', 'Time until the queue is looked at again after an empty result', 'seconds'
    )
    create_queue: Annotated[bool, types.FLAG] = _worker(
        'create_queue', 'Create the queue if it does not exist'
    )
    persistent: Annotated[bool, types.FLAG] = _worker(
        'persistent', 'delivery_mode 2 for events that give none'
    )
    deduplication_header: Annotated[bool, types.FLAG] = _worker(
        'deduplication_header',
        'Add the header x-deduplication-header: the message_id',
    )
    confirm_window: Annotated[int, types.count(1, 65_535)] = _worker(
        'confirm_window', 'Messages in flight without their confirm, at most', 'messages'
    )
    confirm_timeout: Annotated[float, types.seconds(0.1, DAY)] = _worker(
        'confirm_timeout', 'Time without any confirm after which the link counts as dead', 'seconds'
    )
    window_bytes: Annotated[int, types.count(64 * KIB, 2 * GIB)] = _worker(
        'window_bytes', 'Events held in memory at a time, at most', 'bytes'
    )

    def record(self, name: str) -> settings.WorkerSettings:
        values = {**dict(self), 'queue': self.queue or name, 'rabbitmq': self.rabbitmq.record()}
        return settings.WorkerSettings(name=name, **values)


_binding = _options(settings.BindingSettings)


class Binding(Part):
    """What an auditor taps."""

    exchange: Annotated[str, types.EXCHANGE] = Field(description='Exchange whose messages are audited')
    routing_key: Annotated[str, types.ROUTING_KEY] = _binding(
        'routing_key', 'Binding key; the default takes all of a topic or fanout exchange'
    )
    arguments: Annotated[dict[str, Any], types.ARGUMENTS] = Field(
        default_factory=dict, description='Arguments of the binding, for a headers exchange'
    )


_auditor = _options(settings.AuditorSettings)


class Auditor(Part):
    """Compares what arrives in one RabbitMQ with the audit records of one database."""

    second_names = {'postgresql_url': 'postgres_url'}

    postgres_url: Annotated[str, types.DATABASE_URL] = Field(
        description='URL (or conninfo) of the database that holds the records'
    )
    rabbitmq: RabbitMQ = Field(default_factory=RabbitMQ, description='How to reach RabbitMQ')
    bindings: Annotated[tuple[Binding, ...], BeforeValidator(types.some_items)] = Field(
        description='What is audited: a list of bindings', json_schema_extra={'minItems': 1}
    )
    queue: Annotated[str | None, types.QUEUE] = Field(
        default=None, description='RabbitMQ queue that is made for it; mikkoo.audit.NAME if not given'
    )
    queue_type: Annotated[str, types.one_of('quorum', 'classic')] = _auditor(
        'queue_type', 'Kind of that queue, quorum (classic where the broker has none) or classic'
    )
    grace: Annotated[float, types.seconds(0.1, 365 * DAY)] = _auditor(
        'grace', 'Age from which a record whose message has not arrived is late', 'seconds'
    )
    keep: Annotated[float, types.seconds(1, 3650 * DAY)] = _auditor(
        'keep', 'Time after which records, differences and counts are removed', 'seconds'
    )
    action: Annotated[str, types.one_of('delete', 'mark')] = _auditor(
        'action', 'What becomes of a record whose message has arrived, delete or mark'
    )
    prefetch: Annotated[int, types.count(1, 65_535)] = _auditor(
        'prefetch', 'Messages in hand, at most', 'messages'
    )

    def record(self, name: str) -> settings.AuditorSettings:
        values = {
            **dict(self),
            'queue': self.queue or settings.audit_queue(name),
            'rabbitmq': self.rabbitmq.record(),
            'bindings': tuple(settings.BindingSettings(**dict(binding)) for binding in self.bindings),
        }
        return settings.AuditorSettings(name=name, **values)


_statsd = _options(settings.StatsdSettings)


class Statsd(Part):
    """Metrics by UDP."""

    enabled: Annotated[bool, types.FLAG] = _statsd('enabled', 'Send metrics')
    host: Annotated[str, types.HOST] = _statsd('host', 'Name or address of statsd')
    port: Annotated[int, types.PORT] = _statsd('port', 'UDP port of statsd')
    prefix: Annotated[str, types.STATSD_PREFIX] = _statsd('prefix', "First part of every metric's name")


_telemetry = _options(settings.Telemetry)


class ApplicationPart(Part):
    """What is relayed, and what is told about it."""

    poll_interval: Annotated[float, types.seconds(0.1, DAY)] = _telemetry(
        'poll_interval', "Time between a worker's reports to the daemon while nothing changes", 'seconds'
    )
    sentry_dsn: Annotated[str | None, types.SENTRY_DSN] = _telemetry(
        'sentry_dsn', 'Sentry project that errors are reported to'
    )
    statsd: Statsd = Field(default_factory=Statsd, description='Metrics by UDP')
    workers: dict[Annotated[str, types.NAME], Worker] = Field(description='Workers by name')
    auditors: dict[Annotated[str, types.NAME], Auditor] = Field(
        default_factory=dict, description='Auditors by name'
    )


_daemon = _options(settings.DaemonSettings)


class DaemonPart(Part):
    """The process itself, when it is not in the foreground."""

    user: Annotated[str | None, types.TEXT] = _daemon('user', 'User to run as')
    group: Annotated[str | None, types.TEXT] = _daemon(
        'group', "Group to run as; the user's own if not given"
    )
    pidfile: Annotated[str | None, types.FILE_PATH] = _daemon(
        'pidfile', 'File of the process id, locked while the daemon runs'
    )
    umask: Annotated[int | None, types.OCTAL_MODE] = _daemon(
        'umask', 'Mode bits that new files do not get; octal, 022 if not given'
    )


class Configuration(Part):
    """The configuration of mikkood. Top-level keys that begin with x- are ignored."""

    Application: ApplicationPart = Field(description='What is relayed, and what is told about it')
    Daemon: DaemonPart = Field(default_factory=DaemonPart, description='The process itself')
    Logging: Any = Field(default=None, description='What is logged where; checked by config_logging')

    def record(
        self, logging: Mapping[str, Any], levels: Mapping[str, int], warnings: tuple[str, ...]
    ) -> settings.Settings:
        application = self.Application
        statsd = settings.StatsdSettings(**dict(application.statsd))
        telemetry = settings.Telemetry(statsd, application.sentry_dsn, levels, application.poll_interval)
        workers = tuple(worker.record(name) for name, worker in application.workers.items())
        auditors = tuple(auditor.record(name) for name, auditor in application.auditors.items())
        return settings.Settings(
            workers, auditors, telemetry, settings.DaemonSettings(**dict(self.Daemon)), logging, warnings
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A part of the tree that the model refuses. `names`: for an unknown key, the keys known there."""

    path: KeyPath
    allowed: str
    names: tuple[str, ...] | None = None
    found: str | None = None  # where it is not the value at the path


def validate(tree: Section, folder: Path) -> Configuration | list[Problem]:
    """The model of a tree without its Logging and x- keys. Relative paths in it start at `folder`."""
    try:
        return Configuration.model_validate(tree, context={'folder': folder})
    except ValidationError as refused:
        return [_problem(error) for error in refused.errors(include_url=False, include_input=False)]


def schema() -> dict[str, Any]:
    """The JSON Schema of Application and Daemon, with the second names of keys."""
    made = Configuration.model_json_schema()
    for part in (Worker, Auditor, RabbitMQ, SslOptions):
        properties = made['$defs'][part.__name__]['properties']
        for second, name in part.second_names.items():
            properties[second] = {
                **properties[name],
                'description': f'Another name of {name}',
                'deprecated': True,
            }
    for part in (Worker, Auditor):
        process = made['$defs'][part.__name__]
        process['anyOf'] = [{'required': [name]} for name in ('postgres_url', 'postgresql_url')]
        process['required'].remove('postgres_url')
    tls = made['$defs']['RabbitMQ']['properties']['ssl_options']
    tls['anyOf'] = [{'type': 'boolean'}, *(form for form in tls['anyOf'] if form != {'type': 'null'})]
    return made


def part_at(path: KeyPath) -> type[Part] | None:
    """The model of the mapping at a path of keys, None where there is no such mapping."""
    match path:
        case ():
            return Configuration
        case ('Application',):
            return ApplicationPart
        case ('Application', 'statsd'):
            return Statsd
        case ('Application', 'workers', _):
            return Worker
        case ('Application', 'auditors', _):
            return Auditor
        case ('Application', 'auditors', _, 'bindings', _):
            return Binding
        case ('Application', 'workers' | 'auditors', _, 'rabbitmq'):
            return RabbitMQ
        case ('Application', 'workers' | 'auditors', _, 'rabbitmq', 'ssl_options'):
            return SslOptions
        case ('Daemon',):
            return DaemonPart
    return None


def _problem(error: Any) -> Problem:
    path = error['loc']
    if error['type'] == 'extra_forbidden':
        part = part_at(path[:-1]) or Part
        return Problem(path, '', (*part.model_fields, *part.second_names))
    if error['type'] == 'missing':
        part = part_at(path[:-1]) or Part
        return Problem(path, f'is required: {part.model_fields[path[-1]].description}', found='')
    if error['type'] == 'value_error':
        allowed = str(error['ctx']['error'])
        if path[-1] == '[key]':
            return Problem(path[:-1], allowed, found=f'the name {path[-2]!r}')
        return Problem(path, allowed)
    keys = getattr(part_at(path), 'model_fields', None)
    return Problem(path, 'a mapping with ' + ', '.join(keys) if keys else 'a mapping of names')
