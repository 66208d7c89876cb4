"""Converts plain YAML data to records: each mistake becomes a Problem with its line, and checking continues."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness import plugins
from harness.errors import HarnessError, Problem
from harness.plugins import P, UnknownPluginError, nearest
from harness.records import Plugin
from harness.system.foreign import contain
from harness.system.yaml_file import YamlFile
from harness.system.yaml_values import KeyPath, describe, format_path, looks_numeric

R = TypeVar("R", bound=BaseModel)
MOST_PROBLEMS = 100
"""Mistakes of one file that are listed."""

_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "extra_forbidden": "no such key",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_type": "a whole number",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping",
    "multiple_of": "a multiple of {multiple_of}",
    "none_required": "nothing",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "text of at most {max_length} characters",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "tuple_type": "a list",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "the key {discriminator}",
}


class Checker:
    """Makes records from the content of one file and adds mistakes to ``problems``.

    folder: the folder of the file, to which its paths are relative.
    """

    def __init__(self, source: YamlFile, folder: Path, problems: list[Problem]) -> None:
        self.source = source
        self.folder = folder
        self.problems = problems
        self._noted = {(known.line, known.key) for known in problems if known.file == source.file}

    @property
    def full(self) -> bool:
        """Whether the file has so many mistakes that no more are looked for: each costs a search for close names."""
        return len(self._noted) >= MOST_PROBLEMS

    def where(self, path: KeyPath) -> str:
        """``file:line`` of a value."""
        return f"{self.source.file}:{self.source.line(path)}"

    def problem(self, path: KeyPath, found: str, expected: str, hint: str = "") -> None:
        """Add one mistake, unless the same value already has one (a number that is not finite, for example)."""
        line, key = self.source.line(path), format_path(path)
        if self.full or (line, key) in self._noted:
            return
        self._noted.add((line, key))
        self.problems.append(Problem(self.source.file, line, key, found, expected, hint))
        if self.full:
            found, expected = f"{MOST_PROBLEMS} mistakes so far", "fewer; the rest of the file was not checked"
            self.problems.append(Problem(self.source.file, line, "", found, expected))

    def mapping(self, value: Any, path: KeyPath, known: Sequence[str]) -> dict[str, Any]:
        """``value`` if it is a mapping, without its unknown keys; else an empty one, and a problem."""
        if not isinstance(value, Mapping):
            self.problem(path, describe(value), f"a mapping with {', '.join(known)}")
            return {}
        for key in value:
            if key not in known:
                self._unknown_key((*path, key), key, known)
        return {key: each for key, each in value.items() if key in known}

    def entries(self, value: Any, path: KeyPath, what: str) -> tuple[Any, ...]:
        """``value`` if it is a list with at least one entry; else none, and a problem."""
        if isinstance(value, tuple) and value:
            return value
        found = "an empty list" if value == () else describe(value)
        self.problem(path, found, f"a list of {what}, at least one")
        return ()

    def record(self, cls: type[R], value: Any, path: KeyPath, also: Sequence[str] = ()) -> R | None:
        """An instance of ``cls``, or None and all problems of its fields. also: further keys of the entry."""
        if not isinstance(value, Mapping):
            self.problem(path, describe(value), f"a mapping with {', '.join(cls.model_fields)}")
            return None
        try:
            with contain(f"checking the settings of {cls.__name__}"):
                return cls.model_validate(value)
        except ValidationError as error:
            self._explain(cls, value, path, error.errors(include_url=False), also)
            return None

    def plugin(self, base: type[P], value: Any, path: KeyPath) -> P | None:
        """The plugin that ``{role: name, **settings}`` describes, or its name alone where the family allows that.

        None and problems for anything else.

        base: the base class of its family, whose role (``backend``, for example) is the key of the name.
        """
        role = base.role()
        if self.full:
            return None
        if base.by_name and isinstance(value, str):
            value = {role: value}
        if not isinstance(value, Mapping):
            self.problem(path, describe(value), f"a mapping such as {{{role}: name}}")
            return None
        name = value.get(role)
        if not isinstance(name, str):
            self._missing_name(base, value, path)
            return None
        cls = self._load(base, name, (*path, role) if (*path, role) in self.source.lines else path)
        if cls is None:
            return None
        settings = {key: each for key, each in value.items() if key != role}
        for field in cls.paths:
            settings = self._resolve(settings, field.split("."), path)
        return self.record(cls, settings, path, also=(role,))

    def _resolve(self, value: Any, keys: Sequence[str], path: KeyPath) -> Any:
        """Settings with the path under ``keys`` made absolute, in each entry of the lists on the way."""
        if not keys:
            return self._absolute(value, path)
        if isinstance(value, tuple):
            return tuple(self._resolve(each, keys, (*path, index)) for index, each in enumerate(value))
        if not isinstance(value, Mapping) or keys[0] not in value:
            return value
        return {**value, keys[0]: self._resolve(value[keys[0]], keys[1:], (*path, keys[0]))}

    def _absolute(self, value: Any, path: KeyPath) -> Any:
        """A path, or a list of paths, made absolute; problems for those that do not exist."""
        if isinstance(value, tuple):
            return tuple(self._absolute(each, (*path, index)) for index, each in enumerate(value))
        if not isinstance(value, str) or not value:
            return value
        absolute = os.path.abspath(self.folder / value)
        if not os.path.exists(absolute):
            self.problem(path, f"{value!r}: not found ({absolute})", "a path that exists")
        return absolute

    def _missing_name(self, base: type[Plugin], value: Mapping[str, Any], path: KeyPath) -> None:
        role = base.role()
        found = f"{role}: {describe(value[role])}" if role in value else f"{describe(value)} and no {role}"
        close = nearest(role, value)
        self.problem(
            (*path, role) if role in value else path,
            found,
            f"the key {role} with one of {', '.join(plugins.names(base))}",
            f"did you mean {role} by {close}?" if close and role not in value else "",
        )

    def _load(self, base: type[P], name: str, path: KeyPath) -> type[P] | None:
        try:
            return plugins.load(base, name)
        except UnknownPluginError as error:
            hint = f"did you mean {error.nearest}?" if error.nearest else ""
            self.problem(path, repr(name), f"one of {', '.join(error.known) or 'no names at all'}", hint)
        except (HarnessError, ImportError) as error:
            self.problem(path, f"{name!r}, which does not load: {error}", f"a {base.role()} that loads")
        return None

    def _explain(
        self,
        cls: type[BaseModel],
        value: Any,
        path: KeyPath,
        details: list[ErrorDetails],
        also: Sequence[str],
    ) -> None:
        grouped: dict[KeyPath, list[ErrorDetails]] = {}
        for detail in map(_point_at_kind, details):
            grouped.setdefault(_place(value, detail), []).append(detail)
        for place, group in grouped.items():
            first, full = group[0], (*path, *place)
            if first["type"] == "extra_forbidden" and len(place) == 1:
                self._unknown_key(full, str(place[0]), (*also, *cls.model_fields))
            elif first["type"] == "missing":
                field = cls.model_fields.get(str(place[0])) if len(place) == 1 else None
                meaning = f" ({field.description})" if field and field.description else ""
                self.problem(full, "nothing", f"the key {place[-1]}{meaning}")
            else:
                expected = " or ".join(dict.fromkeys(_describe_expected(detail) for detail in group))
                self.problem(full, describe(first["input"]), expected, _hint(first))

    def _unknown_key(self, path: KeyPath, key: str, known: Sequence[str]) -> None:
        if self.full:
            return
        close = nearest(key, known)
        self.problem(
            path,
            f"the unknown key {key!r}",
            f"one of {', '.join(known)}",
            f"did you mean {close}?" if close else "",
        )


def _point_at_kind(detail: ErrorDetails) -> ErrorDetails:
    """An unknown kind of entry, which pydantic reports of the whole entry, as an error of the key that names it."""
    if detail["type"] != "union_tag_invalid":
        return detail
    key, name = detail["ctx"]["discriminator"].strip("'"), detail["ctx"]["tag"]
    return {**detail, "loc": (*detail["loc"], key), "input": name}


def _place(value: Any, detail: ErrorDetails) -> KeyPath:
    """Path in ``value`` of an error; pydantic's location also names members of unions, which are not keys."""
    place: KeyPath = ()
    last = len(detail["loc"]) - 1
    for position, part in enumerate(detail["loc"]):
        is_key = isinstance(value, Mapping) and part in value
        is_index = isinstance(value, tuple) and isinstance(part, int) and part < len(value)
        if is_key or is_index:
            place, value = (*place, part), value[part]
        elif detail["type"] == "missing" and position == last:
            place = (*place, part)
    return place


def _describe_expected(detail: ErrorDetails) -> str:
    if pattern := _WANTED.get(detail["type"]):
        return pattern.format(**detail.get("ctx", {}))
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _hint(detail: ErrorDetails) -> str:
    value, kind = detail["input"], detail["type"]
    if kind in ("float_type", "int_type") and isinstance(value, str) and looks_numeric(value):
        return "remove the quotes"
    if kind in ("literal_error", "union_tag_invalid") and isinstance(value, str):
        known = detail.get("ctx", {})
        close = nearest(value, re.findall(r"'([^']*)'", known.get("expected") or known.get("expected_tags", "")))
        return f"did you mean {close}?" if close else ""
    if kind == "string_type" and value is not None and not isinstance(value, Mapping | tuple):
        return "write it in quotes"
    return ""
