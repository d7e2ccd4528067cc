"""What a configuration says beyond one value at a time: old names, placeholders, rules across keys, warnings.

Works on the tree, so that its mistakes are found beside the model's; brings the tree to the model's names.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from mikkoo.common.config_tree import Items, KeyPath, Place, Scalar, Section

SECOND_WORKER_NAMES = (('postgresql_url', 'postgres_url'), ('retry_interval', 'retry_delay'))
PLACEHOLDER = re.compile(r'\W*YOUR[ _-]SENTRY[ _-]DSN\W*', re.IGNORECASE)
# `name = value` of a conninfo. From the start of a word only: else a long word is tried from each letter.
OPTION = re.compile(r"\b(\w+)\s*=\s*('[^']*'|\S*)")
TLS_PORT = '5671'
LOCAL = ('', '127.0.0.1', '::1', 'localhost')


class Found(NamedTuple):
    """Where a key stands, its path, and what is found and what is allowed, or a warning's text."""

    place: Place
    path: KeyPath
    found: str
    allowed: str


class Findings:
    def __init__(self) -> None:
        self.mistakes: list[Found] = []
        self.warnings: list[Found] = []

    def mistake(self, place: Place, path: KeyPath, found: str, allowed: str) -> None:
        self.mistakes.append(Found(place, path, found, allowed))

    def warn(self, place: Place, path: KeyPath, text: str) -> None:
        self.warnings.append(Found(place, path, '', text))


def check(tree: Section) -> Findings:
    """Check a whole tree and bring its old names to the model's; the x- keys are dropped."""
    findings = Findings()
    for key in [key for key in tree if key.startswith('x-')]:
        del tree[key]
    application = tree.section('Application')
    _sentry(application, findings)
    workers = application.section('workers')
    auditors = application.section('auditors')
    if isinstance(application.get('workers'), Section) and not workers and not auditors:
        findings.warn(
            application.key_places['workers'], ('Application', 'workers'), 'no workers: nothing is relayed'
        )
    for name, worker in workers.items():
        if isinstance(worker, Section):
            _Worker(worker, ('Application', 'workers', name), findings).check()
    for name, auditor in auditors.items():
        if isinstance(auditor, Section):
            _Process(auditor, ('Application', 'auditors', name), findings).check()
    _same_consumers(workers, findings)
    _same_names(workers, auditors, findings)
    _same_records(auditors, findings)
    return findings


def _sentry(application: Section, findings: Findings) -> None:
    value = application.get('sentry_dsn')
    texts = list(value) if isinstance(value, Items) else [value]
    if texts and all(isinstance(text, Scalar) and PLACEHOLDER.fullmatch(text.text) for text in texts):
        place = application.key_places['sentry_dsn']
        del application['sentry_dsn']
        findings.warn(
            place, ('Application', 'sentry_dsn'), 'a placeholder, taken as not set: nothing goes to Sentry'
        )


