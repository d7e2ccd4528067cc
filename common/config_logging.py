"""The Logging section: a dictConfig dictionary, checked so that a mistake has its line; and its levels."""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from mikkoo.common.config_tree import Items, KeyPath, Scalar, Section, Tree, plain

Report = Callable[[KeyPath, str], None]  # the path of a wrong value, and what is allowed there
Unknown = Callable[[KeyPath, Iterable[str]], None]  # the path of an unknown key, and the known ones

DEFAULT: dict[str, Any] = {
    'version': 1,
    'disable_existing_loggers': False,
    'formatters': {
        'default': {'format': '%(asctime)s %(levelname)-8s %(processName)-20s %(name)s: %(message)s'},
    },
    'handlers': {
        'console': {'class': 'logging.StreamHandler', 'formatter': 'default', 'debug_only': True},
    },
    'root': {'level': 'INFO', 'handlers': ['console']},
}

SHOWN_NAMES = 20  # handlers or formatters that an error lists

_TOP = (
    'version',
    'formatters',
    'filters',
    'handlers',
    'loggers',
    'root',
    'disable_existing_loggers',
    'incremental',
)
_FORMATTER = ('format', 'datefmt', 'style', 'validate', 'class', 'defaults')
_LOGGER = ('handlers', 'level', 'propagate', 'filters')
LEVELS = ('CRITICAL', 'ERROR', 'WARNING', 'INFO', 'DEBUG', 'NOTSET')
_LEVEL = {'anyOf': [{'enum': [*LEVELS, 'FATAL', 'WARN']}, {'type': 'integer'}]}
_NAMES = {'type': 'array', 'items': {'type': 'string'}}
_LOGGER_SCHEMA = {
    'type': 'object',
    'additionalProperties': False,
    'properties': {'handlers': _NAMES, 'filters': _NAMES, 'level': _LEVEL, 'propagate': {'type': 'boolean'}},
}

SCHEMA: dict[str, Any] = {
    'description': 'What is logged where, as logging.config.dictConfig takes it',
    'type': 'object',
    'additionalProperties': False,
    'properties': {
        'version': {'const': 1, 'default': 1},
        'formatters': {'type': 'object', 'additionalProperties': {'type': 'object'}},
        'filters': {'type': 'object', 'additionalProperties': {'type': 'object'}},
        'handlers': {
            'type': 'object',
            'additionalProperties': {
                'type': 'object',
                'anyOf': [{'required': ['class']}, {'required': ['()']}],
                'properties': {
                    'class': {'type': 'string', 'description': 'Dotted name of a handler class'},
                    'formatter': {'type': 'string'},
                    'level': _LEVEL,
                    'filters': _NAMES,
                    'debug_only': {
                        'type': 'boolean',
                        'default': False,
                        'description': 'Active in the foreground only',
                    },
                },
            },
        },
        'loggers': {'type': 'object', 'additionalProperties': _LOGGER_SCHEMA},
        'root': _LOGGER_SCHEMA,
        'disable_existing_loggers': {'type': 'boolean'},
        'incremental': {'const': False},
    },
}


def check(section: Section, report: Report, unknown: Unknown) -> None:
    """Report every mistake of a Logging section; paths start inside of it."""
    _Check(section, report, unknown).run()


def content(section: Section) -> dict[str, Any]:
    """A checked Logging section as dictConfig takes it, but for debug_only."""
    return {'version': 1, **{key: value for key, value in plain(section).items() if value is not None}}


def levels(config: Mapping[str, Any]) -> dict[str, int]:
    """Logger name to level number; '' is the root, which older files have among the loggers."""
    loggers = {**(config.get('loggers') or {}), '': config.get('root')}
    if loggers[''] is None:
        loggers[''] = loggers.pop('root', None)
    return {
        name: number
        for name, logger in loggers.items()
        if logger and (number := level_number(logger.get('level'))) is not None
    }


def level_number(level: object) -> int | None:
    """The number of a level's name or number, None if it is neither."""
    if isinstance(level, bool) or not isinstance(level, str | int):
        return None
    return level if isinstance(level, int) else logging.getLevelNamesMapping().get(level)


