"""`${NAME}`, `${NAME:-default}`, `${file:/path}` and `$$` inside the texts of a configuration file."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

LARGEST_SECRET = 1024 * 1024  # bytes of a ${file:...}

_PATTERN = re.compile(r'\$(?:(?P<dollar>\$)|\{(?P<inner>[^}]*)(?P<end>\}?))')
_NAME = re.compile(r'(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?', re.DOTALL | re.ASCII)
_FILE = re.compile(r'(?<!\$)(?:\$\$)*\$\{file:([^}]{0,4096}+)\}')  # PATH_MAX


class SubstitutionError(ValueError):
    """A substitution cannot be made; its text says why and holds no value."""


def substitute(text: str, environ: Mapping[str, str], folder: Path) -> tuple[str, bool]:
    """The text with its substitutions made, and whether there was one (`$$` alone is none).

    A relative ${file:...} starts at `folder`. Raises SubstitutionError.
    """
    if '$' not in text:
        return text, False
    made = False

    def replacement(match: re.Match[str]) -> str:
        nonlocal made
        if match['dollar']:
            return '$'
        made = True
        if not match['end']:
            raise SubstitutionError('${ without its }; a literal ${ is written $${')
        return _value(match['inner'], environ, folder)

    return _PATTERN.sub(replacement, text), made


def files(text: str, folder: Path) -> set[Path]:
    """Every file that a text names with ${file:...}, whether it exists or not; lines of comment left out."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith('#'))
    return {folder / name.strip() for name in _FILE.findall('\n'.join(lines)) if _possible(name.strip())}


def _possible(name: str) -> bool:
    return bool(name) and '\0' not in name


def _value(inner: str, environ: Mapping[str, str], folder: Path) -> str:
    if inner.startswith('file:'):
        return _content(inner.removeprefix('file:').strip(), folder)
    match = _NAME.fullmatch(inner)
    if match is None:
        raise SubstitutionError('${...} holds no name of a variable; a literal ${ is written $${')
    value = environ.get(match['name'], '')
    if not value and match['default'] is not None:
        return match['default']
    if match['name'] not in environ:
        raise SubstitutionError(
            f'the environment has no variable {match["name"]}; ${{{match["name"]}:-default}} gives one'
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SubstitutionError(f'the variable {match["name"]} is not UTF-8') from None
    return value


def _content(name: str, folder: Path) -> str:
    if not _possible(name):
        raise SubstitutionError('${file:...} holds no path')
    path = folder / name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SubstitutionError(f'{path} is no regular file')
        if status.st_size > LARGEST_SECRET:
            raise SubstitutionError(f'{path} is larger than {LARGEST_SECRET} bytes')
        return path.read_text('utf-8').rstrip('\r\n')
    except OSError as error:
        raise SubstitutionError(f'{path} cannot be read: {error.strerror}') from None
    except UnicodeDecodeError:
        raise SubstitutionError(f'{path} is not UTF-8') from None
