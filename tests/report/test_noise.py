"""Effects as multiples of their noise floor, in words, in the report and in the terminal."""

from __future__ import annotations

import pytest

from harness.records import Measurement, NoiseFloor
from harness.report import display, rules
from harness.report.noise import describe, multiple
from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.made_run import make_run
from tests.helpers.results import number


@pytest.mark.parametrize(
    ("floor", "change", "said"),
    [
        (None, 0.02, ""),
        (0.0, None, ""),
        (0.0, 0.02, "above a noise floor of exactly 0"),
        (0.0, 0.0, "at a noise floor of exactly 0"),
        (0.25, 5.0, "20 × the noise floor"),
        (0.25, -0.125, "0.5 × the noise floor"),
    ],
)
def test_an_effect_is_a_multiple_of_its_noise_floor(floor: float | None, change: float | None, said: str) -> None:
    noise = None if floor is None else NoiseFloor(value=floor, condition="rounding", documents=16)
    found = Measurement(
        name="m.a",
        unit="nats",
        better="lower",
        variant=3.0,
        change=change,
        n=1,
        clusters=1,
        basis="sampled",
        method="m",
        floor=noise,
    )
    assert multiple(found) == said
    where = " of 0.25 (weights moved by one unit in the last place, 16 documents)"
    assert describe(found) == said + where * said.endswith("noise floor")


def test_a_floor_that_is_no_condition_describes_itself() -> None:
    noise = NoiseFloor(value=0.25, condition="timing the reference against itself", documents=20)
    found = Measurement(
        name="latency.ratio", unit="ratio", better="lower", neutral=1.0, change=1.05, n=1, clusters=1,
        basis="sampled", method="m",
        floor=noise,
    )  # fmt: skip
    assert describe(found).endswith("× the noise floor of 0.25 (timing the reference against itself)")


def test_rules_and_measurements_show_the_multiple_in_report_and_terminal() -> None:
    made = make_run("fail")
    noise = NoiseFloor(value=0.001, condition="rounding", documents=16)
    measurements = tuple(
        m.model_copy(update={"floor": noise}) if m.name == "divergence.kl_mean" else m for m in made.run.measurements
    )
    run = made.run.model_copy(update={"measurements": measurements})
    (item,) = [each for each in rules.prepare_verdicts(run) if each.verdict.metric == "divergence.kl_mean"]
    effect = number(next(m.effect for m in measurements if m.name == "divergence.kl_mean"))
    said = f"{display.number(effect / 0.001, 3)} × the noise floor"
    assert item.line.endswith(f", {said}")
    page = render(run, made.tables, resources.folder("reports"))
    assert page.count(said) == 2, "beside the rule and beside the number"
    assert "the noise floor" not in render(made.run, made.tables, resources.folder("reports"))
