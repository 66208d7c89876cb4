"""The probe ``artifact``: the fresh process is played by this one, so that only what is compared is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.artifacts.saving import save_folder
from harness.data.encoding import EncodedDocument
from harness.errors import BackendError, WriteError
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.probes import ArtifactSource, Context
from harness.probes.artifact import DOCUMENTS, TOKENS, Artifact
from harness.records import ModelSpec
from harness.testing.models import randomize_gains
from tests.helpers.read_back import here
from tests.helpers.tiny_models import save, tiny_llama

DOWN = "model.layers.0.mlp.down_proj"


@dataclass
class MemorySink:
    """Keeps the last snapshot."""

    units: list[str] = field(default_factory=list)
    rows: pd.DataFrame | None = None

    def done(self, unit: str) -> bool:
        return unit in self.units

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        assert unit not in self.units
        assert not frames
        assert snapshots is not None
        self.units.append(unit)
        self.rows = snapshots["artifact"]

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        assert table == "artifact"
        return self.rows

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        raise AssertionError("only tables of a pass have sums")

    def of(self, part: str) -> pd.DataFrame:
        assert self.rows is not None
        return self.rows[self.rows["part"] == part]

    @property
    def parts(self) -> set[str]:
        assert self.rows is not None
        return set(self.rows["part"])


class Quiet:
    def step(self, what: str, done: int, of: int) -> None:
        assert 0 <= done <= of


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fresh process is played by this one."""
    monkeypatch.setattr("harness.artifacts.reloading.read_back", here)


@pytest.fixture
def variant(tmp_path: Path) -> LoadedModel:
    return load(ModelSpec(model=str(save(randomize_gains(tiny_llama()), tmp_path / "model"))), "variant")


def documents(count: int = 3, length: int = 10) -> list[EncodedDocument]:
    random = np.random.default_rng(0)
    return [
        EncodedDocument(
            index=at, id=str(at), kind="", ids=random.integers(1, 90, length), bytes=np.ones(length, np.float32),
            total_tokens=length, cut=False, skipped="" if at else "nothing to score",
        )
        for at in range(count)
    ]  # fmt: skip


def artifact_source(
    variant: LoadedModel, folder: Path, write: Callable[[Path], None] | None = None, kind: Any = "save"
) -> ArtifactSource:
    def plain(into: Path) -> None:
        save(variant.model, into)

    spec = ModelSpec(model=str(folder / "artifact"))
    return ArtifactSource(kind, folder / "artifact", lambda: save_folder(folder / "artifact", write or plain), spec)


def observe(
    variant: LoadedModel, source: ArtifactSource, sinks: Sequence[MemorySink] = (), count: int = 3, length: int = 10
) -> MemorySink:
    into = list(sinks) or [MemorySink()]
    Artifact().observe(Context(variant, (variant,), into, Quiet(), documents(count, length), artifact=source))
    return into[0]


def test_a_saved_model_that_comes_back_as_it_was_has_only_zeros(variant: LoadedModel, tmp_path: Path) -> None:
    sink = observe(variant, artifact_source(variant, tmp_path))
    for part in ("reloaded", "live"):
        assert sink.of(part)["document"].unique().tolist() == [1, 2]  # The first has nothing to score.
        assert (sink.of(part)["kl"] == 0).all()
        assert (sink.of(part)["max_abs_diff"] == 0).all()
        assert (sink.of(f"{part}_module")["error"] == 0).all()
    assert sink.of("same")["count"].tolist() == [1, 1, 1]
    assert (sink.of("text")["count"] == 0).all()
    files = dict(zip(sink.of("file")["name"], sink.of("file")["count"], strict=True))
    assert files["model.safetensors"] == (tmp_path / "artifact/model.safetensors").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "model"]


def test_the_first_documents_are_taken_and_cut(variant: LoadedModel, tmp_path: Path) -> None:
    sink = observe(variant, artifact_source(variant, tmp_path), count=12, length=TOKENS + 9)
    assert sink.of("reloaded")["document"].unique().tolist() == list(range(1, DOCUMENTS + 1))
    assert len(sink.of("reloaded")) == DOCUMENTS * (TOKENS - 1)


def test_a_scale_that_the_files_lost_is_seen_where_it_is(variant: LoadedModel, tmp_path: Path) -> None:
    """Codes without their scale, in a folder that loads without a word."""

    def loses_a_scale(into: Path) -> None:
        save(variant.model, into)
        tensors = load_file(into / "model.safetensors")
        tensors[f"{DOWN}.weight"] *= 64
        save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})

    sink = observe(variant, artifact_source(variant, tmp_path, loses_a_scale))
    assert (sink.of("live")["kl"] == 0).all()
    assert sink.of("reloaded")["kl"].mean() > 1e-3
    changed = sink.of("reloaded_module").query("error > allowed")
    assert changed["name"].tolist() == [DOWN]
    assert changed["error"].tolist() == pytest.approx([63.0])
    assert dict(zip(sink.of("same")["name"], sink.of("same")["count"], strict=True))["weights"] == 0


