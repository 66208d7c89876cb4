"""Reading run.json of schema 1: its content as schema 2 has it. Nothing that schema 1 said is lost or guessed.

Each function changes one kind of record, as plain JSON data, in place.
"""

from __future__ import annotations

from typing import Any


def upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A run of schema 1 as schema 2. Content that is no run at all stays so, for validation to say what is wrong."""
    return content | {"schema_version": 2}
