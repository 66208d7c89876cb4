"""The course of the learning rate, when the held-out documents are evaluated, and the order of documents."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.records import TrainingSpec
from harness.training.examples import place_of_step
from harness.training.memory import bytes_of_base, bytes_of_moments, shapes_of
from harness.training.settings import Optimization


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.5, 0.0062), ("linear", 0.5, 0.05), ("constant", 1.0, 1.0)]
)
def test_the_rate_rises_then_follows_its_schedule(schedule: str, middle: float, last: float) -> None:
    settings = Optimization.model_validate({"learning_rate": 1.0, "schedule": schedule, "warmup": 0.2})
    rates = [settings.rate_at(step, 25) for step in range(25)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[5] == 1.0
    assert rates[15] == pytest.approx(middle)
    assert rates[24] == pytest.approx(last, abs=1e-4)


@pytest.mark.parametrize(("steps", "evaluations"), [(7, 3), (100, 20), (5, 20), (1, 1)])
def test_evaluations_are_evenly_spaced_and_end_with_the_last_step(steps: int, evaluations: int) -> None:
    settings = Optimization(evaluations=evaluations)
    at = [step for step in range(1, steps + 1) if settings.is_evaluated(step, steps)]
    assert len(at) == min(steps, evaluations)
    assert at[-1] == steps
    gaps = [after - before for before, after in zip([0, *at], at, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_every_document_is_seen_equally_often_in_an_order_of_the_seed() -> None:
    seen = Counter(place for step in range(15) for place in place_of_step(step, 4, 10, seed=0))
    assert set(seen.values()) == {6}
    first = [place_of_step(step, 4, 10, seed=0) for step in range(4)]
    assert first == [place_of_step(step, 4, 10, seed=0) for step in range(4)]
    assert first != [place_of_step(step, 4, 10, seed=1) for step in range(4)]


def test_a_training_lasts_either_steps_or_epochs() -> None:
    with pytest.raises(ValueError, match="only one of them"):
        TrainingSpec(data="x", steps=1, epochs=1)
    with pytest.raises(ValueError, match="only one of them"):
        TrainingSpec(data="x")
    with pytest.raises(ValueError, match="0 steps changes nothing"):
        TrainingSpec(data="x", steps=0)


def test_the_published_figures_come_out() -> None:
    """Two fp32 moments are 8 bytes for each trainable parameter, 12 with a master copy; 7 G parameters of 4 bits 3.5 GB
    (Dettmers et al. 2023, arXiv 2305.14314)."""
    assert bytes_of_moments(1) == 8
    assert bytes_of_moments(1) + bytes_of_base(1, 32) == 12
    assert bytes_of_base(7_000_000_000, 4) == 3_500_000_000


def test_adapters_have_the_parameters_that_shapes_tell() -> None:
    pytest.importorskip("peft")
    from harness.backends._common.lora import Shape, insert_adapter
    from harness.modules.linears import linears, output_head
    from tests.helpers.tiny_models import family

    for name in ("llama", "qwen3"):
        for dora in (False, True):
            model = family(name)
            shapes = shapes_of(model.config)
            names = [each for each, _ in linears(model) if each != output_head(model)]
            assert shapes is not None
            assert shapes.linear_weights == sum(model.get_parameter(f"{each}.weight").numel() for each in names)
            inserted = insert_adapter(model, names, Shape(4, 8.0, dora=dora), seed=0)
            found = sum(each.numel() for each in inserted.parameters.values())
            assert shapes.adapter_parameters(4, dora) == found


def test_moments_of_8_bits_take_2_bytes() -> None:
    assert bytes_of_moments(1000, 8) == 2000
