"""The probe ``comparability``: which folders it compares, and that it writes them once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
from transformers import AutoTokenizer

from harness.data.documents import RawDocument
from harness.models.fingerprints import fingerprint_folder
from harness.models.identity import tokenizer_sha256
from harness.models.loaded import LoadedModel
from harness.probes import ArtifactSource, Context
from harness.probes.comparability import Comparability
from harness.records import Comparison
from tests.helpers.folders import TOKENIZER, Pair, edit


@dataclass
class MemorySink:
    """Keeps the last snapshot."""

    units: list[str] = field(default_factory=list)
    table: pd.DataFrame | None = None

    def done(self, unit: str) -> bool:
        return unit in self.units

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        assert snapshots is not None
        self.units.append(unit)
        self.table = snapshots["comparability"]

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        return self.table

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        raise AssertionError("only tables of a pass have sums")


def opened(folder: Path) -> LoadedModel:
    """As much of a loaded model as the probe asks for."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    identity = SimpleNamespace(tokenizer_sha256=tokenizer_sha256(tokenizer))
    return cast(LoadedModel, SimpleNamespace(files=fingerprint_folder(folder), tokenizer=tokenizer, identity=identity))


def observe(
    reference: LoadedModel, variant: LoadedModel, sink: MemorySink, artifact: ArtifactSource | None = None
) -> Comparison:
    texts = [RawDocument(id="0", text="A text.", kind="")]
    context = Context(reference, (variant,), (sink,), cast(Any, None), texts=texts, artifact=artifact)
    Comparability().observe(context)
    assert sink.table is not None
    return Comparison.model_validate_json(str(sink.table["comparison"].iloc[0]))


def test_the_same_rows_are_written_once(tmp_path: Path) -> None:
    pair, sink = Pair(tmp_path), MemorySink()
    pair.edit(TOKENIZER, post_processor=None)
    reference, variant = opened(pair.reference), opened(pair.variant)
    found = observe(reference, variant, sink)
    assert {"common_text", "texts"} <= {each.part for each in found.differences}
    assert observe(reference, variant, sink) == found
    assert sink.units == ["comparability/1"]


def test_equal_files_are_the_same_bytes(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    found = observe(opened(pair.reference), opened(pair.variant), MemorySink())
    assert (found.basis, found.same_files, found.comparable) == ("folders", True, "yes")


def test_a_variant_of_the_reference_s_files_is_its_own_until_it_is_saved(tmp_path: Path) -> None:
    pair, sink = Pair(tmp_path), MemorySink()
    reference = opened(pair.reference)
    assert observe(reference, reference, sink).basis == "reference"
    edit(pair.variant / TOKENIZER, decoder=None)
    source = ArtifactSource("save", pair.variant, lambda: None, cast(Any, None))
    found = observe(reference, reference, sink, source)
    assert (found.basis, [each.part for each in found.differences]) == ("artifact", ["decoder"])
    assert sink.units == ["comparability/1", "comparability/2"]


def test_a_borrowed_tokenizer_is_that_of_the_reference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(TOKENIZER, decoder=None)
    reference, own = opened(pair.reference), opened(pair.variant)
    assert observe(reference, own, MemorySink()).comparable == "no"
    borrowing = cast(LoadedModel, SimpleNamespace(**vars(own) | {"tokenizer": reference.tokenizer}))
    assert observe(reference, borrowing, MemorySink()).comparable == "yes"


def test_of_a_single_file_only_the_loaded_tokenizer_is_compared(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    reference, other = opened(pair.reference), opened(pair.variant)
    single = cast(LoadedModel, SimpleNamespace(**vars(other) | {"files": ()}))
    found = observe(reference, single, MemorySink())
    assert (found.comparable, found.differences) == ("partly", ())
    assert {"configuration", "generation_config", "stop_tokens"} <= {each.part for each in found.omissions}
