"""Memory and time of trainings before they run, beside what a run measures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.forecast.cost import cost, memory
from harness.forecast.model_size import ModelSize, model_size
from harness.forecast.page import print_plan
from harness.forecast.training import training_memory, training_tokens
from harness.planning.specs import Plan
from tests.planning.test_fitted_data import plan

STEP = {"backend": "qat", "bits": 2, "batch": 4, "evaluations": 1}
STUDENT = {"backend": "distill", "student": {"layers": "halve"}, "batch": 4, "evaluations": 1}
TEXTS = {"data": "pocket-train", "documents": 8, "tokens": 64, "held_out": 2}


def planned(folder: Path, **lasts: int) -> Plan:
    return plan(folder, {**TEXTS, **lasts}, STEP)


def pocket() -> ModelSize:
    size = model_size("pocket")
    assert isinstance(size, ModelSize)
    return size


def test_every_part_is_forecast_from_shapes(tmp_path: Path) -> None:
    ((kind, parts),) = training_memory(planned(tmp_path, steps=3), pocket())
    count = pocket().parameters
    assert kind == "qat"
    assert (parts["trainable"], parts["gradients"], parts["optimizer"]) == (4 * count, 4 * count, 8 * count)
    assert parts["activations"] > 0
    total = memory(planned(tmp_path, steps=3))
    assert not isinstance(total, str)
    assert "training" in total.said


@pytest.mark.parametrize("step", [STEP, STUDENT], ids=lambda step: step["backend"])
def test_the_forecast_is_what_a_run_measures(tmp_path: Path, step: dict[str, Any]) -> None:
    from harness.models.loading import load
    from harness.running.training import prepare_training, read_training
    from harness.running.variant import make_variant

    found = plan(tmp_path, {**TEXTS, "steps": 1}, step)
    assert found.training is not None
    reference = load(found.reference, "pocket")
    training = prepare_training(found, read_training(found.training, reference), reference, tmp_path)
    make_variant(found, reference, (), training)
    assert training is not None
    measured = {each.part: each.measured for each in training.fits[0].memory}
    ((_, forecast),) = training_memory(found, pocket())
    for part in ("trainable", "gradients", "optimizer"):
        assert measured[part] == pytest.approx(forecast[part], rel=0.001)
    # Texts are shorter than 64 tokens, and not every parameter is a weight that is rounded.
    assert 0.5 * forecast["activations"] < measured["activations"] < 1.1 * forecast["activations"]


def test_tokens_of_steps_and_epochs(tmp_path: Path) -> None:
    assert training_tokens(planned(tmp_path, steps=3)) == 3 * 4 * 64
    assert training_tokens(planned(tmp_path, epochs=3)) == 3 * 8 * 64
    assert training_tokens(plan(tmp_path, None, {"backend": "round_to_nearest", "bits": 4})) == 0
    short, long = (cost(planned(tmp_path, steps=steps), None).seconds for steps in (1, 1000))
    assert short is not None
    assert long is not None
    assert long > short


def test_a_plan_shows_texts_and_memory(tmp_path: Path) -> None:
    found = planned(tmp_path, epochs=2)
    page = io.StringIO()
    print_plan(Console(file=page, width=200), found, [], cost(found, None), None)
    assert "pocket-train: 8 documents of up to 64 tokens, 2 epochs, 2 further documents held out" in page.getvalue()
    assert "qat     trainable 11.0 MB, gradients 11.0 MB, optimizer 22.0 MB" in page.getvalue()
