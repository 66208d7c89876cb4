"""Documents: reading them from bundled data, local files or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import DataError
from harness.plugins import nearest
from harness.records import HubData
from harness.system.resources import POCKET_SPLITS

POCKET_COUNT = 200
"""Number of bundled documents generated if none is given, since their supply is endless."""


@dataclass(frozen=True)
class RawDocument:
    """One text. ``kind`` groups documents in reports, ``language`` in slice rules; both may be empty. ``prompt``: what
    the text begins with, where that is given and not what a model shall learn to write."""

    id: str
    kind: str
    text: str
    language: str = ""
    prompt: str = ""


def read_documents(
    data: str | HubData,
    max: int | None,
    text_field: str = "text",
    split_on: str = "\n\n",
    seed: int = 0,
    prompt_field: str | None = None,
) -> list[RawDocument]:
    """The first ``max`` documents in the order of their source (None: all; of bundled data, 200).

    ``seed`` selects bundled documents; files and hub datasets keep their order and ignore it. A .txt file is read with
    universal newlines and split at ``split_on`` (empty: the whole file is one document); blank pieces are dropped.
    prompt_field: of a .jsonl file or hub dataset, what comes before the text; both together are the text of the
    document. Raises DataError.
    """
    if isinstance(data, HubData):
        documents = _read_hub(data, max, text_field, prompt_field)
    elif data in POCKET_SPLITS:
        documents = _read_pocket(POCKET_SPLITS[data], POCKET_COUNT if max is None else max, seed)
    elif data.endswith(".jsonl"):
        documents = list(islice(_read_jsonl(Path(data), text_field, prompt_field), max))
    elif data.endswith(".txt"):
        documents = list(islice(_read_text(Path(data), split_on), max))
    else:
        known = ", ".join(POCKET_SPLITS)
        raise DataError(f"documents {data!r}: expected a file ending in .jsonl or .txt, or one of {known}")
    if not documents:
        raise DataError(f"documents {data}: found no document, expected at least one")
    return documents


def documents_in(path: Path, split_on: str) -> int | None:
    """How many documents a .jsonl or .txt file holds; None where it cannot be read (the run will say why)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if path.suffix == ".jsonl":
        return sum(1 for line in text.splitlines() if line.strip())
    return sum(1 for piece in (text.split(split_on) if split_on else [text]) if piece.strip())


def shuffle_documents(documents: Sequence[RawDocument], seed: int) -> list[RawDocument]:
    """Shuffle documents, since a source may be sorted; the order depends only on ``seed`` and their number."""
    order = np.random.default_rng([seed, len(documents)]).permutation(len(documents))
    return [documents[place] for place in order]


def _read_pocket(split: str, count: int, seed: int) -> list[RawDocument]:
    from harness.pocket import world

    return [RawDocument(made.id, made.kind, made.text) for made in world.documents(split, count, seed)]


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The JSON objects of a .jsonl file with the numbers of their lines. Raises DataError naming file and line."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, expected a JSON object")
        yield number, row


def _read_jsonl(path: Path, text_field: str, prompt_field: str | None) -> Iterator[RawDocument]:
    for number, row in read_rows(path):
        yield _document(row, text_field, prompt_field, f"{path.stem}-{number}", f"{path}:{number}")


def _read_text(path: Path, split_on: str) -> Iterator[RawDocument]:
    text = "".join(_lines(path))
    pieces = text.split(split_on) if split_on else [text]
    kept = (piece.strip("\n") for piece in pieces if piece.strip())
    return (RawDocument(f"{path.stem}-{number}", "", piece) for number, piece in enumerate(kept, 1))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file with universal newlines. Raises DataError if it cannot be read."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and line.startswith("\ufeff"):
                    raise DataError(f"{path}: starts with a byte order mark; save it as UTF-8 without one")
                yield line
    except UnicodeDecodeError:
        raise explain_encoding(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_hub(data: HubData, max: int | None, text_field: str, prompt_field: str | None) -> list[RawDocument]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name = f"{data.hub} (config {data.config}, split {data.split}, revision {data.revision})"
    if os.path.exists(data.hub):
        raise DataError(f"hub dataset {data.hub}: the local file or folder {data.hub} would be read instead")
    try:
        rows = load_dataset(data.hub, data.config, split=data.split, revision=data.revision)
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"hub dataset {name} cannot be loaded: {type(error).__name__}: {error}; without network (or with "
            "HF_HUB_OFFLINE=1) it must be in the local cache; for texts of your own write documents: {data: "
            "my-texts.jsonl} and suites: [texts], or let harness init --documents my-texts.jsonl do so"
        ) from error
    return [
        _document(row, text_field, prompt_field, f"{data.split}-{number}", f"{name}, row {number}")
        for number, row in enumerate(islice(rows, max))
    ]


def explain_encoding(path: Path) -> DataError:
    """The error of a file that is not UTF-8, with the first byte that is none."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"not UTF-8 ({error.reason} at byte {error.start}) in line {line}"
        return DataError(f"{path}: {found}; save it as UTF-8")
    return DataError(f"{path}: changed while it was read; run it again")


def _document(
    row: Mapping[str, Any], text_field: str, prompt_field: str | None, default_id: str, where: str
) -> RawDocument:
    text = _text(row, "text_field", text_field, where)
    prompt = "" if prompt_field is None else _text(row, "prompt_field", prompt_field, where)
    given = row.get("id")
    name = str(given) if isinstance(given, str | int) and str(given) else default_id
    return RawDocument(name, _label(row.get("kind")), prompt + text, _label(row.get("language")), prompt)


def _text(row: Mapping[str, Any], setting: str, field: str, where: str) -> str:
    """The text in a field of a row. setting: that names the field."""
    if field not in row:
        close = nearest(field, row) or ", ".join(map(str, list(row)[:8])) or "no fields at all"
        raise DataError(f"{where}: has no field {field!r} ({setting}); it has {close}; set {setting}")
    text = row[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {field!r} is {type(text).__name__}, expected text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: the text contains a lone surrogate (half of a UTF-16 pair), which is no character")
    return text


def _label(value: object) -> str:
    return value if isinstance(value, str) else ""


def texts_sha256(raw: Iterable[RawDocument]) -> str:
    """Hash of the texts, ids and labels of all documents, in order."""
    digest = hashlib.sha256()
    for document in raw:
        content = [document.id, document.kind, document.language, document.text]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()
