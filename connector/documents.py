"""The documents that Neon's services exchange: a JSON object in base64, and the older form. No I/O.

The older form, of neon-mq-connector, is `str(dict)` as a JSON text in base64. It is read with
`ast.literal_eval`, which makes literals and runs nothing.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
from typing import Any


def dict_to_b64(data: dict[str, Any], charset: str = 'utf-8', *, legacy: bool = False) -> bytes:
    """Base64 of the JSON object; with `legacy`, of what neon-mq-connector before Mikkoo can read.

    Raises ValueError for what is no dictionary, or holds what JSON has not (`legacy`: Python literals).
    """
    if not isinstance(data, dict):
        raise ValueError(f'a document is a dictionary, not {type(data).__name__}')
    try:
        if legacy:
            if ast.literal_eval(repr(data)) != data:
                raise ValueError('it does not come back as it was')
            text = json.dumps(str(data), ensure_ascii=True)
        else:
            text = json.dumps(data, ensure_ascii=False, allow_nan=False)
        return base64.b64encode(text.encode(charset))
    except (TypeError, SyntaxError, RecursionError, ValueError, MemoryError) as error:
        raise ValueError(f'the document cannot be written: {error}') from None


def b64_to_dict(data: bytes, charset: str = 'utf-8') -> dict[str, Any]:
    """The dictionary of a document, of either form. Raises ValueError for anything else; runs nothing."""
    try:
        document = json.loads(base64.b64decode(data.strip(), validate=True).decode(charset))
        if isinstance(document, str):
            document = ast.literal_eval(document.strip())
    except (binascii.Error, UnicodeDecodeError, RecursionError, MemoryError, SyntaxError, TypeError) as error:
        raise ValueError(f'not a document: {type(error).__name__}: {error}') from None
    except ValueError as error:
        raise ValueError(f'not a document: {error}') from None
    if not isinstance(document, dict):
        raise ValueError(f'not a document: it holds {type(document).__name__}, not a dictionary')
    return document
