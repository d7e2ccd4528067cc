"""A configuration file's content as a tree that remembers where everything stands.

A scalar keeps its text, so that its type can follow what its key expects: `password: 0123` stays a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_NULLS = {'', '~', 'null', 'Null', 'NULL'}
_BOOLS = {
    form: word in ('true', 'yes', 'on')
    for word in ('true', 'false', 'yes', 'no', 'on', 'off')
    for form in (word, word.title(), word.upper())
}
_INT = re.compile(r'[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}', re.ASCII)
_FLOAT = re.compile(
    r'[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)',
    re.ASCII,
)

Place = tuple[int, int]  # line and column, from 1


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, and how it was written. `plain`: without quotes. `broken`: its mistake was reported already."""

    text: str
    place: Place
    plain: bool = True
    substituted: bool = False
    broken: bool = False

    @property
    def null(self) -> bool:
        return self.plain and not self.substituted and not self.broken and self.text in _NULLS

    @property
    def value(self) -> str | int | float | bool | None:
        """The value by YAML 1.2's core rules and YAML 1.1's booleans; a quoted text is a text."""
        return resolve(self.text) if self.plain else self.text

    @property
    def typed(self) -> str | int | float | bool | None:
        """As `value`, but a substitution inside quotes has a type, too: for keys that expect one."""
        return resolve(self.text) if self.plain or self.substituted else self.text


class Section(dict[str, 'Tree']):
    """A mapping; `key_places` holds where each key stands."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.key_places: dict[str, Place] = {}

    def put(self, key: str, place: Place, value: Tree) -> None:
        self[key] = value
        self.key_places[key] = place

    def rename(self, old: str, new: str) -> None:
        self.put(new, self.key_places[old], self.pop(old))

    def section(self, key: str) -> Section:
        """The mapping under `key`, an empty one if there is none."""
        value = self.get(key)
        return value if isinstance(value, Section) else Section(self.place)

    def scalar(self, key: str) -> Scalar | None:
        """The usable scalar under `key`, None if there is none."""
        value = self.get(key)
        return value if isinstance(value, Scalar) and not value.null and not value.broken else None


class Items(list['Tree']):
    """A list."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place


Tree = Scalar | Section | Items
KeyPath = tuple[str | int, ...]


def resolve(text: str) -> str | int | float | bool | None:
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return int(text, {'0o': 8, '0x': 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text.replace('.', '', 1) if text[-1] in 'fFnN' else text)
    return text


def plain(tree: Tree) -> Any:
    """The tree as dictionaries, lists and values."""
    if isinstance(tree, Section):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, Items):
        return [plain(item) for item in tree]
    return tree.value


def dotted(path: KeyPath) -> str:
    """('a', 'b', 1) as 'a.b[1]'."""
    text = ''.join(f'[{part}]' if isinstance(part, int) else f'.{_printable(part)}' for part in path)
    return text.removeprefix('.')


def _printable(name: str) -> str:
    return name if name.isprintable() and name else repr(name)
