"""The configuration file: YAML in, frozen Settings or every mistake out.

    text -> config_yaml (tree with places, substitutions) -> config_checks (old names, rules across keys)
         -> config_model (types, ranges, defaults) and config_logging -> Settings

config_write makes YAML of settings and edits a file in place.
"""

from __future__ import annotations

import copy
import difflib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mikkoo.common import config_checks, config_logging, config_model, config_yaml
from mikkoo.common.config_substitution import files
from mikkoo.common.config_tree import Items, KeyPath, Place, Scalar, Section, Tree, dotted
from mikkoo.common.config_write import dump, set_values
from mikkoo.common.errors import ConfigurationError, Mistake
from mikkoo.common.settings import Settings

__all__ = ['dump', 'json_schema', 'load', 'parse', 'set_values', 'sources']

LARGEST_FILE = 512 * 1024  # bytes; ruamel.yaml reads this in 2 s, at worst in 20 s
LONGEST_FOUND = 60  # characters of a value that an error shows
SECRETS = {
    'password',
    'postgres_url',
    'postgresql_url',
    'rabbitmq_url',
    'sentry_dsn',
    'ca_data',
    'credentials',
}


def load(path: str | Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a file. Raises ConfigurationError with every mistake that it holds."""
    return parse(_text_of(Path(path)), str(path), environ)


def parse(text: str, file: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a YAML text; `file` names it in errors, and relative paths start at its folder.

    Raises ConfigurationError with every mistake, in file order.
    """
    tree, mistakes = config_yaml.read(text, file, environ)
    return _Parsing(file, tree, mistakes).settings()


def sources(path: str | Path, environ: Mapping[str, str] = os.environ) -> set[Path]:
    """Every file that the content depends on: the file itself and its ${file:...}, whether they exist or not.

    Never raises for what the file holds: an unreadable one depends on itself alone.
    """
    path = Path(path)
    try:
        return {path, *files(_text_of(path), path.absolute().parent)}
    except ConfigurationError:
        return {path}


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of the file, for editors."""
    schema = config_model.schema()
    schema['properties']['Logging'] = config_logging.SCHEMA
    schema['patternProperties'] = {'^x-': True}
    return {'$schema': 'https://json-schema.org/draft/2020-12/schema', **schema}


def _text_of(path: Path) -> str:
    def refuse(allowed: str) -> ConfigurationError:
        return ConfigurationError(Mistake(str(path), 0, 0, '', '', allowed))

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise refuse('is no regular file')
        if status.st_size > LARGEST_FILE:
            raise refuse(f'is larger than {LARGEST_FILE} bytes')
        return path.read_bytes().decode('utf-8-sig')
    except OSError as error:
        raise refuse(f'cannot be read: {error.strerror}') from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        place = (before.count(b'\n') + 1, error.start - before.rfind(b'\n'))
        raise ConfigurationError(Mistake(str(path), *place, '', '', 'is not UTF-8')) from None


class _Parsing:
    """From a tree to Settings, gathering mistakes on the way."""

    def __init__(self, file: str, tree: Section, mistakes: list[Mistake]) -> None:
        self._file = file
        self._tree = tree
        self._mistakes = mistakes

    def settings(self) -> Settings:
        findings = config_checks.check(self._tree)
        self._mistakes += [
            Mistake(self._file, *place, dotted(path), *rest) for place, path, *rest in findings.mistakes
        ]
        logging = self._logging()
        model = config_model.validate(self._tree, Path(self._file).absolute().parent)
        if isinstance(model, list):
            for problem in model:
                self._add(problem)
        if isinstance(model, list) or self._mistakes:
            raise ConfigurationError(*_in_order(self._mistakes))
        warnings = tuple(
            f'{self._file}:{line}:{column}: {dotted(path)}: {text}'
            for (line, column), path, _, text in sorted(findings.warnings, key=lambda warning: warning.place)
        )
        return model.record(logging, config_logging.levels(logging), warnings)

    def _logging(self) -> dict[str, Any]:
        section = self._tree.get('Logging')
        if section is None or config_logging.is_null(section):
            return copy.deepcopy(config_logging.DEFAULT)
        if not isinstance(section, Section):
            self._refuse(('Logging',), 'a mapping, as logging.config.dictConfig takes it')
            return {}
        config_logging.check(
            section,
            lambda path, allowed: self._refuse(('Logging', *path), allowed),
            lambda path, known: self._unknown(('Logging', *path), known),
        )
        return config_logging.content(section)

    def _add(self, problem: config_model.Problem) -> None:
        if problem.names is not None:
            self._unknown(problem.path, problem.names)
        else:
            self._refuse(problem.path, problem.allowed, problem.found)

    def _refuse(self, path: KeyPath, allowed: str, found: str | None = None) -> None:
        place, value = _find(self._tree, path)
        if not (isinstance(value, Scalar) and value.broken):
            found = _describe(path, value) if found is None else found
            allowed = f'expected {allowed}' if found else allowed
            self._mistakes.append(Mistake(self._file, *place, dotted(path), found, allowed))

    def _unknown(self, path: KeyPath, known: Iterable[str]) -> None:
        parent = _find(self._tree, path[:-1])[1]
        key = str(path[-1])
        place = parent.key_places[key] if isinstance(parent, Section) else (0, 0)
        self._mistakes.append(
            Mistake(self._file, *place, dotted(path), 'an unknown key', _nearest(key, known))
        )


def _find(tree: Section, path: KeyPath) -> tuple[Place, Tree | None]:
    """A path's value and where it stands; of what has no line of its own, the key that it stands under."""
    place = tree.place
    value: Tree = tree
    for part in path:
        if isinstance(value, Section) and part in value:
            place, value = value.key_places[str(part)], value[str(part)]
        elif isinstance(value, Items) and isinstance(part, int):
            place, value = value[part].place, value[part]
        else:
            return place, None
    return (value.place if isinstance(value, Scalar) and not value.null else place), value


def _describe(path: KeyPath, value: Tree | None) -> str:
    """What was found, without anything that may be a secret."""
    if value is None:
        return ''
    if isinstance(value, Section):
        return 'a mapping'
    if isinstance(value, Items):
        return 'a list'
    if value.null:
        return 'nothing'
    if value.substituted or SECRETS.intersection(map(str, path)) or '@' in value.text or '://' in value.text:
        return 'a value (not shown)'
    if config_model.part_at(path):
        return 'a text' if isinstance(value.value, str) else 'a single value'
    text = repr(value.text) if isinstance(value.value, str) else value.text
    return text if len(text) <= LONGEST_FOUND else text[:LONGEST_FOUND] + '...'


def _nearest(key: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower(), names, n=1)
    return (f'did you mean {names[near[0]]}? ' if near else '') + 'known here: ' + ', '.join(names.values())


def _in_order(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """By line, each once: what an alias repeats is one mistake."""
    once = {
        (mistake.line, mistake.column, mistake.found, mistake.allowed): mistake
        for mistake in reversed([*mistakes])
    }
    return sorted(once.values(), key=lambda mistake: (mistake.line, mistake.column))
