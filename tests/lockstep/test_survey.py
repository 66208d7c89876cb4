"""Which modules of unusual architectures are compared, and why the others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.backends import Backend
from harness.lockstep.driver import shared_pass
from harness.lockstep.pass_report import PassReport
from harness.plugins import load
from harness.probes import Context, Probe
from harness.probes.weights import Weights
from harness.tables.store import Store
from harness.testing.trials import as_variant, calibration_for
from tests.helpers.hybrids import hybrid
from tests.helpers.pass_pairs import Silent, make_documents


def observe(kind: str, folder: Path) -> tuple[PassReport, Any, Any]:
    """The pass over a model and its rounded copy: its report, and the tables ``layers`` and ``weights``."""
    model = hybrid(kind)
    rounding: Any = load(Backend, "round_to_nearest")
    step = rounding(bits=4)
    made = as_variant(step, model, calibration_for(step))
    original = replace(made.with_modules("reference", model), calibration=None)
    store = Store(folder / "store", "key")
    sinks = [store.sink("s")]
    report = shared_pass(original, [made], make_documents(), [load(Probe, "layers")()], sinks, Silent())
    Weights(errors=True).observe(Context(original, [made], sinks, Silent()))
    tables = store.read("s", "layers"), store.read("s", "weights")
    store.close()
    return (report, *tables)


@pytest.mark.parametrize(("kind", "layers"), [("mamba", ("backbone.layers.0.mixer", "backbone.layers.1.mixer")),
                                              ("jamba", ("model.layers.0.mamba",))])  # fmt: skip
def test_a_layer_that_is_never_called_is_named_and_its_weight_compared(
    kind: str, layers: tuple[str, ...], tmp_path: Path
) -> None:
    report, outputs, weights = observe(kind, tmp_path)
    names = [f"{layer}.dt_proj" for layer in layers]
    said = "it is never called, because the model multiplies by its weight itself; its weight is compared"
    assert report.unpaired == (dict.fromkeys(names, said),)
    assert report.expected == (frozenset(names),)
    assert [note.topic for note in report.variant_notes[0] if said in note.text] == ["modules"]
    assert not set(names) & set(outputs["module"])
    errors = weights[(weights["side"] == "variant") & weights["module"].isin(names)]
    assert len(errors) == len(names)
    assert (errors["relative_error"] > 0).all()


def test_all_projections_of_multi_head_latent_attention_are_compared(tmp_path: Path) -> None:
    report, outputs, weights = observe("deepseek_v3", tmp_path)
    assert report.unpaired == ({},)
    names = {f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1)
             for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}  # fmt: skip
    assert names <= set(outputs["module"])
    sums = outputs[outputs["module"].isin(names)]
    assert (sums["sum_squared_error"] > 0).all()
    errors = weights[(weights["side"] == "variant") & weights["module"].isin(names)]
    assert len(errors) == len(names)
    assert (errors["relative_error"] > 0).all()


@pytest.mark.parametrize("backend", ["gptq", "awq"])
def test_methods_with_calibration_act_on_latent_projections(backend: str) -> None:
    model = hybrid("deepseek_v3")
    parts = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    kinds: list[Any] = [load(Backend, kind) for kind in (backend, "round_to_nearest")]
    steps = [kind(bits=3, only=tuple(f"*.{part}" for part in parts)) for kind in kinds]
    made, plain = (as_variant(each, model, calibration_for(steps[0])).model for each in steps)
    for part in parts:
        name = f"model.layers.1.self_attn.{part}.weight"
        assert not made.get_parameter(name).equal(plain.get_parameter(name)), part