class _Process:
    """The checks of the mapping of one process: what workers and auditors have in common."""

    second_names: tuple[tuple[str, str], ...] = (('postgresql_url', 'postgres_url'),)

    def __init__(self, section: Section, path: KeyPath, findings: Findings) -> None:
        self._section = section
        self._path = path
        self._findings = findings

    def check(self) -> None:
        for second, name in self.second_names:
            self._one_name(self._section, self._path, second, name)
        rabbitmq, path = self._section.section('rabbitmq'), (*self._path, 'rabbitmq')
        self._one_name(rabbitmq, path, 'hosts', 'host')
        self._tls(rabbitmq, path)

    def _one_name(self, section: Section, path: KeyPath, second: str, name: str) -> None:
        """A key with two names: bring it to the first; both, and different, is a mistake."""
        if second not in section:
            return
        if name not in section:
            section.rename(second, name)
            return
        place = section.key_places[second]
        if _texts(section.pop(second)) != _texts(section[name]):
            self._findings.mistake(
                place,
                (*path, second),
                f'a value that differs from {name}',
                f'another name of {name}: give one of them',
            )

    def _tls(self, rabbitmq: Section, path: KeyPath) -> None:
        given = rabbitmq.get('ssl_options')
        port = rabbitmq.scalar('port')
        off = given is None or (isinstance(given, Scalar) and (given.null or given.typed is False))
        if port is not None and port.text == TLS_PORT and off:
            self._findings.warn(
                port.place, (*path, 'port'), "RabbitMQ's port for TLS, but TLS is off: no ssl_options"
            )
        path = (*path, 'ssl_options')
        if isinstance(given, Scalar) and given.null:
            text = 'empty, so TLS is off; true turns it on with its defaults'
            self._findings.warn(rabbitmq.key_places['ssl_options'], path, text)
        if not isinstance(given, Section):
            return
        self._one_name(given, path, 'prototcol', 'protocol')
        verify = given.scalar('verify')
        if verify is not None and verify.typed is False:
            text = 'false: whoever answers is taken for the broker and gets the password'
            self._findings.warn(verify.place, (*path, 'verify'), text)
        keyfile = given.scalar('keyfile')
        if keyfile is not None and given.scalar('certfile') is None:
            self._findings.mistake(
                keyfile.place, (*path, 'keyfile'), 'no certfile', 'a key needs its certificate: certfile'
            )


class _Worker(_Process):
    """The checks that only a worker needs."""

    second_names = SECOND_WORKER_NAMES

    def check(self) -> None:
        self._processes()
        self._rabbitmq_url()
        self._flag(
            'confirm', False, 'without confirms an event may be lost when the broker or the link fails'
        )
        self._flag('unregister', True, 'events that are inserted while the daemon is down are lost')
        super().check()

    def _processes(self) -> None:
        if 'processes' in self._section:
            place = self._section.key_places['processes']
            del self._section['processes']
            text = 'ignored: one process relays a queue, in order; remove the key'
            self._findings.warn(place, (*self._path, 'processes'), text)

    def _rabbitmq_url(self) -> None:
        """mikkoo 3's example has this key: taken apart, since connecting elsewhere would be worse."""
        if 'rabbitmq_url' not in self._section:
            return
        place, path = self._section.key_places['rabbitmq_url'], (*self._path, 'rabbitmq_url')
        url = self._section.pop('rabbitmq_url')
        if 'rabbitmq' in self._section:
            self._findings.mistake(place, path, 'both rabbitmq and rabbitmq_url', 'one of them: rabbitmq')
            return
        rabbitmq = rabbitmq_of(url) if isinstance(url, Scalar) and not url.broken else None
        if rabbitmq is not None:
            self._section.put('rabbitmq', place, rabbitmq)
            self._findings.warn(
                place, path, 'old; write host, port, vhost, username and password under rabbitmq'
            )
        elif not (isinstance(url, Scalar) and url.broken):
            allowed = 'amqp://user:password@host:5672/vhost; better: a mapping rabbitmq with host, port, ...'
            self._findings.mistake(place, path, 'a URL that cannot be taken apart', allowed)

    def _flag(self, key: str, value: bool, text: str) -> None:
        scalar = self._section.scalar(key)
        if scalar is not None and scalar.typed is value:
            self._findings.warn(scalar.place, (*self._path, key), f'{str(value).lower()}: {text}')


def _texts(tree: object) -> object:
    if isinstance(tree, Items):
        return [_texts(item) for item in tree]
    return tree.text if isinstance(tree, Scalar) else None


