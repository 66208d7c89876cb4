"""Builds plain data from YAML parser events with an explicit stack, so that no nesting can exhaust Python's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import yaml

from harness.errors import Problem
from harness.system.yaml_values import CONTROL, KeyPath, describe, format_path, parse_plain

MAX_DEPTH = 32
MAX_PROBLEMS = 50
MOST_READ_TWICE = 64_000
"""Characters of the largest broken file whose error comes from the slower parser."""
_FAST: Any = getattr(yaml, "CSafeLoader", None)
"""The parser in C, where PyYAML has it: the same events in a tenth of the time."""


class BrokenError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, line: int | None, found: str, expected: str) -> None:
        super().__init__(found)
        self.line, self.found, self.expected = line, found, expected


@dataclass
class _Open:
    """A mapping or sequence that is being read."""

    path: KeyPath
    value: dict[str, Any] | list[Any]
    key: str | None = None
    key_lines: dict[str, int] = field(default_factory=dict)

    @property
    def awaits_key(self) -> bool:
        return isinstance(self.value, dict) and self.key is None


class Builder:
    """Reads one text; ``root``, ``lines`` and ``problems`` are the result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Any = None
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._inside_key = 0  # nesting depth inside a list or mapping used as a key

    def read(self, text: str) -> None:
        """Read the text. Raises BrokenError for broken syntax and after 50 problems."""
        for event in _events(text):
            line = event.start_mark.line + 1 if event.start_mark else 1
            self._take(event, line)
            if len(self.problems) >= MAX_PROBLEMS:
                raise BrokenError(line, f"{MAX_PROBLEMS} mistakes so far", "fewer; the rest was not read")
        if not self.lines:
            raise BrokenError(1, "an empty file", "a mapping of keys to values")

    def _take(self, event: yaml.Event, line: int) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._start_document(event, line)
            case yaml.AliasEvent():
                self._problem(line, f"the alias *{event.anchor}", "the value itself, written out")
                self._scalar(f"*{event.anchor}", line)
            case yaml.ScalarEvent():
                self._refuse_extras(event.anchor, event.tag, line)
                self._take_scalar(event, line)
            case yaml.CollectionStartEvent():
                self._refuse_extras(event.anchor, event.tag, line)
                self._open({} if isinstance(event, yaml.MappingStartEvent) else [], line)
            case yaml.CollectionEndEvent():
                self._close()

    def _start_document(self, event: yaml.DocumentStartEvent, line: int) -> None:
        if event.version or event.tags:
            self._problem(line, "a % directive", "a file without directives")
        if self.lines:
            raise BrokenError(line, "a second document", "one document in a file")

    def _refuse_extras(self, anchor: str | None, tag: str | None, line: int) -> None:
        if anchor is not None:
            self._problem(line, f"the anchor &{anchor}", "values written out where they are used")
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            hint = "other files are not included; write the values here" if "include" in tag else ""
            self._problem(line, f"the tag {shown}", "a plain value without a tag", hint)

    def _take_scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        value: Any = event.value
        unquoted = not event.style and event.tag is None  # of plain text: "" in C, None in Python
        if unquoted and value == "<<" and self._stack and self._stack[-1].awaits_key:
            self._problem(line, "the merge key <<", "the keys themselves, written out")
        elif unquoted:
            try:
                value = parse_plain(event.value)
            except ValueError as error:
                found, expected = error.args
                self._problem(line, found, expected)
        elif bad := CONTROL.search(event.value):
            self._problem(line, f"an escape for U+{ord(bad[0]):04X}", "text without control characters")
        self._scalar(value, line)

    def _scalar(self, value: Any, line: int) -> None:
        if self._inside_key:
            return
        if self._stack and self._stack[-1].awaits_key:
            self._key(self._stack[-1], value, line)
        else:
            self._place(value, line)

    def _key(self, top: _Open, value: Any, line: int) -> None:
        if not isinstance(value, str):
            self._problem(line, f"the key {describe(value)}", "a key that is text")
            value = str(value)
        elif value in top.key_lines:
            found = f"the key {value!r} again (first on line {top.key_lines[value]})"
            self._problem(line, found, "each key once", key=format_path((*top.path, value)))
        top.key = value
        top.key_lines.setdefault(value, line)

    def _place(self, value: Any, line: int) -> KeyPath:
        """Insert a value at the parser's position; returns its path."""
        path: KeyPath = ()
        top = self._stack[-1] if self._stack else None
        if top is None:
            self.root = value
        elif isinstance(top.value, list):
            path = (*top.path, len(top.value))
            top.value.append(value)
        elif top.key is not None:
            path = (*top.path, top.key)
            top.value[top.key] = value
            line, top.key = top.key_lines[top.key], None
        self.lines[path] = line
        return path

    def _open(self, value: dict[str, Any] | list[Any], line: int) -> None:
        if len(self._stack) + self._inside_key >= MAX_DEPTH:
            raise BrokenError(line, f"nesting deeper than {MAX_DEPTH}", "a flatter file")
        if self._inside_key:
            self._inside_key += 1
        elif self._stack and self._stack[-1].awaits_key:
            self._problem(line, "a key that is a list or a mapping", "a key that is text")
            self._key(self._stack[-1], f"line {line}", line)
            self._inside_key = 1
        else:
            self._stack.append(_Open(self._place(value, line), value))

    def _close(self) -> None:
        if self._inside_key:
            self._inside_key -= 1
            return
        done = self._stack.pop()
        if isinstance(done.value, list):
            self._replace(done.path, tuple(done.value))

    def _replace(self, path: KeyPath, value: tuple[Any, ...]) -> None:
        """Replace the list of a complete sequence by a tuple."""
        if not path:
            self.root = value
            return
        around: Any = self._stack[-1].value
        around[path[-1]] = value

    def _problem(self, line: int, found: str, expected: str, hint: str = "", key: str = "") -> None:
        self.problems.append(Problem(self.name, line, key or self._current_path(), found, expected, hint))

    def _current_path(self) -> str:
        if not self._stack:
            return ""
        top = self._stack[-1]
        if isinstance(top.value, list):
            return format_path((*top.path, len(top.value)))
        return format_path((*top.path, top.key) if top.key else top.path)


def _events(text: str) -> Iterator[yaml.Event]:
    """Parser events. Raises BrokenError, also where PyYAML raises ValueError (escapes beyond Unicode).

    What the parser in C refuses, the one in Python reads on: it is the reference, and its errors say more.
    """
    if _FAST is None:
        yield from _parse(text, yaml.SafeLoader)
        return
    count = 0
    try:
        for event in _parse(text, _FAST):
            yield event
            count += 1
    except BrokenError:
        if len(text) > MOST_READ_TWICE:
            raise
        yield from islice(_parse(text, yaml.SafeLoader), count, None)


def _parse(text: str, parser: Any) -> Iterator[yaml.Event]:
    loader, line = parser(text), 1
    try:
        while loader.check_event():
            event = loader.get_event()
            line = event.end_mark.line + 1
            yield event
    except yaml.MarkedYAMLError as error:
        raise _broken_error(error) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise BrokenError(line, f"broken YAML: {error}", "valid YAML") from None
    finally:
        loader.dispose()


def _broken_error(error: yaml.MarkedYAMLError) -> BrokenError:
    begun, mark = error.context_mark, error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    since = f" that begins on line {begun.line + 1}" if begun and begun.line + 1 != line else ""
    context = f"{error.context}{since}" if error.context else ""
    why = ", ".join(part for part in (context, error.problem) if part)
    return BrokenError(line, f"broken YAML: {why}", "valid YAML")
