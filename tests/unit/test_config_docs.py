"""docs/configuration.md and the JSON Schema say what the model says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from mikkoo.common import config, config_model
from mikkoo.common.errors import ConfigurationError
from mikkoo.common.resources import example_configuration_path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / 'docs' / 'configuration.md').read_text()
REFERENCE = Path(__file__).parent / 'data' / 'reference.yml'
SECTIONS: dict[str, type[config_model.Part]] = {
    'Application': config_model.ApplicationPart,
    'Application.statsd': config_model.Statsd,
    'Application.workers.NAME': config_model.Worker,
    'Application.auditors.NAME': config_model.Auditor,
    'Application.auditors.NAME.bindings': config_model.Binding,
    'Application.workers.NAME.rabbitmq': config_model.RabbitMQ,
    'Application.workers.NAME.rabbitmq.ssl_options': config_model.SslOptions,
    'Daemon': config_model.DaemonPart,
}
SCHEMA = config.json_schema()
TYPES = {
    'boolean': 'flag',
    'integer': 'whole number',
    'array': 'list',
    'object': 'mapping',
    'string': 'text',
}
DEFAULTS = {  # what the model cannot say in one word
    'postgres_url': 'required',
    'workers': 'required',
    'bindings': 'required',
    'exchange': 'required',
    'queue': 'NAME',
    'host': '`localhost`',
    'port': '5672',
    'umask': '`022`',
}


def row(part: type[config_model.Part], key: str) -> str:
    """The line of a table that describes a key."""
    properties = SCHEMA['$defs'][part.__name__]['properties'][key]
    unit = properties.get('x-unit', '')
    return (
        f'| `{key}` | {kind(key, properties)} | {unit} | {default(part, key)} | {properties["description"]} |'
    )


def kind(key: str, properties: dict[str, Any]) -> str:
    if key in ('pidfile', 'ca_certs', 'ca_path', 'certfile', 'keyfile'):
        return 'path'
    forms = properties.get('anyOf') or properties.get('allOf') or [properties]  # allOf: older pydantic
    forms = [form for form in forms if 'pattern' not in form]
    if 'minimum' in forms[0]:
        name = 'seconds' if properties.get('x-unit') == 'seconds' else 'whole number'
        return f'{name}, {forms[0]["minimum"]} to {forms[0]["maximum"]}'
    names = {'mapping' if '$ref' in form else one(form) for form in forms if 'placeholder' not in str(form)}
    return ' or '.join(sorted(names, reverse=True))


def one(form: dict[str, Any]) -> str:
    found = form.get('type', 'integer')
    return 'text' if isinstance(found, list) else TYPES[found]


def default(part: type[config_model.Part], key: str) -> str:
    if part is config_model.Auditor and key == 'queue':
        return '`mikkoo.audit.NAME`'
    if key in DEFAULTS and part not in (config_model.Statsd, config_model.SslOptions):
        return DEFAULTS[key]
    value = part.model_fields[key].default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value)) if value % 1 == 0 else str(value)
    return f'`{value}`' if isinstance(value, str) else ''


@pytest.mark.parametrize('title', SECTIONS)
def test_the_tables_are_the_models(title: str) -> None:
    part = SECTIONS[title]
    text = DOCUMENT.split(f'\n## {title}\n')[1].split('\n## ')[0]
    table = [line for line in text.splitlines() if line.startswith('| `')]
    assert table == [row(part, key) for key in part.model_fields]
    for second in part.second_names:
        assert f'`{second}`' in text


def test_the_shown_mistakes_are_real() -> None:
    block = DOCUMENT.split('## Mistakes')[1].split('```')
    source, shown = block[1].removeprefix('yaml\n'), block[3]
    with pytest.raises(ConfigurationError) as caught:
        config.parse(source, 'mikkoo.yml', {})
    assert shown.strip() == str(caught.value)


def test_the_shown_example_is_valid() -> None:
    source = DOCUMENT.split('```yaml\n')[1].split('```')[0]
    assert config.parse(source, 'mikkoo.yml', {}).warnings == ()


def test_the_example_file_names_every_key() -> None:
    text = example_configuration_path().read_text()
    rarely = {'prototcol', 'ca_path', 'ca_data', 'protocol', 'ciphers'}
    for part in SECTIONS.values():
        for key in set(part.model_fields) - rarely:
            assert re.search(rf'\b{key}:', text), f'{key} is not in the example'


def test_the_schema_is_one_and_every_key_is_described() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for part in SECTIONS.values():
        for key, properties in SCHEMA['$defs'][part.__name__]['properties'].items():
            assert properties['description'], key


@pytest.mark.parametrize('path', [example_configuration_path(), REFERENCE])
def test_the_schema_takes_the_examples(path: Path) -> None:
    jsonschema.validate(YAML(typ='safe').load(path), SCHEMA)


W = {'postgres_url': 'postgresql://h/d'}


@pytest.mark.parametrize(
    ('worker', 'valid'),
    [
        (W, True),
        ({'postgresql_url': 'x', 'retry_interval': '5 min', 'confirm': '${CONFIRM}'}, True),
        ({**W, 'rabbitmq': {'hosts': ['a', 'b'], 'ssl_options': True}}, True),
        ({**W, 'rabbitmq': {'ssl_options': {'prototcol': 2}}}, True),
        ({}, False),
        ({**W, 'confrim': True}, False),
        ({**W, 'max_failures': 0}, False),
        ({**W, 'rabbitmq': {'port': '5672'}}, False),
        ({**W, 'rabbitmq': {'ssl_options': 3}}, False),
    ],
)
def test_the_schema_agrees_with_the_model(worker: dict[str, Any], valid: bool) -> None:
    content = {'x-anything': 1, 'Application': {'workers': {'w': worker}}}
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(content) is valid
