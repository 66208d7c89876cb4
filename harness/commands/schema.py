"""JSON Schemas of variant, suite and gate files, made from the records and plugins that read them.

A schema knows every plugin that is installed here, its settings and their ranges. It accepts whatever the planner
accepts; what only the planner can know (files that exist, settings that exclude each other) it does not refuse.
Draft 2020-12: https://json-schema.org/draft/2020-12
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from harness.errors import WriteError
from harness.planning.files import GateFile, SuiteFile, VariantFile
from harness.plugins import base_of, load, names
from harness.records.base import Entry, Plugin
from harness.system.files import write_atomic

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FILES: Mapping[str, type[Entry]] = {"variant": VariantFile, "suite": SuiteFile, "gate": GateFile}
NAMEABLE = {"variant": ("backends", "engines", "writers"), "suite": ("measures",), "gate": ("rules",)}
"""Families of plugins that each file can name."""
PLACEHOLDER = {"type": "string", "pattern": r"^\$[A-Za-z_][A-Za-z0-9_]*$"}
"""What stands for the value of an axis where a file has a matrix."""
_IN_MATRIX = "in_matrix."


def make_schema(kind: str) -> Schema:
    """The schema of a ``variant``, ``suite`` or ``gate`` file."""
    plugins = {base_of(family): _load_all(base_of(family)) for family in NAMEABLE[kind]}
    records: list[type[Entry]] = [FILES[kind], *plugins, *(each for found in plugins.values() for each in found)]
    refs, generated = models_json_schema([(record, "validation") for record in records], ref_template="#/$defs/{model}")
    keys = {record: refs[record, "validation"]["$ref"].removeprefix("#/$defs/") for record in records}
    defs: Schema = generated["$defs"]
    for base, found in plugins.items():
        for plugin in found:
            _add_role(defs[keys[plugin]], plugin)
        defs[keys[base]] = _choose_plugin(base, {plugin: keys[plugin] for plugin in found})
    root: Schema = {"$ref": f"#/$defs/{keys[FILES[kind]]}"}
    if "matrix" in FILES[kind].model_fields:
        defs |= {f"{_IN_MATRIX}{name}": _allow_placeholders(each) for name, each in defs.items()}
        in_matrix = {"$ref": f"#/$defs/{_IN_MATRIX}{keys[FILES[kind]]}"}
        root = {"if": {"type": "object", "required": ["matrix"]}, "then": in_matrix, "else": root}
    return {"$schema": DRAFT, "title": f"{kind} file of lm-shipcheck", **root, "$defs": defs}


def print_schema(kind: str, out: Path | None) -> str:
    """The schema as text; written to ``out`` if that is given. Raises WriteError."""
    text = json.dumps(make_schema(kind), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        return text
    try:
        write_atomic(out, text.encode())
    except OSError as error:
        raise WriteError(f"{out}: {error.strerror or error}") from error
    return f"wrote {out}\n"


def _load_all(base: type[Plugin]) -> list[type[Plugin]]:
    return [load(base, name) for name in names(base)]


def _add_role(schema: Schema, plugin: type[Plugin]) -> None:
    """Add the key that names the plugin to the schema of its settings."""
    role = {plugin.role(): {"const": plugin.kind, "description": plugin.summary()}}
    schema["properties"] = role | schema.get("properties", {})
    schema["required"] = [plugin.role(), *schema.get("required", [])]


def _choose_plugin(base: type[Plugin], keys: Mapping[type[Plugin], str]) -> Schema:
    """An entry of a file: the name of a plugin of the family, and the settings of that plugin.

    The condition on the name keeps an editor from listing what is wrong for every other plugin.
    """
    role = base.role()
    known = [{"const": plugin.kind, "description": plugin.summary()} for plugin in keys]
    entry: Schema = {
        "type": "object",
        "required": [role],
        "properties": {role: {"anyOf": known}},
        "allOf": [
            {
                "if": {"properties": {role: {"const": plugin.kind}}, "required": [role]},
                "then": {"$ref": f"#/$defs/{key}"},
            }
            for plugin, key in keys.items()
        ],
    }
    alone = [name for plugin, name in zip(keys, known, strict=True) if not _needs_settings(plugin)]
    if not base.by_name or not alone:
        return {"description": f"see harness list {base.family}", **entry}
    return {"description": f"see harness list {base.family}", "anyOf": [{"anyOf": alone}, entry]}


def _needs_settings(plugin: type[Plugin]) -> bool:
    return any(field.is_required() for field in plugin.model_fields.values())


def _allow_placeholders(node: Any) -> Any:
    """A schema that also accepts ``$axis`` for every value inside, and refers to schemas of the same kind."""
    if isinstance(node, list):
        return [_allow_placeholders(each) for each in node]
    if not isinstance(node, dict):
        return node
    changed: Schema = {}
    for key, value in node.items():
        if key == "$ref":
            changed[key] = value.replace("#/$defs/", f"#/$defs/{_IN_MATRIX}")
        elif key == "properties":
            changed[key] = {name: _or_placeholder(each) for name, each in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            changed[key] = _or_placeholder(value)
        elif key in ("anyOf", "allOf", "then"):
            changed[key] = _allow_placeholders(value)
        else:
            changed[key] = value
    return changed


def _or_placeholder(schema: Schema) -> Schema:
    described = {"description": schema["description"]} if "description" in schema else {}
    return described | {"anyOf": [_allow_placeholders(schema), PLACEHOLDER]}
