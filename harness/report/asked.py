"""The resolved plan as run.json keeps it: free-form data, read with care."""

from __future__ import annotations

from typing import Any

import yaml


def outline(asked: dict[str, Any], most: int = 400) -> list[str]:
    """The plan as lines of YAML, in the order it was written; beyond ``most`` they are counted."""
    lines = yaml.safe_dump(asked, sort_keys=False, allow_unicode=True, width=100).splitlines()
    hidden = len(lines) - most
    return lines if hidden <= 0 else [*lines[:most], f"… {hidden} more lines in run.json"]


def rules_by_place(asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of every rule of the plan by where it is written (``file:line``)."""
    found: dict[str, dict[str, Any]] = {}
    for gate in _dicts(asked.get("gates")):
        for entry in _dicts(gate.get("rules")):
            settings = entry.get("rule")
            found[str(entry.get("where"))] = settings if isinstance(settings, dict) else entry
    return found


def steps(asked: dict[str, Any]) -> list[str]:
    """The compression steps in words: "round_to_nearest (bits 4, group_size 32)"."""
    variant = asked.get("variant")
    return [_step(step) for step in _dicts(variant.get("compress") if isinstance(variant, dict) else None)]


def _step(step: dict[str, Any]) -> str:
    name = str(step.get("backend", step.get("kind", "step")))
    settings = [
        f"{key} {value}"
        for key, value in step.items()
        if key not in {"backend", "kind"} and value is not None
    ]
    return f"{name} ({', '.join(settings)})" if settings else name


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []
