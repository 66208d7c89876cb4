"""Values in YAML files: parsing of unquoted text (YAML 1.2 core schema), and descriptions for messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

KeyPath = tuple[str | int, ...]

MAX_INTEGER = 2**53
"""Larger integers are not exact in JSON and in floats."""

# Control characters, lone surrogates, and characters that are invisible or look like a line end.
CONTROL = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def parse_plain(text: str) -> Any:
    """The value of unquoted text. Raises ValueError with two arguments: what was found and what was expected."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        raise ValueError(text[:60], "a finite number (in quotes if it is text)")
    return text


def _integer(text: str) -> int:
    if len(text) <= 300:
        value = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if abs(value) <= MAX_INTEGER:
            return value
    raise ValueError(text[:60], "a whole number of at most 2^53 (in quotes if it is text)")


def looks_numeric(text: str) -> bool:
    """Whether quoted text would be a number without the quotes."""
    return bool(_INTEGER.fullmatch(text) or _FLOAT.fullmatch(text))


def describe(value: Any) -> str:
    """A value and its type, short enough for a message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (a truth value)"
        case int() | float():
            return f"{value} (a number)"
        case str():
            return f"{value if len(value) <= 60 else value[:57] + '…'!r} (text)"
        case tuple() | list():
            return f"a list of {len(value)}"
        case Mapping():
            keys = ", ".join(repr(key) for key in list(value)[:4])
            return f"a mapping with {keys or 'no keys'}"
    return type(value).__name__


def format_path(path: KeyPath) -> str:
    """``("rules", 0, "margin")`` as ``rules[0].margin``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
