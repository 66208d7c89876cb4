"""What ``harness init`` finds out about a model and texts before anything is loaded: headers, JSON and rows only."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.documents import RawDocument, explain_encoding, read_documents, read_rows
from harness.errors import DataError
from harness.models.headers import find_folder, own_dtype, read_headers, read_parts
from harness.planning.locating import COLLECTED

POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
TEXT_FIELDS = ("text", "content", "story", "document", "page", "body", "article")
CONTEXTS = (128, 256, 512, 1024, 2048)
"""Contexts that are offered; texts beyond the last are cut, because long ones cost more than they tell."""
GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale, as kernels and formats have them; the largest costs the fewest bits."""
_NO_LINEAR = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head|conv")
SAMPLE = 100
"""Rows and documents that are looked at for the text field and the lengths."""
READ = (".jsonl", ".txt", *COLLECTED)
DEFAULT_CONTEXT = 512


@dataclass(frozen=True)
class ModelLook:
    """dtype: that of most values in the files. positions: how many tokens it reads at most; None: not declared.
    group_size: the largest usual one that divides the inputs of every linear layer; None: none does."""

    dtype: str = "float32"
    positions: int | None = None
    folder: Path | None = None
    group_size: int | None = 128


@dataclass(frozen=True)
class TextsLook:
    """Texts that were found. file: what the variant file names. collected: whether init writes it, from ``sources``."""

    file: Path
    text_field: str
    documents: tuple[RawDocument, ...]
    sources: tuple[Path, ...]
    collected: bool


def look_at_model(model: str) -> ModelLook:
    """What the headers and config.json of a model on this machine say; the defaults for any other."""
    folder = find_folder(model, None)
    if not isinstance(folder, Path):
        return ModelLook()
    parts = read_parts(folder)
    found = (part.get(key) for key in POSITIONS for part in parts)
    positions = next((each for each in found if type(each) is int and each > 1), None)
    vocabulary = {part.get("vocab_size") for part in parts}
    inputs = {size for header in read_headers(folder) for size in _list_inputs(header, vocabulary)}
    group_size = next((size for size in GROUP_SIZES if not any(each % size for each in inputs)), None)
    return ModelLook(own_dtype(folder), positions, folder, group_size)


def look_at_texts(paths: Sequence[Path], beside: Path) -> TextsLook:
    """The documents of files and folders. beside: the variant file, next to which texts are collected that are not one
    .jsonl or .txt file. Raises DataError for what cannot be read, with file, line and what to do.
    """
    files = [file for path in paths for file in _list_files(path)]
    if len(files) == 1 and len(paths) == 1 and paths[0] == files[0] and files[0].suffix in (".jsonl", ".txt"):
        field = _find_text_field(files[0]) if files[0].suffix == ".jsonl" else "text"
        found = read_documents(str(files[0]), None, field)
        return TextsLook(files[0], field, tuple(found), tuple(files), collected=False)
    documents = [each for file in files for each in _read_file(file)]
    target = beside.with_name(f"{beside.stem}-texts.jsonl")
    return TextsLook(target, "text", tuple(documents), tuple(files), collected=True)


def write_collected(texts: TextsLook) -> None:
    """Write collected documents, each with the name of its file as kind, by which rules can slice."""
    rows = ({"id": each.id, "kind": each.kind, "text": each.text} for each in texts.documents)
    with texts.file.open("x", encoding="utf-8") as stream:
        stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def count_tokens(documents: Sequence[RawDocument], model: ModelLook) -> list[int]:
    """Tokens of some of the documents, by the tokenizer.json of the model; without one, by four characters a token."""
    some = documents[:: max(1, len(documents) // SAMPLE)]
    path = model.folder / "tokenizer.json" if model.folder else None
    tokenizer = _read_tokenizer(path) if path is not None and path.is_file() else None
    if tokenizer is None:
        return [math.ceil(len(each.text) / 4) for each in some]
    return [len(tokenizer.encode(each.text).ids) for each in some]


def _read_tokenizer(path: Path) -> Any:
    """The tokenizer of a file; None for a damaged one, which the check reports with what to do."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - the library raises nothing narrower
        return None


def choose_context(tokens: Sequence[int], positions: int | None) -> int:
    """The smallest context offered that holds the longest of the documents looked at, and that the model reads."""
    longest = max(tokens, default=DEFAULT_CONTEXT)
    chosen = next((each for each in CONTEXTS if each >= longest), CONTEXTS[-1])
    return chosen if positions is None else min(chosen, positions)


def describe_lengths(tokens: Sequence[int]) -> str:
    """Median and longest of the documents looked at."""
    return f"about {statistics.median(tokens):.0f} tokens each, the longest {max(tokens)}"


def _list_inputs(header: Mapping[str, Any], vocabulary: set[Any]) -> Iterator[int]:
    """The numbers of inputs of linear layers. A stack of experts is stored either way round, so both sizes count."""
    for name, entry in header.items():
        shape: list[int] = entry["shape"] if name != "__metadata__" else []
        if len(shape) == 2 and name.endswith(".weight") and not _NO_LINEAR.search(name) and shape[0] not in vocabulary:
            yield shape[1]
        elif len(shape) == 3 and "experts" in name:
            yield from shape[1:]


def _list_files(path: Path) -> list[Path]:
    if path.is_dir():
        if files := sorted(each for each in path.rglob("*") if each.suffix in READ and each.is_file()):
            return files
        raise DataError(f"{path}: holds no texts, expected files that end in {', '.join(READ)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; give texts with --documents")
    if path.suffix not in READ:
        raise DataError(f"{path}: expected texts in a file that ends in {', '.join(READ)}, or a folder of them")
    return [path]


def _read_file(path: Path) -> Iterator[RawDocument]:
    """The documents of one of several files. A .txt file among others is one document."""
    if path.suffix == ".txt":
        documents = read_documents(str(path), None, split_on="")
    elif path.suffix == ".jsonl":
        documents = read_documents(str(path), None, _find_text_field(path))
    else:
        documents = _read_table(path)
    for each in documents:
        yield RawDocument(each.id, path.stem, each.text)


def _read_table(path: Path) -> list[RawDocument]:
    rows = list(_rows_of_csv(path) if path.suffix == ".csv" else _rows_of_parquet(path))
    field = _choose_text_field(rows[:SAMPLE], path)
    texts = [(number, row.get(field)) for number, row in enumerate(rows, 1)]
    return [RawDocument(f"{path.stem}-{n}", "", text) for n, text in texts if isinstance(text, str) and text.strip()]


def _rows_of_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream)
    except UnicodeDecodeError:
        raise explain_encoding(path) from None
    except (csv.Error, OSError) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None


def _rows_of_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    yield from table.to_pylist()


def _find_text_field(path: Path) -> str:
    """The field of a .jsonl file that holds its texts."""
    return _choose_text_field([row for _, row in itertools.islice(read_rows(path), SAMPLE)], path)


def _choose_text_field(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
    """A field of a usual name that is text in every row, else the one with the longest texts."""
    if not rows:
        raise DataError(f"{path}: holds no document, expected at least one")
    fields = [field for field in rows[0] if all(isinstance(row.get(field), str) for row in rows)]
    if not fields:
        raise DataError(f"{path}: no field is text in each of the first {len(rows)} rows; it has {', '.join(rows[0])}")
    usual = next((field for field in TEXT_FIELDS if field in fields), None)
    return usual or max(fields, key=lambda field: sum(len(row[field]) for row in rows))
