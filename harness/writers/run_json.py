"""run.json: the whole truth about one variant, from which every other output is made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import WriteError
from harness.records import Run
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


class RunJson(Writer):
    """run.json: every number exact, keys sorted, the same bytes for the same run."""

    file_name: ClassVar[str] = "run.json"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write run.json atomically. Raises WriteError, also when the run holds what JSON cannot (NaN,
        infinity).
        """
        path = folder / self.file_name
        write_atomic(path, encode(run))
        return path


def encode(run: Run) -> bytes:
    """The run as UTF-8 JSON (RFC 8259): two-space indent, sorted keys, shortest exact floats, newline at
    the end.

    Hub tokens that slipped into a path or a setting are masked. Raises WriteError for NaN or infinity,
    which only the free-form part ``asked`` could hold: records refuse them.
    """
    # Not pydantic's own JSON mode: it would write null where NaN stands, and say nothing.
    try:
        text = json.dumps(
            _masked(run.model_dump()),
            sort_keys=True,
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
        )
        return (text + "\n").encode()
    except (ValueError, TypeError) as error:
        raise WriteError(f"run.json: the run {run.name!r} holds a value that JSON cannot: {error}") from error


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET.sub("hf_***", value)
    if isinstance(value, dict):
        return {_masked(key): _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return value
