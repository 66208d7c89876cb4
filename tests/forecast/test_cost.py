"""Times of an earlier run, scaled by what each of its stages depends on."""

from __future__ import annotations

from pathlib import Path

from harness.forecast.cost import cost
from harness.forecast.model_size import ModelSize, model_size
from harness.plan import make_plan
from tests.helpers.made_run import make_run

SECONDS = {
    "start": 1.0, "plan": 2.0, "imports": 4.0, "open inputs": 8.0, "judge": 16.0,
    "encode documents": 32.0, "measure": 64.0,
    "shared pass": 128.0,
    "make variant": 256.0, "describe variant": 512.0,
}  # fmt: skip


def test_each_stage_is_scaled_by_what_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "documents: {data: pocket-heldout, max: 4, context: 16}\nmeasures: [divergence]\n"
    )
    (tmp_path / "gate.yaml").write_text("rules: [{rule: at_most, metric: divergence.kl_mean, limit: 9.0, why: any}]\n")
    (tmp_path / "v.yaml").write_text(
        "name: v\nreference: {model: pocket}\nvariant: {compress: [{backend: round_to_nearest, bits: 8}]}\n"
        "suites: [./suite.yaml]\ngates: [./gate.yaml]\n"
    )
    plan, size = make_plan(tmp_path / "v.yaml"), model_size("pocket", None)
    assert isinstance(size, ModelSize)
    made = make_run("pass").run
    smaller = made.reference.model_copy(update={"parameters": size.parameters / 4})
    asked = {"suites": [{"documents": {"max": 2, "context": 16}, "measures": []}]}
    clock = made.clock.model_copy(update={"seconds": SECONDS})
    run = made.model_copy(update={"asked": asked, "measurements": (), "reference": smaller, "clock": clock})
    found = cost(plan, run)
    assert "from the times of the run" in found.seconds_by
    assert found.seconds == (1 + 2 + 4 + 8 + 16) + 2 * (32 + 64) + 2 * 4 * 128 + 4 * (256 + 512)
