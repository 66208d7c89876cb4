"""What ``harness list NAME`` prints: the settings of whatever has that name, read from the schemas of its records."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.commands.catalogue import Rows, catalogue_groups, catalogue_table
from harness.commands.schema import FILES
from harness.errors import HarnessError
from harness.plugins import FAMILIES, base_of, load, names
from harness.records.base import Entry
from harness.system.resources import bundled_file

Schema = Mapping[str, Any]
Named = tuple[str, Iterable[RenderableType]]
"""What has a name, in words, and what is printed of it."""

_FILE = "-file"
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matching {}",
}

_NOT_EMPTY = ("at least 1 of them", "at least 1 characters")


@dataclass(frozen=True)
class Setting:
    """One key of a YAML entry in words. key: with the keys around it (``overrides[].bits``, or
    ``objectives[logit].alpha`` in a list of entries of several kinds)."""

    key: str
    type: str
    default: str
    range: str
    meaning: str
    example: str


def list_settings(record: type[Entry]) -> list[Setting]:
    """Every setting of a record, and of the records inside it, in the order of their declaration."""
    bases = [base_of(family) for family in FAMILIES]
    refs, generated = models_json_schema([(each, "validation") for each in (record, *bases)])
    defs: dict[str, Schema] = dict(generated["$defs"])
    for base in bases:
        name = refs[base, "validation"]["$ref"].rpartition("/")[2]
        if base is not record:
            defs[name] = {"type": "object", "family": base.family}
    root = defs[refs[record, "validation"]["$ref"].rpartition("/")[2]]
    return list(_walk(root, "", defs))


def print_named(name: str) -> int:
    """Print everything that is called ``name``; a name that nothing has is an error that names the nearest."""
    groups = catalogue_groups()
    found = [*_find_group(name, groups), *_find_record(name), *_find_other(name, groups)]
    if not found:
        files = [f"{kind}{_FILE}" for kind in FILES]
        known = [*groups, *files, *(each for rows in groups.values() for each, _ in rows)]
        close = ", ".join(dict.fromkeys(difflib.get_close_matches(name, known, n=3, cutoff=0.6)))
        hint = f"the nearest names are {close}" if close else "harness list shows every name"
        raise HarnessError(f"nothing is called {name!r}; {hint}")
    console = Console()
    for index, (title, shown) in enumerate(found):
        console.print(Text("\n" * bool(index) + title, style="bold"))
        for each in shown:
            console.print(each)
    return 0


def _find_group(name: str, groups: Mapping[str, Rows]) -> Iterator[Named]:
    if name in groups:
        yield name, [catalogue_table("", groups[name])]


def _find_record(name: str) -> Iterator[Named]:
    """The plugins and the kind of file of that name."""
    if name.endswith(_FILE) and (kind := name.removesuffix(_FILE)) in FILES:
        yield f"{kind} file", _describe_record(FILES[kind])
    for family in FAMILIES:
        base = base_of(family)
        if name in names(base):
            yield f"{base.role()} {name}", _describe_record(load(base, name))


def _find_other(name: str, groups: Mapping[str, Rows]) -> Iterator[Named]:
    """The suite and the gate of that name with their files, and whatever else has a name and one line about it."""
    for kind in ("suites", "gates"):
        if name in dict(groups[kind]):
            text = bundled_file(kind, name).read_text(encoding="utf-8").rstrip()
            yield f"{kind.removesuffix('s')} {name}", [Text(text)]
    for group in groups.keys() - {*FAMILIES, "suites", "gates"}:
        if name in dict(groups[group]):
            yield f"{group.removesuffix('s')} {name}", [Text(dict(groups[group])[name])]


def _describe_record(record: type[Entry]) -> Iterator[RenderableType]:
    """What a record is, and every setting: type, range, default, meaning, example."""
    yield Text(" ".join((record.__doc__ or "").split()))
    settings = list_settings(record)
    if not settings:
        yield Text("It has no settings.")
    for setting in settings:
        range_ = f" {setting.range}," if setting.range else ""
        default = f"default {setting.default}" if setting.default else "required"
        yield Text.assemble(("\n" + setting.key, "bold"), f": {setting.type},{range_} {default}")
        yield Padding(Text(setting.meaning), (0, 0, 0, 4), expand=False)
        yield Padding(Text(f"example: {setting.example}"), (0, 0, 0, 4), expand=False)


def _walk(schema: Schema, prefix: str, defs: Mapping[str, Schema]) -> Iterator[Setting]:
    required = schema.get("required", ())
    for key, node in schema.get("properties", {}).items():
        given = find_example(node, defs)
        default = "" if key in required else _write(node["default"]) if "default" in node else "its own default"
        meaning = " ".join(node.get("description", "").split())
        example = "" if given is None else f"{key}: {_write(given)}"
        shown = prefix + key
        yield Setting(shown, _name_type(node, defs), default, _name_range(node, defs), meaning, example)
        for inner, dots in _find_records(node, defs):
            yield from _walk(inner, f"{shown}{dots}.", defs)


def _write(value: Any) -> str:
    """A value as flow YAML, which is JSON with fewer quotes."""
    if isinstance(value, str):
        plain = value and value.strip() == value and all(c.isalnum() or c in " ._/-*=" for c in value)
        return value if plain and not value.startswith(("-", "*", "=")) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_write(each)}' for key, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_write, value))}]"
    return json.dumps(TypeAdapter(Any).dump_python(value, mode="json"))


def _resolve(node: Schema, defs: Mapping[str, Schema]) -> Schema:
    return defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _choices(node: Schema, defs: Mapping[str, Schema]) -> Sequence[Schema]:
    """The alternatives of a schema that has some, else itself alone."""
    node = _resolve(node, defs)
    several = node.get("anyOf") or node.get("oneOf")
    return [found for each in several for found in _choices(each, defs)] if several else [node]


def _find_records(node: Schema, defs: Mapping[str, Schema]) -> Iterator[tuple[Schema, str]]:
    """The records that a value may hold, with what its key is followed by."""
    for choice in _choices(node, defs):
        if choice.get("properties"):
            yield choice, ""
        elif isinstance(items := choice.get("items"), dict):
            kind = items.get("discriminator", {}).get("propertyName")
            for found, dots in _find_records(items, defs):
                name = found["properties"][kind]["const"] if kind else ""
                yield found, f"[{name}]{dots}"


def _name_type(node: Schema, defs: Mapping[str, Schema]) -> str:
    return " or ".join(dict.fromkeys(_name_one(choice, defs) for choice in _choices(node, defs)))


def _name_one(node: Schema, defs: Mapping[str, Schema]) -> str:
    if "family" in node:
        return f"entry of the {node['family']}"
    if "enum" in node or "const" in node:
        values = node.get("enum", [node.get("const")])
        return ", ".join(map(_write, values)) if len(values) == 1 else f"one of {', '.join(map(_write, values))}"
    if node.get("type") == "array":
        items = node.get("items", {})
        return f"list of ({_name_type(items, defs)})" if items else "list"
    return _TYPES.get(node.get("type", ""), "any value")


def _name_range(node: Schema, defs: Mapping[str, Schema]) -> str:
    """The bounds of a value and of the entries of a list."""
    found = []
    for choice in (*_choices(node, defs), _resolve(node, defs)):
        bounds = [words.format(choice[key]) for key, words in _BOUNDS.items() if key in choice]
        found += ["not empty" if each in _NOT_EMPTY else each for each in bounds]
        if isinstance(items := choice.get("items"), dict) and (inside := _name_range(items, defs)):
            found.append(f"each {inside}")
    return ", ".join(dict.fromkeys(found))


def find_example(node: Schema, defs: Mapping[str, Schema]) -> Any:
    """A value: a declared example, else another choice than the default, else the default; None where none is known."""
    declared = [node, *_choices(node, defs)]
    if given := next((each["examples"] for each in declared if each.get("examples")), None):
        return given[0]
    for choice in _choices(node, defs):
        values = choice.get("enum") or ([True, False] if choice.get("type") == "boolean" else [])
        other = [value for value in values if value != node.get("default")]
        if other:
            return other[0]
    if node.get("default"):
        return node["default"]
    for choice in _choices(node, defs):
        if isinstance(items := choice.get("items"), dict):
            inside = find_example(items, defs)
            return None if inside is None else [inside]
        if choice.get("properties"):
            inner = {key: find_example(choice["properties"][key], defs) for key in choice.get("required", ())}
            return inner or None
    return node.get("default")
