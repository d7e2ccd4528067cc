"""Reads YAML text into a tree with lines and columns: with config_write, the home of ruamel.yaml.

The tree is built from ruamel's nodes, not from values that it constructs: every key and value has its place,
nothing is executed or guessed, and aliases cannot blow up.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from mikkoo.common.config_substitution import SubstitutionError, substitute
from mikkoo.common.config_tree import Items, KeyPath, Place, Scalar, Section, Tree, dotted
from mikkoo.common.errors import ConfigurationError, Mistake

DEEPEST = 32  # mappings and lists inside each other
LONGEST_KEY = 255  # characters; every mistake below a key names it
LARGEST_NODES = 100_000  # keys and values of a file, aliases expanded: a bound on "billion laughs"

_TAGS = {
    f'tag:yaml.org,2002:{name}'
    for name in ('null', 'bool', 'int', 'float', 'str', 'timestamp', 'value', 'merge', 'map', 'seq')
}


def read(text: str, file: str, environ: Mapping[str, str]) -> tuple[Section, list[Mistake]]:
    """The tree of a YAML mapping with its values substituted, and the mistakes that leave a tree to check.

    Raises ConfigurationError where there is no tree: not YAML, not one mapping, an alias inside itself.
    """
    root = compose(text, file)
    builder = _Builder(file, Path(file).absolute().parent, environ)
    if not isinstance(root, MappingNode):
        found = {type(None): 'an empty file', SequenceNode: 'a list'}.get(type(root), 'text')
        raise ConfigurationError(
            Mistake(file, 1, 1, '', found, 'a mapping with Application, Daemon and Logging')
        )
    tree = builder.section(root, ())
    return tree, builder.mistakes


def compose(text: str, file: str) -> Node | None:
    """ruamel's nodes of a text with one document. Raises ConfigurationError with line and column."""
    try:
        return _compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        mistake = Mistake(file, line, column, '', '', f'not YAML: {_problem(error)}')
        raise ConfigurationError(mistake) from None
    except ReaderError as error:
        before = text[: error.position]
        place = (before.count('\n') + 1, error.position - before.rfind('\n'))
        allowed = f'not YAML: the character U+{ord(text[error.position]):04X} may not stand in it'
        raise ConfigurationError(Mistake(file, *place, '', '', allowed)) from None
    except RecursionError:
        raise ConfigurationError(Mistake(file, 0, 0, '', '', 'not usable: nested too deeply')) from None
    except Exception as error:  # noqa: BLE001 - ruamel lets its own slips escape on noise
        allowed = f'not YAML: ruamel.yaml cannot read it ({type(error).__name__})'
        raise ConfigurationError(Mistake(file, 0, 0, '', '', allowed)) from None


