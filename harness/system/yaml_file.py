"""Strict YAML: every value has a line number, and nothing is guessed, merged, expanded or overwritten.

Values follow the YAML 1.2 core schema: ``1e-3`` is a number, ``no`` is text. Rejected, each with its line: duplicate
keys, anchors, aliases and merge keys, tags, directives, a second document, numbers that are not finite, control
characters, nesting deeper than 32 and files over 1 MB. The parser's events are read one by one, so cost is linear in
the length of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import PlanError, Problem
from harness.system.yaml_builder import BrokenError, Builder
from harness.system.yaml_values import CONTROL, KeyPath

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class YamlFile:
    """The content of one file as plain data (sequences are tuples) and the line of every value in it."""

    file: str
    data: Any
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line (1-based) of the value at ``path``, or of its closest existing parent."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(path: Path, problems: list[Problem], shown: str = "") -> YamlFile | None:
    """Read one file, called ``shown`` in messages (default: its path), and add its mistakes to ``problems``.

    None if nothing could be read or the syntax is broken. Otherwise the content is returned with its mistakes, so that
    further checks can report the remaining ones: use it only if ``problems`` is empty in the end.
    """
    name = shown or str(path)
    try:
        content = _content(path)
    except BrokenError as broken:
        problems.append(Problem(name, broken.line, "", broken.found, broken.expected))
        return None
    return parse_yaml(content, name, problems)


def parse_yaml(content: bytes, name: str, problems: list[Problem]) -> YamlFile | None:
    """Like `read_yaml`, from the bytes of the file called ``name``."""
    builder = Builder(name)
    try:
        builder.read(_decode(content))
    except BrokenError as broken:
        builder.problems.append(Problem(name, broken.line, "", broken.found, broken.expected))
        return None
    finally:
        problems += builder.problems
    return YamlFile(name, builder.root, builder.lines)


def read_description(path: Path) -> str:
    """The ``description`` of a suite or gate file; empty if it has none. Raises PlanError."""
    problems: list[Problem] = []
    parsed = read_yaml(path, problems)
    if problems or parsed is None:
        raise PlanError(problems)
    description = parsed.data.get("description", "") if isinstance(parsed.data, dict) else ""
    return str(description)


def _content(path: Path) -> bytes:
    if not os.path.isfile(path):
        what = "a path that is not a file" if os.path.exists(path) else "no such file"
        raise BrokenError(None, what, "a YAML file")
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BrokenError(None, error.strerror or str(error), "a readable file") from error


def _decode(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise BrokenError(None, "more than 1 MB", "a YAML file of at most 1 MB")
    if content.startswith(b"\xef\xbb\xbf"):
        raise BrokenError(1, "a byte order mark", "UTF-8 without a byte order mark")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{content[error.start]:02x}, which is not UTF-8"
        raise BrokenError(line, found, "UTF-8 text") from None
    if bad := CONTROL.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise BrokenError(line, f"the character U+{ord(bad[0]):04X}", "text without control characters")
    return text
