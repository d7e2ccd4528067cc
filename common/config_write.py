"""Writes configuration files: whole ones from Settings, and edits that keep comments. Uses ruamel.yaml."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from mikkoo.common.config_yaml import compose
from mikkoo.common.errors import ConfigurationError, Mistake
from mikkoo.common.settings import (
    AuditorSettings,
    BrokerSettings,
    DaemonSettings,
    Settings,
    WorkerSettings,
)

_SIMPLE_KEY = re.compile('[A-Za-z_][A-Za-z0-9_]*')

Key = str | tuple[str, ...]  # 'Application.workers.test.confirm', or a tuple where a name holds a dot


def dump(settings: Settings) -> str:
    """YAML that `parse` reads back as the same settings. Secrets stand in it as they are."""
    telemetry = settings.telemetry
    application = {
        'poll_interval': telemetry.poll_interval,
        **_given({'sentry_dsn': telemetry.sentry_dsn}),
        'statsd': _values(telemetry.statsd),
        'workers': {worker.name: _process(worker) for worker in settings.workers},
        'auditors': {auditor.name: _process(auditor) for auditor in settings.auditors},
    }
    content = {'Application': application, 'Daemon': _daemon(settings.daemon), 'Logging': settings.logging}
    text = StringIO()
    _yaml().dump(_quoted(content), text)
    return text.getvalue()


def set_values(path: str | Path, values: Mapping[Key, Any], remove: Iterable[Key] = ()) -> None:
    """Set and remove keys of a file in place; comments and order stay, and the file is replaced at once.

    Mappings on the way to a new key are made. Texts are written as they are: ${NAME} is a substitution.
    Raises ConfigurationError if the file is not YAML or a key leads through what is no mapping, OSError if it
    cannot be read or written.
    """
    path = Path(path).resolve()  # a symbolic link stays one
    text = path.read_text('utf-8-sig')
    root = compose(text, str(path))
    yaml = _yaml()
    yaml.map_indent, yaml.sequence_indent, yaml.sequence_dash_offset = _indents(root)
    content = yaml.load(text) if root is not None else CommentedMap()
    for key, value in values.items():
        *way, last = _parts(key)
        _mapping(content, way, path)[last] = value
    for key in remove:
        *way, last = _parts(key)
        _mapping(content, way, path).pop(last, None)
    written = StringIO()
    yaml.dump(content, written)
    _replace(path, written.getvalue())


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 1_000_000  # never folds a line
    yaml.preserve_quotes = True
    return yaml


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _values(record: Any) -> dict[str, Any]:
    return _given({field.name: getattr(record, field.name) for field in fields(record)})


def _process(process: WorkerSettings | AuditorSettings) -> dict[str, Any]:
    values = {**_values(process), 'name': None, 'rabbitmq': _rabbitmq(process.rabbitmq)}
    if isinstance(process, AuditorSettings):
        values['bindings'] = [_values(binding) for binding in process.bindings]
    return _given(values)


def _rabbitmq(broker: BrokerSettings) -> dict[str, Any]:
    hosts = [f'[{host}]:{port}' if ':' in host else f'{host}:{port}' for host, port in broker.nodes]
    values = _given({'host': hosts, **_values(broker), 'nodes': None})
    if broker.ssl_options is not None:
        values['ssl_options'] = _values(broker.ssl_options)
    return values


def _daemon(daemon: DaemonSettings) -> dict[str, Any]:
    return _values(daemon) | ({} if daemon.umask is None else {'umask': f'{daemon.umask:03o}'})


def _quoted(value: Any) -> Any:
    """Every text in quotes and with its dollars doubled, so that it is read as itself."""
    if isinstance(value, Mapping):
        return {_key(key): _quoted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(item) for item in value]
    return DoubleQuotedScalarString(value.replace('$', '$$')) if isinstance(value, str) else value


def _key(key: str) -> str:
    return key if _SIMPLE_KEY.fullmatch(key) else DoubleQuotedScalarString(key)


def _parts(key: Key) -> tuple[str, ...]:
    return tuple(key.split('.')) if isinstance(key, str) else key


def _mapping(content: Any, way: list[str], path: Path) -> Any:
    """The mapping that a way of keys leads to; made where there is none."""
    for depth in range(len(way) + 1):
        if not isinstance(content, CommentedMap):
            allowed = 'is no mapping, so nothing was changed'
            raise ConfigurationError(Mistake(str(path), 0, 0, '.'.join(way[:depth]), '', allowed))
        if depth < len(way):
            if content.get(way[depth]) is None:
                content[way[depth]] = CommentedMap()
            content = content[way[depth]]
    return content


def _indents(root: Node | None) -> tuple[int, int, int]:
    """How a file indents: mappings, lists, and the dashes of lists; where it does not say: 2, 4, 2."""
    mapping, dash = 0, -1
    nodes = [root] if isinstance(root, MappingNode) and not root.flow_style else []
    while nodes and (not mapping or dash < 0):
        node = nodes.pop(0)
        for key, value in node.value:
            step = value.start_mark.column - key.start_mark.column
            if value.start_mark.line == key.start_mark.line or value.flow_style:
                continue
            if isinstance(value, MappingNode):
                mapping = mapping or step
                nodes.append(value)
            elif isinstance(value, SequenceNode) and dash < 0:
                dash = step
    dash = 2 if dash < 0 else dash
    return mapping or 2, dash + 2, dash


def _replace(path: Path, text: str) -> None:
    """Write beside the file and rename over it: a reader sees the old or the new, whole."""
    status = path.stat()
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with open(descriptor, 'w', encoding='utf-8') as file:
            file.write(text)
            os.fchmod(descriptor, status.st_mode & 0o7777)
            if os.geteuid() == 0:
                os.fchown(descriptor, status.st_uid, status.st_gid)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
