"""The metadata at the top of a model card: one entry replaced, every other byte left as it is."""

from __future__ import annotations

import re
from typing import Any

import yaml

from harness.errors import WriteError

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)


def split_card(text: str) -> tuple[str, str]:
    """(metadata without its fences, body) of a model card; no metadata is an empty text."""
    found = _FRONT.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def read_entry(metadata: str, key: str) -> Any:
    """The value of a top-level key; None where it is missing. Raises WriteError for metadata that is no mapping."""
    try:
        content = yaml.safe_load(metadata)
    except (yaml.YAMLError, RecursionError) as error:
        raise WriteError(f"the metadata of the card is not YAML: {error}; correct it by hand") from error
    if content is not None and not isinstance(content, dict):
        raise WriteError(
            f"the metadata of the card is {type(content).__name__}, expected a mapping; correct it by hand"
        )
    return (content or {}).get(key)


def put_entry(metadata: str, key: str, value: Any) -> str:
    """The metadata with one top-level key replaced, or added at the end; every other line stays.

    Raises WriteError where the entry cannot be told from its neighbours (written in flow style, say).
    """
    entry = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=100)
    lines = metadata.splitlines(keepends=True)
    start = next(
        (index for index, line in enumerate(lines) if re.match(rf"[\"']?{re.escape(key)}[\"']?\s*:", line)), None
    )
    if start is None:
        if metadata and not metadata.endswith("\n"):
            metadata += "\n"
        changed = metadata + entry
    else:
        end = start + 1
        while end < len(lines) and (lines[end][:1] in " \t-" or not lines[end].strip()):
            end += 1
        changed = "".join(lines[:start]) + entry + "".join(lines[end:])
    _check_rest(metadata, changed, key, value)
    return changed


def _check_rest(before: str, after: str, key: str, value: Any) -> None:
    old, new = (yaml.safe_load(text) or {} for text in (before, after))
    if new != old | {key: value}:
        raise WriteError(f"{key} of the card cannot be replaced without touching the rest; write it in block style")
