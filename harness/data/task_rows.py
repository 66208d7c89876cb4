"""The first rows of the local data files of an lm-eval task, read without the library that reads them in the run."""

from __future__ import annotations

import csv
import glob
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.task_files import resolve_data_paths
from harness.errors import DataError

Row = Mapping[str, Any]
FIRST = 20
"""Rows that are read of every split."""
_REMOTE = ("http://", "https://", "hf://", "s3://")
_PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst", ".tar")
_PLAIN = {"data_files", "field"}
"""Arguments of a data set under which its rows are what stands in its files."""


def list_splits(arguments: Mapping[str, Any], folder: Path) -> dict[str, list[str]]:
    """The data files of every split; files that belong to no named split are the split ``train``.

    arguments: ``dataset_kwargs`` of a task file in ``folder``, to which relative paths refer. Raises DataError for a
    file that does not exist.
    """
    given = arguments.get("data_files")
    named = given if isinstance(given, Mapping) else {"train": given}
    return {
        str(split): [path for each in _as_list(value) for path in _find(each, folder)] for split, value in named.items()
    }


def read_first(kind: str, path: str, arguments: Mapping[str, Any]) -> list[Row] | None:
    """The first rows of a data file; None if only the run will tell (a remote or packed file, further arguments).

    kind: ``dataset_path`` of the task, json, csv, parquet or text. Raises DataError for a file that cannot be read.
    """
    reader = _READERS.get(kind)
    if reader is None or not set(arguments) <= _PLAIN or path.startswith(_REMOTE) or path.endswith(_PACKED):
        return None
    try:
        return list(itertools.islice(reader(Path(path), arguments.get("field")), FIRST))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None


def _as_list(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if isinstance(each, str)]


def _find(name: str, folder: Path) -> list[str]:
    if name.startswith(_REMOTE):
        return [name]
    found = sorted(glob.glob(str(resolve_data_paths(name, folder))))
    if not found:
        raise DataError(f"{name!r}: no such file ({folder / name})")
    return found


def _read_json(path: Path, field: str | None) -> Iterator[Row]:
    """Objects one a line, or a list of them: the whole file, or what it holds under a field."""
    with path.open(encoding="utf-8") as stream:
        first = next((line for line in stream if line.strip()), "")
        if field is None and not first.lstrip().startswith("["):
            stream.seek(0)
            lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
            yield from (_as_row(_parse(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines)
            return
        stream.seek(0)
        content = _parse(stream.read(), str(path))
    rows = content.get(field) if isinstance(content, dict) and field is not None else content
    if not isinstance(rows, list):
        raise DataError(f"{path}: no list of rows" + (f" under the field {field!r}" if field else ""))
    yield from (_as_row(row, f"{path}: row {number}") for number, row in enumerate(rows, 1))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {type(value).__name__}, not a JSON object")
    return value


def _read_csv(path: Path, field: str | None) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from ({key: _as_number(value) for key, value in row.items()} for row in csv.DictReader(stream))


def _as_number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def _read_parquet(path: Path, field: str | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(FIRST):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not Parquet ({error})") from None


def _read_text(path: Path, field: str | None) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        yield from ({"text": line.rstrip("\n")} for line in stream)


_READERS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
}
