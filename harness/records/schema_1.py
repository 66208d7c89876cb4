"""Reading run.json of schema 1: its content as schema 2 has it. Nothing that schema 1 said is lost or guessed.

Each function changes one kind of record, as plain JSON data, in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.records.schema_1_formats import upgrade_identity

PREFIXES = {"layer_error": "layers", "weight_error": "weights"}
"""Measures whose metrics begin with another word than their own name."""


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A run of schema 1 as schema 2. Content that is no run at all stays so, for validation to say what is wrong."""
    for record in _records(content, "measurements"):
        _measurement(record)
    for record in _records(content, "skipped"):
        _upgrade_skipped(record)
    for side in ("reference", "variant"):
        if isinstance(content.get(side), dict):
            upgrade_identity(content[side])
    warnings = sum(note.get("level") == "warn" for note in _list_records(content, "notes"))
    return content | {"schema_version": 2, "warnings": warnings}


def _measurement(record: dict[str, Any]) -> None:
    """Schema 1 told only in the method whether a number was counted, and in the unit that its neutral is infinite."""
    alone = record.get("low") == record.get("high") and record.get("variant_low") == record.get("variant_high")
    record["basis"] = "counted" if alone and str(record.get("method")).startswith("exact") else "sampled"
    if record.get("unit") == "dB":
        record["infinite_neutral"] = True


def _upgrade_skipped(record: dict[str, Any]) -> None:
    """Schema 1 named a measure that was skipped whole by its own name, schema 2 by what its metrics are called."""
    name = record.get("measure")
    if isinstance(name, str) and "." not in name:
        record["measure"] = f"{PREFIXES.get(name, name)}.*"


def _records(content: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The records of a kind, of the run and of its slices, as far as they are records at all."""
    for part in (content, *_list_records(content, "slices")):
        yield from _list_records(part, key)


def _list_records(part: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The records that a part holds under a key, as far as they are records at all."""
    records = part.get(key)
    return [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
