"""Resolves names in YAML files: bundled suites and gates, files, models, documents.

Paths are relative to the file that names them. Environment variables, ``~`` and patterns are not expanded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from harness.planning.checking import Checker
from harness.plugins import nearest
from harness.records import HubData
from harness.records.plan import GGUF
from harness.system.resources import POCKET_SPLITS, bundled_file, bundled_names
from harness.system.yaml_values import KeyPath, describe

SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Pattern of a name that is safe as a folder name on every system."""

COLLECTED = (".csv", ".parquet")
"""Ends of the names of tables, which ``harness init`` makes documents of."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA = f"{', '.join(POCKET_SPLITS)}, a path ending in .jsonl or .txt, or {{hub: owner/name, split: …}}"


def is_slug(name: str) -> bool:
    """Whether ``name`` is a safe folder name that stays inside its parent folder."""
    return SLUG.fullmatch(name) is not None and ".." not in name


def is_path(name: str) -> bool:
    """Whether the name of a suite or gate is a path; any other name means a bundled one."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def find_file(kind: Literal["suites", "gates"], name: str, base: Path) -> tuple[Path, str]:
    """The file of a suite or gate, and its name in messages. A local file never shadows a bundled one."""
    if is_path(name):
        path = base / name
        return path, str(path)
    return bundled_file(kind, name), f"{kind}/{name}.yaml"


def explain_unknown_name(kind: Literal["suites", "gates"], name: str, base: Path) -> tuple[str, str, str] | None:
    """(found, expected, hint) if ``name`` is neither the path of a file nor a bundled name; else None."""
    known = bundled_names(kind)
    if is_path(name) and "\0" not in name and not os.path.exists(base / name):
        return f"{name!r}: no such file", "a .yaml file, relative to the file that names it", ""
    if is_path(name) or name in known:
        return None
    beside = next((p for p in (f"{kind}/{name}.yaml", f"{name}.yaml") if os.path.isfile(base / p)), "")
    close = nearest(name, known)
    hint = f"did you mean the file ./{beside}?" if beside else f"did you mean {close}?" if close else ""
    return repr(name), f"one of {', '.join(known)}, or the path of a .yaml file", hint


def check_file_name(check: Checker, path: Path) -> None:
    """Check a file name: suites, gates and their folders are named after their files."""
    if not is_slug(path.stem):
        check.problem((), f"the file name {path.name!r}", "letters, digits, '.', '-' and '_' only")


def check_description(check: Checker, content: Mapping[str, Any]) -> None:
    """Check the description: if present, it must be a line of text."""
    if not isinstance(content.get("description", ""), str):
        check.problem(("description",), describe(content["description"]), "text")


def find_model(
    check: Checker, value: str, path: KeyPath, reserved: tuple[str, ...]
) -> tuple[str, Literal["reserved", "folder", "gguf", "hub"]]:
    """The model that ``value`` names: a reserved name, an absolute folder or GGUF file, or a hub id. Notes problems."""
    if unknown := explain_unknown_model(value, check.folder, reserved):
        check.problem(path, *unknown)
    if value in reserved:
        return value, "reserved"
    if _is_local(value, check.folder):
        local = os.path.abspath(check.folder / value)
        return local, "gguf" if local.endswith(GGUF) else "folder"
    return value, "hub"


def explain_unknown_model(value: str, base: Path, reserved: tuple[str, ...]) -> tuple[str, str, str] | None:
    """(found, expected, hint) if ``value`` is no reserved name, no folder or GGUF file under ``base``, and cannot be a
    hub id; else None."""
    if value in reserved:
        return None
    local = Path(os.path.abspath(base / value))
    if not _is_local(value, base):
        close = nearest(value, reserved) if "/" not in value else ""
        if not close and _HUB_ID.fullmatch(value) and ".." not in value:
            return None
        hint = f"did you mean {close}?" if close else _hint_expansion(value)
        return repr(value), f"{', '.join(reserved)}, a folder that exists, or a hub id (owner/name)", hint
    if local.suffix == GGUF:
        missing = f"{value!r}: no such file ({local})", "a GGUF file", _suggest_near(local)
        return None if os.path.isfile(local) else missing
    if os.path.isdir(local):
        return None
    expected = "the folder of a model, or a GGUF file"
    if os.path.isfile(local):
        return f"{value!r}: a file ({local})", expected, ""
    return f"{value!r}: no such folder ({local})", expected, _suggest_near(local)


def _is_local(value: str, base: Path) -> bool:
    looks_local = value.startswith((".", "/", "~")) or "\\" in value or value.endswith(GGUF)
    return looks_local or os.path.isdir(base / value)


def find_data(check: Checker, value: Any, path: KeyPath) -> str | HubData | None:
    """The documents that ``value`` names, with an absolute path; None and a problem if there are none."""
    if isinstance(value, Mapping):
        return check.record(HubData, value, path)
    if not isinstance(value, str):
        check.problem(path, describe(value), _DATA)
        return None
    if value in POCKET_SPLITS:
        return value
    if not value.endswith((".jsonl", ".txt")):
        close = nearest(value, POCKET_SPLITS)
        hub = f"for a dataset on the hub write {{hub: {value}, split: …}}" if _HUB_ID.fullmatch(value) else ""
        hint = f"did you mean {close}?" if close else hub if "/" in value else _hint_expansion(value)
        if value.endswith(COLLECTED) or os.path.isdir(check.folder / value):
            hint = f"harness init NEW.yaml --documents {value} collects the texts in a .jsonl file"
        check.problem(path, repr(value), _DATA, hint)
        return None
    local = Path(os.path.abspath(check.folder / value))
    if not os.path.isfile(local):
        check.problem(path, f"{value!r}: no such file ({local})", "a file of documents", _suggest_near(local))
        return None
    return str(local)


def _suggest_near(missing: Path) -> str:
    if "$" in str(missing) or "~" in str(missing):
        return _hint_expansion(str(missing))
    try:
        close = nearest(missing.name, [entry.name for entry in missing.parent.iterdir()])
    except OSError:
        return f"the folder {missing.parent} cannot be read"
    return f"did you mean {close}?" if close else ""


def _hint_expansion(value: str) -> str:
    return "environment variables and ~ are not expanded" if "$" in value or "~" in value else ""