@lru_cache(maxsize=2)
def _compose(text: str) -> Node | None:
    yaml = YAML(typ='safe', pure=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # an anchor that is defined anew is legal
        node: Node | None = yaml.compose(text)
    return node


def _problem(error: MarkedYAMLError) -> str:
    """ruamel's explanation without words of the file, which may be part of a password."""
    problem = ' '.join(str(error.problem or error.context or 'cannot be read').split())
    if 'alias' in problem:
        return 'no anchor has the name of this alias; a text that begins with * needs quotes'
    if 'but found another document' in problem:
        return 'a second document begins here; one file holds one'
    if 'cannot start any token' in problem:
        problem += '; tabs cannot indent, and a text that begins with this character needs quotes'
    problem = re.sub(r"'([],}])'|\('(<[a-z ]+>)',\)", r'\1\2', problem)  # ruamel's own words
    return re.sub(r"""(['"])(?!<).{2,}\1""", "'...'", problem)


class _Builder:
    """One pass over ruamel's nodes."""

    def __init__(self, file: str, folder: Path, environ: Mapping[str, str]) -> None:
        self.mistakes: list[Mistake] = []
        self._file = file
        self._folder = folder
        self._environ = environ
        self._nodes = 0
        self._scalars: dict[int, Scalar] = {}  # by node: aliases of a long text must not copy it
        self._open: set[int] = set()

    def section(self, node: MappingNode, path: KeyPath) -> Section:
        section = Section(_place(node))
        merged: list[Section] = []
        with self._inside(node, path):
            for key_node, value_node in node.value:
                if _is_merge(key_node):
                    merged.extend(self._merged(value_node, path))
                else:
                    self._add(section, key_node, value_node, path)
        for other in merged:
            for key, value in other.items():
                if key not in section:
                    section.put(key, other.key_places[key], value)
        return section

    def _add(self, section: Section, key_node: Node, value_node: Node, path: KeyPath) -> None:
        key = key_node.value
        if not isinstance(key_node, ScalarNode) or not key or not _is_unicode(key):
            self.mistake(_place(key_node), path, 'no name', 'a key is a name')
        elif len(key) > LONGEST_KEY:
            found = f'a key of {len(key):,} characters'
            self.mistake(_place(key_node), path, found, f'{LONGEST_KEY} at most')
        elif key in section:
            line = section.key_places[key][0]
            self.mistake(
                _place(key_node),
                (*path, key),
                'the key again',
                f'given once: it stands in line {line} already',
            )
        else:
            section.put(key, _place(key_node), self._tree(value_node, (*path, key)))

    def _tree(self, node: Node, path: KeyPath) -> Tree:
        self._count(node)
        if node.tag not in _TAGS:
            self.mistake(
                _place(node), path, 'a tag (!...)', 'no tags; a text that begins with ! needs quotes'
            )
            return Scalar('', _place(node), broken=True)
        if isinstance(node, MappingNode):
            return self.section(node, path)
        if isinstance(node, SequenceNode):
            items = Items(_place(node))
            with self._inside(node, path):
                items.extend(self._tree(item, (*path, number)) for number, item in enumerate(node.value))
            return items
        if id(node) not in self._scalars:
            self._scalars[id(node)] = self._scalar(node, path)
        return self._scalars[id(node)]

    def _scalar(self, node: Node, path: KeyPath) -> Scalar:
        if not _is_unicode(node.value):
            self.mistake(_place(node), path, 'half of a surrogate pair', 'whole characters of Unicode')
            return Scalar('', _place(node), broken=True)
        try:
            text, made = substitute(node.value, self._environ, self._folder)
        except SubstitutionError as error:
            self.mistake(_place(node), path, '', str(error))
            return Scalar('', _place(node), broken=True)
        return Scalar(text, _place(node), plain=not getattr(node, 'style', None), substituted=made)

    def _merged(self, node: Node, path: KeyPath) -> list[Section]:
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        merged = []
        for item in nodes:
            self._count(item)  # an empty mapping costs, too
            if not isinstance(item, MappingNode):
                allowed = 'a mapping, or a list of mappings, to merge in'
                self.mistake(_place(node), (*path, '<<'), '', allowed)
                return []
            merged.append(self.section(item, path))
        return merged

    @contextmanager
    def _inside(self, node: Node, path: KeyPath) -> Iterator[None]:
        if len(self._open) >= DEEPEST:
            raise ConfigurationError(
                self._made(_place(node), path, f'more than {DEEPEST} levels', 'a flatter file')
            )
        if id(node) in self._open:
            raise ConfigurationError(self._made(_place(node), path, 'an alias inside itself', 'an end of it'))
        self._open.add(id(node))
        yield
        self._open.discard(id(node))

    def _count(self, node: Node) -> None:
        self._nodes += 1
        if self._nodes > LARGEST_NODES:
            found = f'more than {LARGEST_NODES:,} values, aliases counted each time'
            raise ConfigurationError(self._made(_place(node), (), found, 'a smaller file'))

    def mistake(self, place: Place, path: KeyPath, found: str, allowed: str) -> None:
        self.mistakes.append(self._made(place, path, found, allowed))

    def _made(self, place: Place, path: KeyPath, found: str, allowed: str) -> Mistake:
        return Mistake(self._file, *place, dotted(path), found, allowed)


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _is_unicode(text: str) -> bool:
    """No half of a surrogate pair ("\\ud800"), which no server, file or log would take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_merge(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value == '<<' and not node.style