def test_a_library_that_changes_the_live_model_while_it_saves_is_seen(variant: LoadedModel, tmp_path: Path) -> None:
    """Even where the files come out right, and also where they hold the same wrong weights as the model then does."""

    def spoils(into: Path) -> None:
        with torch.no_grad():
            variant.model.get_parameter(f"{DOWN}.weight").mul_(3)
        save(variant.model, into)

    sink = observe(variant, artifact_source(variant, tmp_path, spoils))
    for part in ("live", "reloaded"):
        assert (sink.of(part)["kl"] > 0).all()
        assert sink.of(f"{part}_module").query("error > allowed")["name"].tolist() == [DOWN]


def test_a_library_that_leaves_the_live_model_unusable_is_told_from_one_that_writes_it_wrong(
    variant: LoadedModel, tmp_path: Path
) -> None:
    def packs(into: Path) -> None:
        save(variant.model, into)
        layer: Any = variant.model.get_submodule(DOWN)
        layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

    sink = observe(variant, artifact_source(variant, tmp_path, packs))
    (reason,) = sink.of("live_refused")["text"]
    assert "saving left the model in memory unusable" in reason
    assert (sink.of("reloaded")["kl"] == 0).all()
    assert "refused" not in sink.parts


def test_a_tokenizer_that_comes_back_otherwise_is_seen(variant: LoadedModel, tmp_path: Path) -> None:
    def another(into: Path) -> None:
        save(variant.model, into)
        path = into / "tokenizer.json"
        path.write_text(path.read_text().replace('"a": 66', '"a": 67').replace('"b": 67', '"b": 66'))

    class Spelt:
        """Decodes to letters that the other one swaps."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return variant.tokenizer(*arguments, **named)

        def decode(self, ids: list[int]) -> str:
            return "ab"

    spelt = LoadedModel("variant", variant.language_model, Spelt(), variant.identity, variant.files)  # type: ignore[arg-type]
    sink = observe(spelt, artifact_source(variant, tmp_path, another))
    assert (sink.of("text")["count"] == 1).all()
    assert (sink.of("reloaded")["kl"] == 0).all()


@pytest.mark.parametrize("stage", ["write", "load"])
def test_what_is_refused_leaves_the_reason_and_is_tried_again(variant: LoadedModel, tmp_path: Path, stage: str) -> None:
    def refuses(into: Path) -> None:
        if stage == "write":
            raise NotImplementedError("not serializable")
        save(variant.model, into)
        (into / "hf_quant_config.json").write_text("{}")

    sink = observe(variant, artifact_source(variant, tmp_path, refuses))
    (reason,) = sink.of("refused")["text"]
    assert ("NotImplementedError: not serializable" if stage == "write" else "hf_quant_config.json says") in reason
    assert "reloaded" not in sink.parts
    assert ("file" in sink.parts) == (stage == "load")
    observe(variant, artifact_source(variant, tmp_path), [sink])
    assert "reloaded" in sink.parts
    assert "refused" not in sink.parts


def test_a_disk_that_refuses_is_an_error_and_commits_nothing(variant: LoadedModel, tmp_path: Path) -> None:
    def full(into: Path) -> None:
        raise OSError(28, "No space left on device")

    sink = MemorySink()
    with pytest.raises(WriteError, match="No space left on device; measurements are kept"):
        observe(variant, artifact_source(variant, tmp_path, full), [sink])
    assert sink.units == []


def test_what_stands_is_not_made_again_and_what_was_touched_is(variant: LoadedModel, tmp_path: Path) -> None:
    sinks = [MemorySink(), MemorySink()]
    first = observe(variant, artifact_source(variant, tmp_path), sinks)
    before = first.rows

    def never(into: Path) -> None:
        raise AssertionError("written again")

    observe(variant, artifact_source(variant, tmp_path, never), sinks)
    assert first.units == ["artifact/1"]
    with (tmp_path / "artifact/model.safetensors").open("ab") as file:
        file.write(b"x")
    observe(variant, artifact_source(variant, tmp_path), sinks)
    assert first.units == ["artifact/1", "artifact/2"]
    assert before is not None
    assert first.rows is not None
    pd.testing.assert_frame_equal(before, first.rows)
    assert sinks[1].units == first.units


def test_a_checkpoint_is_listed_and_not_written(variant: LoadedModel, tmp_path: Path) -> None:
    sink = observe(variant, artifact_source(variant, tmp_path, kind="checkpoint"))
    assert sink.parts == {"parameters", "checkpoint", "file"}
    assert set(sink.of("file")["name"]) == {path.name for path in (tmp_path / "model").iterdir()}
    assert not (tmp_path / "artifact").exists()
    observe(variant, artifact_source(variant, tmp_path, kind="checkpoint"), [sink])
    assert len(sink.units) == 1


def test_rows_of_another_wish_are_replaced(variant: LoadedModel, tmp_path: Path) -> None:
    sink = observe(variant, artifact_source(variant, tmp_path, kind="none"))
    assert sink.parts == {"parameters", "none"}
    observe(variant, artifact_source(variant, tmp_path), [sink])
    assert "reloaded" in sink.parts
    observe(variant, artifact_source(variant, tmp_path, kind="none"), [sink])
    assert sink.parts == {"parameters", "none"}


def test_a_library_error_never_reads_like_a_full_disk(variant: LoadedModel, tmp_path: Path) -> None:
    def refuses(into: Path) -> None:
        raise ValueError("weights of this kind cannot be packed")

    asked = artifact_source(variant, tmp_path, refuses)
    with pytest.raises(BackendError, match="ValueError: weights of this kind"):
        asked.write()
