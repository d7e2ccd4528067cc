"""Secrets kept out of logs and reports: one place for what counts as one."""

from __future__ import annotations

import re
from typing import Any

STARS = '***'

# Lengths are bounded so that a hostile text costs linear time. A password may hold '/', ':' and '@' by
# mistake, so all up to the last '@' goes; too much rather than too little.
_URL = re.compile(r'(?<=://)([^\s/:@\'"]{0,256}):\S{1,1024}@')
_PASSWORD = re.compile(
    r"""(pass(?:word|wd|phrase)['"]?\s{0,8}[=:]\s{0,8})('(?:[^'\\]|\\.){0,1024}'|"(?:[^"\\]|\\.){0,1024}"|\S+)""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text without the passwords of URLs (user:password@host) and settings (password=...)."""
    if '://' in text:
        text = _URL.sub(rf'\1:{STARS}@', text)
    return _PASSWORD.sub(rf'\1{STARS}', text)


def redact_all(value: Any) -> Any:
    """The same of every text in dictionaries, lists and tuples; what a password's name is the key of goes."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {
            key: STARS if isinstance(key, str) and _PASSWORD.search(f'{key}=x') else redact_all(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [redact_all(item) for item in value]
    return tuple(map(redact_all, value)) if isinstance(value, tuple) else value


def writable(text: str) -> str:
    """The text with lone surrogates (from undecodable file names) escaped: what UTF-8 can carry."""
    return text if text.isascii() else text.encode('utf-8', 'backslashreplace').decode()
