"""Shipping within a run: last, once, whatever else fails; the fresh process is played by this one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from harness.backends import Compressed
from harness.backends.round_to_nearest import RoundToNearest
from harness.concluding.pair import Observed
from harness.errors import HarnessError, WriteError
from harness.measures.artifact import Artifact as ArtifactMeasure
from harness.measures.divergence import Divergence
from harness.models.adapters import attach_adapter
from harness.models.loading import load
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.artifact import Artifact
from harness.probes.tokens import Tokens
from harness.records import DocumentsSpec, Measurement, ModelSpec
from harness.rules.at_most import AtMost
from harness.run import run_group
from harness.running.variant import make_variant
from tests.helpers.peft_adapters import save_lora
from tests.helpers.read_back import here
from tests.helpers.tiny_models import save, tiny_llama

RULE = RuleSpec(rule=AtMost(metric="artifact.kl_max", limit=0.01, decide="point", why="w"), where="gate.yaml:1")


class Unsaved(RoundToNearest):
    """Rounds, and cannot be saved."""

    def save(self, model: Any, folder: Path) -> None:
        raise NotImplementedError("cannot be serialized")


class Full(RoundToNearest):
    """Rounds, and finds the disk full."""

    def save(self, model: Any, folder: Path) -> None:
        raise OSError(28, "No space left on device")


class Spoiling(RoundToNearest):
    """Rounds, and doubles the head in memory while it saves."""

    def save(self, model: Any, folder: Path) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(2)
        model.save_pretrained(folder)


class Prepares(RoundToNearest):
    """A step that saves in no way of its own."""

    quantizes: ClassVar[tuple[Any, ...]] = ()

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        return Compressed(model)


class Quiet:
    def step(self, what: str, done: int, of: int) -> None:
        pass


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.artifacts.reloading.read_back", here)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tiny_llama(), tmp_path / "reference")
    (tmp_path / "texts.jsonl").write_text('{"text": "some text"}\n{"text": "another one"}\n', encoding="utf-8")
    return tmp_path


def suite(folder: Path, name: str = "suite") -> SuiteSpec:
    return SuiteSpec(
        name=name,
        source=f"{name}.yaml",
        documents=DocumentsSpec(data=str(folder / "texts.jsonl"), context=32),
        measures=(Divergence(), ArtifactMeasure()),
        probes=(Artifact(), Tokens()),
    )


def make_plan(folder: Path, name: str, *steps: Any, suites: tuple[str, ...] = ("suite",), **variant: Any) -> Plan:
    return Plan(
        name=name,
        source=f"{name}.yaml",
        reference=ModelSpec(model=str(folder / "reference")),
        variant=VariantSpec(compress=steps, **variant),
        suites=tuple(suite(folder, each) for each in suites),
        gates=(GateSpec(name="gate", source="gate.yaml", rules=(RULE,)),),
    )


def run(folder: Path, *plans: Plan) -> list[Observed | HarnessError]:
    return run_group(plans, [folder / "runs" / plan.name for plan in plans], Quiet())


def one(folder: Path, plan: Plan) -> Observed:
    (found,) = run(folder, plan)
    assert isinstance(found, Observed), found
    return found


def numbers(observed: Observed) -> dict[str, float | None]:
    return {m.name: m.change for m in observed.measurements if isinstance(m, Measurement)}


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["lm_head"]}], ids=["LoRA", "with a head of its own"])
def test_an_adapter_beside_the_weights_is_shipped_beside_them(folder: Path, fields: dict[str, Any]) -> None:
    model = tiny_llama(tied=False)
    save(model, folder / "reference")
    adapter = save_lora(model, folder / "lora", **fields)
    plan = make_plan(folder, "both", RoundToNearest(bits=4, skip=("lm_head",)), adapter=str(adapter))
    found = numbers(one(folder, plan))
    assert (found["artifact.kl_max"], found["artifact.modules_changed"], found["artifact.live_kl_max"]) == (0, 0, 0)
    shipped = folder / "runs" / "both" / "artifact"
    base = load(ModelSpec(model=str(shipped)), "base")
    assert not any("lora" in name for name, _ in base.model.named_parameters())
    whole = attach_adapter(base, shipped / "adapter").identity
    measured = make_variant(plan, load(plan.reference, "reference"), ()).identity
    assert whole.weights_sha256 == measured.weights_sha256
    # One of which a part is gone is made again.
    (shipped / "adapter" / "adapter_model.safetensors").unlink()
    assert "artifact.kl_max" in numbers(one(folder, plan))
    assert (shipped / "adapter" / "adapter_model.safetensors").exists()


def test_each_variant_of_a_group_gets_its_own_and_failures_stay_with_theirs(folder: Path) -> None:
    plans = [
        make_plan(folder, "good", RoundToNearest(bits=8)),
        make_plan(folder, "unsaved", Unsaved(bits=8)),
        make_plan(folder, "full", Full(bits=8)),
        make_plan(folder, "other", RoundToNearest(bits=4)),
    ]
    good, unsaved, full, other = run(folder, *plans)
    assert isinstance(good, Observed)
    assert isinstance(other, Observed)
    assert numbers(good)["artifact.kl_max"] == numbers(other)["artifact.kl_max"] == 0.0
    assert (folder / "runs/good/artifact/model.safetensors").read_bytes() != (
        folder / "runs/other/artifact/model.safetensors"
    ).read_bytes()
    assert good.artifact is not None
    assert {file.name for file in good.artifact.files} >= {"config.json", "model.safetensors", "tokenizer.json"}

    assert isinstance(unsaved, Observed)
    assert "artifact.kl_max" not in numbers(unsaved)
    assert "divergence.kl_mean" in numbers(unsaved)
    assert any("NotImplementedError: cannot be serialized" in skipped.reason for skipped in unsaved.skipped)
    assert any("cannot be serialized" in note.text and note.level == "warn" for note in unsaved.notes)

    assert isinstance(full, WriteError)
    assert "No space left on device" in str(full)
    assert list((folder / "runs/full").glob("*artifact*")) == []
    assert list((folder / "runs/full/tables").rglob("*.parquet")), "what was measured is kept"


def test_it_is_looked_at_last_and_once_for_all_suites(folder: Path) -> None:
    """A model that saving spoils was measured whole in every suite, and is compared with what it was before."""
    alone = numbers(one(folder, make_plan(folder, "plain", RoundToNearest(bits=8))))
    observed = one(folder, make_plan(folder, "spoiling", Spoiling(bits=8), suites=("first", "second")))
    by_suite = {m.labels["suite"]: m.change for m in observed.measurements if m.name == "divergence.kl_mean"}
    assert by_suite == dict.fromkeys(("first", "second"), alone["divergence.kl_mean"])
    for name in ("artifact.kl_max", "artifact.live_kl_max"):
        found = {m.labels["suite"]: m.change for m in observed.measurements if m.name == name}
        assert len(set(found.values())) == 1
        assert (found["first"] or 0.0) > 1e-4
    assert sum("saving changed the model in memory" in note.text for note in observed.notes) == 1


def test_the_last_step_with_a_way_of_its_own_saves(folder: Path) -> None:
    observed = one(folder, make_plan(folder, "two", Spoiling(bits=8), Prepares(bits=8)))
    assert (numbers(observed)["artifact.live_kl_max"] or 0.0) > 0.0


def test_a_resumed_run_takes_over_what_stands_and_makes_again_what_is_gone(folder: Path) -> None:
    plan = make_plan(folder, "good", RoundToNearest(bits=8))
    first = one(folder, plan)
    kept = folder / "runs/good/artifact/model.safetensors"
    made = kept.stat().st_mtime_ns
    again = one(folder, plan)
    assert kept.stat().st_mtime_ns == made
    shutil.rmtree(kept.parent)
    third = one(folder, plan)
    assert kept.exists()
    for other in (again, third):
        assert (other.measurements, other.notes, other.artifact) == (first.measurements, first.notes, first.artifact)


def test_a_variant_that_is_not_saved_leaves_no_old_artifact_beside_it(folder: Path) -> None:
    one(folder, make_plan(folder, "good", RoundToNearest(bits=8)))
    observed = one(folder, make_plan(folder, "good", RoundToNearest(bits=8), artifact="none"))
    assert not (folder / "runs/good/artifact").exists()
    assert observed.artifact is None
    assert {s.reason for s in observed.skipped} == {"nothing was saved: variant.artifact is none"}


def test_a_checkpoint_is_its_own_artifact(folder: Path) -> None:
    observed = one(folder, make_plan(folder, "own", model=str(folder / "reference")))
    assert observed.artifact is not None
    assert observed.artifact.kind == "checkpoint"
    assert {file.name for file in observed.artifact.files} == {path.name for path in (folder / "reference").iterdir()}
    assert numbers(observed)["artifact.kl_max"] == 0.0
    assert not (folder / "runs/own/artifact").exists()
