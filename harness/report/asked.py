"""Renders the resolved plan in run.json, which is free-form data of unknown shape."""

from __future__ import annotations

from itertools import islice
from typing import Any

import yaml

from harness.report.display import clean


def outline(asked: dict[str, Any], most: int = 400) -> list[str]:
    """The plan as lines of YAML, keys sorted as in run.json; lines beyond ``most`` are only counted."""
    lines = yaml.safe_dump(_shorten(asked), sort_keys=True, allow_unicode=True, width=100).splitlines()
    hidden = len(lines) - most
    return lines if hidden <= 0 else [*lines[:most], f"… {hidden} more lines in run.json"]


def _shorten(value: Any, most: int = 200) -> Any:
    """The plan with very long lists and texts cut, so that rendering it takes little time."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {_shorten(key): _shorten(item) for key, item in islice(value.items(), most)}
    if isinstance(value, list | tuple):
        cut = [f"… {len(value) - most} more in run.json"] if len(value) > most else []
        return [_shorten(item) for item in value[:most]] + cut
    return value


def rules_by_place(asked: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Settings of every rule of the plan by its position (``file:line``), which several rules may share."""
    found: dict[str, list[dict[str, Any]]] = {}
    for gate in _dicts(asked.get("gates")):
        for entry in _dicts(gate.get("rules")):
            settings = entry.get("rule")
            found.setdefault(str(entry.get("where")), []).append(settings if isinstance(settings, dict) else entry)
    return found


def describe_steps(asked: dict[str, Any]) -> list[str]:
    """The steps in words: "adapter lora (merged)", "round_to_nearest (bits 4, group_size 32)"."""
    given = asked.get("variant")
    variant = given if isinstance(given, dict) else {}
    steps = [_step(step) for step in _dicts(variant.get("compress"))]
    if not variant.get("adapter"):
        return steps
    adapter = f"adapter {clean(str(variant['adapter']).rpartition('/')[2])}"
    return [f"{adapter} (merged)", *steps] if variant.get("merge") else [*steps, f"{adapter} (attached)"]


def _step(step: dict[str, Any]) -> str:
    name = str(step.get("backend", step.get("kind", "step")))
    others = {key: value for key, value in step.items() if key not in {"backend", "kind"}}
    settings = [
        f"{key} {_format_setting(value)}" for key, value in sorted(others.items()) if value not in (None, [], "")
    ]
    return f"{name} ({', '.join(settings)})" if settings else name


def _format_setting(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []
