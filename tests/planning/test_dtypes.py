"""``dtype: auto`` is the default, becomes a stated dtype in the plan, and run.json records both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.check import check
from harness.errors import PlanError
from harness.plan import make_plan, notes_on_plan, resolve_plan
from harness.planning.specs import Plan
from harness.records import Note
from harness.terminal import Terminal
from tests.helpers.tiny_models import family, save

GATE = "rules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: any number}\n"
SUITE = "documents: {data: pocket-heldout, max: 2, context: 16}\nmeasures: [divergence]\n"


def write(folder: Path, reference: str, variant: str) -> Path:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE)
    path = folder / "variant.yaml"
    path.write_text(
        f"name: v\nreference: {reference}\nvariant: {variant}\nsuites: [./suite.yaml]\ngates: [./gate.yaml]\n"
        "weak_reference: random weights\n"
    )
    return path


def model(folder: Path, name: str, dtype: torch.dtype) -> None:
    made: Any = family("llama")
    save(made.to(dtype), folder / name)


def dtype_notes(plan: Plan) -> list[Note]:
    return [note for note in notes_on_plan(plan) if note.topic == "dtype"]


def planned(folder: Path, reference: str, variant: str) -> Plan:
    return make_plan(write(folder, reference, variant))


@pytest.mark.parametrize("asked", ["", ", dtype: auto"])
def test_auto_is_the_default_and_the_dtype_of_the_checkpoint(tmp_path: Path, asked: str) -> None:
    model(tmp_path, "ours", torch.float16)
    plan = planned(tmp_path, f"{{model: ./ours{asked}}}", "{compress: [{backend: round_to_nearest, bits: 8}]}")
    assert (plan.reference.dtype, plan.variant.dtype, plan.auto_dtype) == ("float16", None, ("reference",))
    assert resolve_plan(plan)["reference"]["dtype"] == "auto"
    assert "auto_dtype" not in resolve_plan(plan)


def test_the_embedded_model_keeps_float32(tmp_path: Path) -> None:
    assert planned(tmp_path, "{model: pocket}", "{model: pocket}").reference.dtype == "float32"


def test_a_stated_dtype_stays(tmp_path: Path) -> None:
    model(tmp_path, "ours", torch.float16)
    plan = planned(tmp_path, "{model: ./ours, dtype: bfloat16}", "{model: ./ours}")
    assert (plan.reference.dtype, plan.variant.dtype, plan.auto_dtype) == ("bfloat16", None, ())
    assert resolve_plan(plan)["reference"]["dtype"] == "bfloat16"


def test_the_variant_has_the_dtype_of_the_reference_unless_it_asks_for_its_own(tmp_path: Path) -> None:
    model(tmp_path, "ours", torch.float32)
    model(tmp_path, "theirs", torch.bfloat16)
    plan = planned(tmp_path, "{model: ./ours}", "{model: ./theirs}")
    assert (plan.variant.dtype, dtype_notes(plan)) == (None, [])
    plan = planned(tmp_path, "{model: ./ours}", "{model: ./theirs, dtype: auto}")
    assert (plan.variant.dtype, plan.auto_dtype) == ("bfloat16", ("reference", "variant"))
    (note,) = dtype_notes(plan)
    assert note.level == "warn"
    assert note.text.startswith("the reference is computed in float32, the variant in bfloat16: precision counts")
    plan = planned(tmp_path, "{model: ./ours}", "{dtype: auto, compress: [{backend: round_to_nearest, bits: 8}]}")
    assert (plan.variant.dtype, dtype_notes(plan)) == (None, [])


def test_a_model_that_is_not_here_yet_stays_auto(tmp_path: Path) -> None:
    plan = planned(tmp_path, "{model: owner/that-is-not-here}", "{model: pocket}")
    assert plan.reference.dtype == "auto"


def test_flash_attention_is_checked_by_the_dtype_that_was_taken(tmp_path: Path) -> None:
    for dtype, fine in ((torch.float32, False), (torch.float16, True)):
        model(tmp_path, str(dtype), dtype)
        reference = f"{{model: ./{dtype}, device: cuda, attention: flash_attention_2}}"
        if fine:
            assert planned(tmp_path, reference, "{compress: []}").reference.dtype == "float16"
        else:
            with pytest.raises(PlanError, match=r"reference\.attention: found flash_attention_2 with float32 on cuda"):
                planned(tmp_path, reference, "{compress: []}")


def test_run_json_holds_what_was_asked_and_what_was_taken(tmp_path: Path) -> None:
    model(tmp_path, "ours", torch.bfloat16)
    path = write(tmp_path, "{model: ./ours}", "{model: ./ours}")
    assert check([path], tmp_path / "runs", Terminal()) == 0
    run = json.loads((tmp_path / "runs" / "v" / "run.json").read_text())
    assert run["asked"]["reference"]["dtype"] == "auto"
    assert run["asked"]["variant"]["dtype"] is None
    assert (run["reference"]["dtype"], run["variant"]["dtype"]) == ("bfloat16", "bfloat16")
