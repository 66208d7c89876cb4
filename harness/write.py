"""Write: every output of a run, and reading a run back to write or judge it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness import plugins
from harness.errors import HarnessError, WriteError
from harness.measures import installed_metrics
from harness.records import SCHEMA_VERSION, Run, schema_1
from harness.tables.access import Tables
from harness.tables.store import Reader
from harness.writers import Writer

if TYPE_CHECKING:
    import pandas as pd


def write_all(run: Run, tables: Tables, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Let every named writer write into ``folder``; returns the files in the order of ``kinds``.

    What an earlier run left under the same names is removed first, so a stale report can never stand
    beside a new verdict. One writer that fails does not keep the others from writing; then WriteError is
    raised with every failure.
    """
    writers = [plugins.load(Writer, kind)() for kind in kinds]
    _remove_old(folder, [writer.file_name for writer in writers if writer.file_name])
    written: list[Path] = []
    failures: list[str] = []
    for writer in writers:
        try:
            written.append(writer.write(run, tables, folder))
        except HarnessError as error:
            failures.append(f"{writer.kind}: {error}")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the others must still write
            failures.append(f"{writer.kind}: {type(error).__name__}: {error}")
    if failures:
        raise WriteError("not everything could be written:\n" + "\n".join(failures))
    return written


def _remove_old(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{folder / name}: an earlier result could not be removed: {error.strerror}") from error


def write_report(run: Run, folder: Path, kind: str = "report_html") -> Path:
    """Write the report of a finished run in ``folder`` again, from its tables there.

    Tables that are gone or damaged leave their sections empty, with the reason. Raises WriteError.
    """
    return write_all(run, _Stored(folder / "tables", run.data_key), folder, (kind,))[0]


class _Stored:
    """The tables of a run, opened when first asked for."""

    def __init__(self, folder: Path, data_key: str) -> None:
        self.folder, self.data_key = folder, data_key

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.folder, self.data_key)

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that left tables. Raises TableError."""
        return self._reader.suites()

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None where the run did not make it. Raises TableError."""
        return self._reader.read(suite, table, columns)


def read_run(folder: Path) -> Run:
    """The run in ``folder`` (or the run.json given itself).

    Raises HarnessError naming the file when there is none, when it is damaged (not UTF-8, not JSON, cut
    off, a key twice, NaN), foreign (not made by this program), or of another schema version.
    """
    path = folder if folder.suffix == ".json" else folder / "run.json"
    content = _read_json(path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise HarnessError(f"{path}: found no schema_version, wanted the run.json of a finished run")
    version = content["schema_version"]
    if type(version) is int and version == 1:
        declared = [metric.model_dump(mode="json") for metric in installed_metrics()]
        content = schema_1.upgrade(content) | {"metrics": declared}
    elif type(version) is not int or version != SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: found schema_version {version!r}, wanted {SCHEMA_VERSION}; "
            "read it with the release that wrote it, or run the check again"
        )
    try:
        # The JSON mode of strict validation takes lists for tuples, which a Python dict could not give.
        return Run.model_validate_json(json.dumps(content, allow_nan=False))
    except (ValidationError, ValueError) as error:
        raise HarnessError(f"{path}: {_first_problems(error)}") from error


def _read_json(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise HarnessError(f"{path}: not found; wanted the folder of a finished run") from error
    except OSError as error:
        raise HarnessError(f"{path}: could not be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: damaged: not UTF-8 at byte {error.start}; run the check again") from error
    except RecursionError as error:
        raise HarnessError(f"{path}: damaged or foreign: nested too deeply") from error
    except ValueError as error:
        raise HarnessError(f"{path}: damaged: {error}; run the check again") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_problems(error: Exception, most: int = 3) -> str:
    """Where the content leaves the schema, without the content itself (it may be long or hostile)."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(str(part) for part in item['loc']) or 'run'}: {item['msg']}" for item in found[:most]]
    more = f" (and {len(found) - most} more)" if len(found) > most else ""
    return "found what no run.json of this program holds: " + "; ".join(lines) + more
