"""The class of failure: beside the exit codes 1, 2 and 3, for programs; and warnings, beside every verdict."""

from __future__ import annotations

import io
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.check import check
from harness.cli import _run
from harness.errors import (
    BackendError,
    DataError,
    FailureClass,
    HarnessError,
    MeasureError,
    ModelError,
    PlanError,
    TableError,
    WriteError,
)
from harness.judge import judge
from harness.measures import load_metrics
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import FAILURE_FILE, Failure, Measurement, Skipped, Verdict
from harness.records.conclusion import conclusion
from harness.rules.at_most import AtMost
from harness.terminal import Terminal
from harness.write import read_run
from harness.writers import RUN_FILE
from tests.helpers.tiny_models import save, tiny_llama

CLASSES = get_args(FailureClass)


def measured(name: str, **changes: object) -> Measurement:
    facts = {"unit": "x", "better": "lower", "basis": "counted", "n": 9, "clusters": 9, "method": "exact"}
    return Measurement.model_validate({"name": name, "change": 5.0, **facts, **changes})


def failure_of(metric: str, *measurements: Measurement, skipped: tuple[Skipped, ...] = ()) -> str | None:
    rule = AtMost(metric=metric, limit=1.0, decide="point", why="any")
    verdicts = judge(
        [GateSpec(name="ship", source="ship.yaml", rules=(RuleSpec(rule=rule, where="ship.yaml:1"),))],
        measurements,
        skipped,
        False,
        metrics=load_metrics(),
    )
    return conclusion(verdicts).failure


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("perplexity.ratio", "quality"),
        ("tasks.arc.acc", "quality"),
        ("memory.weight_bytes", "resources"),
        ("latency.ratio", "resources"),
        ("artifact.texts_changed", "accounting"),
        ("layers.worst", "numerics"),
        ("experts.unreached", "quantization_coverage"),
        ("calibration_data.overlap", "comparability"),
    ],
)
def test_a_failed_rule_has_the_class_of_its_metric(name: str, failure: str) -> None:
    assert failure_of(name, measured(name)) == failure


def test_a_pass_has_no_class_of_failure() -> None:
    assert failure_of("memory.weight_bytes", measured("memory.weight_bytes", change=0.5)) is None


def test_a_number_that_is_not_finite_is_a_matter_of_numerics_on_either_side() -> None:
    for side in ("reference", "variant"):
        lost = measured("memory.weight_bytes", change=None, non_finite=side)
        assert failure_of("memory.weight_bytes", lost) == "numerics"


def test_a_metric_that_nobody_measures_is_a_matter_of_usage() -> None:
    assert failure_of("memory.wieght_bytes", measured("memory.weight_bytes")) == "usage"


def test_a_measure_that_was_skipped_whole_has_the_class_of_its_metrics() -> None:
    skipped = (Skipped(measure="latency.*", reason="no clock"),)
    assert failure_of("latency.*", skipped=skipped) == "resources"


def test_no_verdict_at_all_is_a_matter_of_usage() -> None:
    assert conclusion([]) == ("error", 2, "usage")


@given(st.lists(st.tuples(st.sampled_from(["pass", "fail", "inconclusive", "error"]), st.sampled_from(CLASSES))))
def test_the_run_has_the_class_of_the_first_rule_that_decides(rules: list[tuple[str, FailureClass]]) -> None:
    verdicts = [verdict(status, failure) for status, failure in rules]
    concluded = conclusion(verdicts)
    assert (concluded.failure is None) == (concluded.exit_code == 0)
    if rules and concluded.exit_code:
        assert concluded.failure == next(failure for status, failure in rules if status == concluded.verdict)


def verdict(status: str, failure: FailureClass) -> Verdict:
    facts = {"gate": "g", "rule": "r", "metric": "m", "expected": "", "found": "", "because": "", "where": ""}
    of_failure = None if status == "pass" else failure
    return Verdict.model_validate(facts | {"status": status, "level": "block", "failure": of_failure})