def rabbitmq_of(url: Scalar) -> Section | None:
    """The mapping `rabbitmq` that an AMQP URL stands for; None if it has a part that has no key here."""
    try:
        parts = urlsplit(url.text)
        port = parts.port
    except ValueError:
        return None
    queries = parse_qsl(parts.query)
    if (
        parts.scheme not in ('amqp', 'amqps')
        or not parts.hostname
        or any(key != 'heartbeat' for key, _ in queries)
    ):
        return None
    values = {
        'host': parts.hostname,
        'port': str(port or ''),
        'vhost': unquote(parts.path[1:]),
        'username': unquote(parts.username or ''),
        'password': unquote(parts.password or ''),
        'heartbeat_interval': dict(queries).get('heartbeat', ''),
        'ssl_options': 'true' if parts.scheme == 'amqps' else '',
    }
    section = Section(url.place)
    for key, value in values.items():
        if value:
            section.put(key, url.place, Scalar(value, url.place, substituted=True))
    return section


def _same_consumers(workers: Section, findings: Findings) -> None:
    """Two workers with one database, queue and consumer would take each other's events."""
    owners: dict[tuple[object, ...], str] = {}
    for name, worker in workers.items():
        url = worker.scalar('postgres_url') if isinstance(worker, Section) else None
        if url is None or not isinstance(worker, Section):
            continue
        queue, consumer = worker.scalar('queue'), worker.scalar('consumer_name')
        key = (database_of(url.text), queue.text if queue else name, consumer.text if consumer else 'mikkoo')
        owner = owners.setdefault(key, name)
        if owner != name:
            findings.mistake(
                workers.key_places[name],
                ('Application', 'workers', name),
                f'the same database, queue and consumer_name as worker {owner}',
                'one worker for each; two readers of a queue need two consumer names',
            )


def _same_names(workers: Section, auditors: Section, findings: Findings) -> None:
    """Logs, metrics and commands know a process by its name."""
    for name in auditors:
        if name in workers:
            findings.mistake(
                auditors.key_places[name],
                ('Application', 'auditors', name),
                'the name of a worker',
                'a name that no worker has',
            )


def _same_records(auditors: Section, findings: Findings) -> None:
    """A record is settled once: a second auditor of it would call its message unknown."""
    owners: dict[tuple[object, ...], str] = {}
    for name, auditor in auditors.items():
        url = auditor.scalar('postgres_url') if isinstance(auditor, Section) else None
        bindings = auditor.get('bindings') if isinstance(auditor, Section) else None
        if url is None or not isinstance(bindings, Items):
            continue
        exchanges = [binding.scalar('exchange') for binding in bindings if isinstance(binding, Section)]
        for exchange in {scalar.text for scalar in exchanges if scalar is not None}:
            owner = owners.setdefault((database_of(url.text), exchange), name)
            if owner != name:
                findings.mistake(
                    auditors.key_places[name],
                    ('Application', 'auditors', name),
                    f'the same database and exchange {exchange!r} as auditor {owner}',
                    'one auditor for an exchange, with all of its bindings',
                )


def database_of(url: str) -> tuple[str, ...]:
    """What tells one database from another in a libpq URL or conninfo: service, hosts, ports and name."""
    if '://' in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            return (url,)  # the model refuses it
        hosts, ports = _hosts(parts.netloc.rpartition('@')[2])
        options = {
            'host': hosts,
            'port': ports,
            'dbname': unquote(parts.path[1:]),
            'user': parts.username or '',
        }
        options |= dict(parse_qsl(parts.query))
    else:
        options = {key: value.strip("'") for key, value in OPTION.findall(url)}
    service, host = options.get('service', ''), options.get('host') or options.get('hostaddr') or ''
    hosts = ','.join('localhost' if name in LOCAL else name for name in host.lower().split(','))
    name = options.get('dbname') or ('' if service else options.get('user', ''))
    return service, hosts, options.get('port') or '5432', name


def _hosts(authority: str) -> tuple[str, str]:
    """'a:1,b:2' as 'a,b' and '1,2'."""
    found = [re.fullmatch(r'(\[[^\]]*\]|[^:]*)(?::(.*))?', host) for host in authority.split(',')]
    pairs = [(match[1].strip('[]'), match[2] or '5432') for match in found if match]
    return ','.join(host for host, _ in pairs), ','.join(port for _, port in pairs)