class _Check:
    def __init__(self, section: Section, report: Report, unknown: Unknown) -> None:
        self._section = section
        self._report = report
        self._unknown = unknown

    def run(self) -> None:
        self._known(self._section, (), _TOP)
        self._value(self._section, (), 'version', lambda value: value == 1 and value is not True, '1')
        self._value(self._section, (), 'disable_existing_loggers', _is_flag, 'true or false')
        self._value(
            self._section, (), 'incremental', lambda value: value is False, 'false: it is applied whole'
        )
        for name, formatter in self._parts('formatters'):
            self._formatter(formatter, ('formatters', name))
        list(self._parts('filters'))
        for name, handler in self._parts('handlers'):
            self._handler(handler, ('handlers', name))
        for name, logger in self._parts('loggers'):
            self._logger(logger, ('loggers', name))
        root = self._section.get('root')
        if isinstance(root, Section):
            self._logger(root, ('root',))
        elif root is not None and not is_null(root):
            self._report(('root',), 'a mapping with ' + ', '.join(_LOGGER))

    def _parts(self, key: str) -> Iterator[tuple[str, Section]]:
        """The named mappings under a key; what is none is reported."""
        parts = self._section.get(key)
        if isinstance(parts, Section):
            for name, part in parts.items():
                if isinstance(part, Section):
                    yield name, part
                else:
                    self._report((key, name), 'a mapping')
        elif parts is not None and not is_null(parts):
            self._report((key,), 'a mapping of names')

    def _formatter(self, formatter: Section, path: KeyPath) -> None:
        if '()' in formatter:
            return
        self._known(formatter, path, _FORMATTER)
        text, style = _value(formatter, 'format'), _value(formatter, 'style') or '%'
        validate = _value(formatter, 'validate') is not False
        if style not in ('%', '{', '$'):
            self._report((*path, 'style'), "'%', '{' or '$'")
        elif text is not None and not _is_format(text, style, validate):
            self._report((*path, 'format'), f"a format of log records in style '{style}'")

    def _handler(self, handler: Section, path: KeyPath) -> None:
        name = _value(handler, 'class')
        if '()' not in handler and name is None:
            self._report(path, "a mapping with the handler's class, as 'class: logging.StreamHandler'")
        elif name is not None and not _is_handler(name):
            self._report((*path, 'class'), "the dotted name of a handler's class, as logging.StreamHandler")
        self._value(handler, path, 'debug_only', _is_flag, 'true or false')
        self._level(handler, path)
        formatter = _value(handler, 'formatter')
        if formatter is not None and formatter not in self._section.section('formatters'):
            self._report((*path, 'formatter'), 'the name of a formatter: ' + self._names('formatters'))
        self._references(handler, path, 'filters')

    def _logger(self, logger: Section, path: KeyPath) -> None:
        self._known(logger, path, _LOGGER)
        self._value(logger, path, 'propagate', _is_flag, 'true or false')
        self._level(logger, path)
        self._references(logger, path, 'handlers')
        self._references(logger, path, 'filters')

    def _level(self, section: Section, path: KeyPath) -> None:
        allowed = 'a level: ' + ', '.join(LEVELS) + ', or a number'
        self._value(section, path, 'level', lambda value: level_number(value) is not None, allowed)

    def _references(self, section: Section, path: KeyPath, key: str) -> None:
        """A list of names that stand in the section of the same name."""
        items = section.get(key)
        if items is None or is_null(items):
            return
        if not isinstance(items, Items):
            self._report((*path, key), f'a list of {key}')
            return
        known = self._section.section(key)
        for number, item in enumerate(items):
            if not isinstance(item, Scalar) or item.text not in known:
                self._report((*path, key, number), f'the name of one of the {key}: ' + self._names(key))

    def _names(self, key: str) -> str:
        known = self._section.section(key)
        more = ', ...' if len(known) > SHOWN_NAMES else ''
        return ', '.join(islice(known, SHOWN_NAMES)) + more or 'there are none'

    def _known(self, section: Section, path: KeyPath, known: Iterable[str]) -> None:
        for key in section:
            if key not in known:
                self._unknown((*path, key), known)

    def _value(
        self, section: Section, path: KeyPath, key: str, right: Callable[[Any], bool], allowed: str
    ) -> None:
        value = section.get(key)
        if (
            value is not None
            and not is_null(value)
            and not (isinstance(value, Scalar) and right(value.value))
        ):
            self._report((*path, key), allowed)


def is_null(tree: Tree) -> bool:
    return isinstance(tree, Scalar) and tree.null


def _value(section: Section, key: str) -> Any:
    """The scalar value of a key; None if there is none."""
    scalar = section.scalar(key)
    return None if scalar is None else scalar.value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_format(text: Any, style: Any, validate: bool) -> bool:
    try:
        logging.Formatter(text, style=style, validate=validate)
    except (ValueError, TypeError):
        return False
    return True


def _is_handler(name: Any) -> bool:
    """Whether a dotted name can be a handler's class. Other packages are imported only when it is used."""
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split('.')):
        return False
    module, _, attribute = name.rpartition('.')
    if module not in ('logging', 'logging.handlers'):
        return bool(module)
    found = getattr(logging.handlers if module == 'logging.handlers' else logging, attribute, None)
    return isinstance(found, type) and issubclass(found, logging.Handler)