def test_every_error_has_a_class() -> None:
    classes = [
        each.usual_failure for each in (PlanError, DataError, ModelError, BackendError, TableError, MeasureError)
    ]
    assert classes == ["usage", "usage", "model_unsupported", "model_unsupported", "accounting", "accounting"]
    assert WriteError.usual_failure == "resources"
    assert {each.usual_failure for each in HarnessError.__subclasses__()} <= set(CLASSES)


VARIANT = """\
name: a
reference: {model: ./model}
variant: {compress: [{backend: round_to_nearest, bits: 8}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SAME_MODEL = VARIANT.replace("{compress: [{backend: round_to_nearest, bits: 8}]}", "{model: ./model}")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    save(tiny_llama(), tmp_path / "model")
    (tmp_path / "suite.yaml").write_text("measures: [memory]\n")
    limit(tmp_path, 99)
    (tmp_path / "a.yaml").write_text(VARIANT)
    return tmp_path


def limit(desk: Path, bits: float) -> None:
    rule = f"rules: [{{rule: at_most, metric: memory.bits_per_weight, limit: {bits}, why: any}}]\n"
    (desk / "gate.yaml").write_text(rule)


def run(desk: Path) -> tuple[int, str]:
    said = io.StringIO()
    return check([desk / "a.yaml"], desk / "runs", Terminal(Console(file=said, width=1000))), said.getvalue()


def test_a_failure_is_classed_on_the_terminal_and_in_run_json(desk: Path) -> None:
    limit(desk, 1)
    code, said = run(desk)
    assert (code, read_run(desk / "runs" / "a").failure) == (1, "resources")
    assert "class of failure: resources" in said


def test_a_run_that_could_not_be_made_leaves_its_class_for_programs(desk: Path) -> None:
    weights = desk / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    code, said = run(desk)
    left = Failure.model_validate_json((desk / "runs" / "a" / FAILURE_FILE).read_text())
    assert (code, left.failure, left.exit_code) == (2, "model_unsupported", 2)
    assert "model.safetensors" in left.message
    assert "class of failure: model_unsupported" in said
    assert not (desk / "runs" / "a" / RUN_FILE).exists()
    weights.write_bytes(whole)
    code, said = run(desk)
    assert code == 0
    assert "class of failure" not in said
    assert not (desk / "runs" / "a" / FAILURE_FILE).exists()


def test_a_mistake_in_a_file_is_a_matter_of_usage(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "a.yaml").write_text(VARIANT.replace("suites", "suits"))
    assert _run(["check", str(desk / "a.yaml"), "--out", str(desk / "runs")]) == 2
    assert "class of failure: usage" in capsys.readouterr().err


def test_warnings_stand_beside_the_verdict_and_are_counted(desk: Path) -> None:
    (desk / "a.yaml").write_text(SAME_MODEL)
    code, said = run(desk)
    left = read_run(desk / "runs" / "a")
    assert (code, left.warnings) == (0, len(left.warning_notes))
    assert left.warnings >= 1
    assert f"{left.warnings} warning" in said[said.index("May ship") :]
    for note in left.warning_notes:
        assert f"warning {note.topic}: {note.text[:60]}" in said[said.index("May ship") :]
    page = (desk / "runs" / "a" / "report.html").read_text()
    first = page[page.index('id="verdict-title"') : page.index('class="sides"')]
    assert f"{left.warnings} warning" in first
    assert all(note.topic in first for note in left.warning_notes)


@pytest.mark.parametrize("origin", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_error_that_comes_from_lack_of_memory_is_one_of_resources(origin: Exception) -> None:
    error, plain = ModelError("cannot be loaded"), ModelError("cannot be loaded")
    assert plain.failure == "model_unsupported"
    error.__cause__ = origin
    assert error.failure == "resources"
