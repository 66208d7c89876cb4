"""What is left of variants that could not be run, or whose check was interrupted: no output is silent, none passes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

import harness.check
import harness.run
from harness.check import check
from harness.cli import _run
from harness.errors import HarnessError
from harness.records import FAILURE_FILE
from harness.system.foreign import EndedBySignal
from harness.terminal import Terminal
from harness.write import read_failure, read_run
from harness.writers import RUN_FILE
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: {name}
reference: {{model: ./model}}
variant: {{compress: [{{backend: round_to_nearest, bits: 8}}]}}
suites: [./suite.yaml]
gates: [./gate.yaml]
outputs: [report_html, junit, sarif, comment_md, gitlab_code_quality, github_annotations, github_summary]
"""
GATE = "rules: [{rule: at_most, metric: memory.bits_per_weight, limit: 99.0, why: any}]\n"
TOLD = (
    "junit.xml", "results.sarif", "comment.md", "gl-code-quality.json", "github_annotations.txt", "github_summary.md",
)  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two variants that pass, in a GitHub job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    save(tiny_llama(), tmp_path / "model")
    (tmp_path / "suite.yaml").write_text("measures: [memory]\n")
    (tmp_path / "gate.yaml").write_text(GATE)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(VARIANT.format(name=name))
    return tmp_path


def checked(*names: str) -> tuple[int, str]:
    said = io.StringIO()
    code = check([Path(f"{name}.yaml") for name in names], Path("runs"), Terminal(Console(file=said, width=1000)))
    return code, said.getvalue()


def check_errors(folder: Path, message: str, place: tuple[str, int], failure: str) -> None:
    """Every output in ``folder`` says that there is no run, why, and where to look."""
    assert not (folder / RUN_FILE).exists()
    assert not (folder / "report.html").exists()
    for name in TOLD:
        text = (folder / name).read_text()
        assert message in text.replace("&#46;", ".").replace("&#39;", "'").replace("&apos;", "'"), (name, text)
    (suite,) = ElementTree.parse(folder / "junit.xml").getroot()  # noqa: S314 - written a moment ago
    cases = list(suite.iter("testcase"))
    assert [[child.tag for child in case] for case in cases] == [["error"]] * len(cases)
    assert suite.get("errors") == str(len(cases)) != "0"
    assert {each.get("name"): each.get("value") for each in suite[0]}["failure"] == failure
    (run,) = json.loads((folder / "results.sarif").read_text())["runs"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert run["properties"]["classOfFailure"] == failure
    notes = invocation["toolExecutionNotifications"]
    assert {note["level"] for note in notes} == {"error"}
    assert place in [place_of(note) for note in notes]
    assert place in [place_of(result) for result in run["results"]]
    entries = json.loads((folder / "gl-code-quality.json").read_text())
    assert place in [(each["location"]["path"], each["location"]["lines"]["begin"]) for each in entries]
    assert {each["severity"] for each in entries} == {"blocker"}
    assert f"::error file={place[0]},line={place[1]}," in (folder / "github_annotations.txt").read_text()
    for name in ("comment.md", "github_summary.md"):
        assert failure in (folder / name).read_text().replace("&#95;", "_")
        assert "Could not be run" in (folder / name).read_text()


def place_of(entry: dict[str, Any]) -> tuple[str, int]:
    physical = entry["locations"][0]["physicalLocation"]
    return physical["artifactLocation"]["uri"], physical["region"]["startLine"]


def test_a_model_that_does_not_load_is_told_at_its_line_beside_a_variant_that_passes(desk: Path) -> None:
    (desk / "empty").mkdir()
    (desk / "b.yaml").write_text(VARIANT.format(name="b").replace("./model", "./empty"))
    code, said = checked("a", "b")
    assert code == 2
    check_errors(desk / "runs/b", "has no config.json", ("b.yaml", 2), "model_unsupported")
    assert read_run(desk / "runs/a").verdict == "pass"
    assert not (desk / "runs/a" / FAILURE_FILE).exists()
    assert "::error file=b.yaml,line=2," in said
    assert (desk / "summary").read_text().count("Could not be run") == 1
    assert "May ship" in (desk / "summary").read_text()


def test_a_variant_that_cannot_be_made_is_told_at_the_line_of_the_variant(desk: Path) -> None:
    (desk / "empty").mkdir()
    text = VARIANT.format(name="b").replace("{compress: [{backend: round_to_nearest, bits: 8}]}", "{model: ./empty}")
    (desk / "b.yaml").write_text(text)
    assert checked("b")[0] == 2
    check_errors(desk / "runs/b", "has no config.json", ("b.yaml", 3), "model_unsupported")


def test_mistakes_of_one_file_are_told_for_every_variant_that_was_not_run(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked("a")[0] == 0
    (desk / "b.yaml").write_text(VARIANT.format(name="b").replace("bits: 8", "bits: eight"))
    (desk / "gate.yaml").write_text(GATE.replace("limit", "limitt"))
    assert _run(["check", "a.yaml", "b.yaml"]) == 2
    said = capsys.readouterr().out
    for name in ("a", "b"):
        check_errors(desk / "runs" / name, "did you mean limit?", ("gate.yaml", 1), "usage")
        assert "b.yaml" in (desk / "runs" / name / "junit.xml").read_text()
    assert said.count("::error file=b.yaml,line=3,") == 1, "said once, not for every variant"
    assert "Could not be run" in (desk / "summary").read_text()


def test_a_file_that_names_no_variant_is_told_where_the_check_runs(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "a.yaml").write_text("name: [\n")
    assert _run(["check", "a.yaml"]) == 2
    assert "::error file=a.yaml,line=" in capsys.readouterr().out
    assert not (desk / "runs").exists()


def test_while_it_runs_and_after_it_was_killed_no_output_is_silent(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked("a")[0] == 0

    def look(*_: object) -> None:
        check_errors(desk / "runs/a", "was started and did not end", ("a.yaml", 1), "resources")
        raise HarnessError("seen")

    monkeypatch.setattr(harness.run, "run_group", look)
    assert checked("a")[0] == 2
    check_errors(desk / "runs/a", "seen", ("a.yaml", 1), "usage")


def test_a_signal_is_told_for_the_variants_without_a_result(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "b.yaml").write_text(VARIANT.format(name="b").replace("./model", "model"))
    whole = harness.run.run_group

    def end(plans: Any, *more: Any) -> Any:
        if plans[0].name == "b":
            raise EndedBySignal(15)
        return whole(plans, *more)

    monkeypatch.setattr(harness.run, "run_group", end)
    monkeypatch.setattr(harness.check, "group_plans", lambda plans: [[plan] for plan in plans])
    with pytest.raises(EndedBySignal):
        checked("a", "b")
    check_errors(desk / "runs/b", "ended by SIGTERM", ("b.yaml", 1), "resources")
    left = read_failure(desk / "runs/b")
    assert left is not None
    assert left.exit_code == 143
    assert read_run(desk / "runs/a").verdict == "pass"
    assert "ended by SIGTERM" in (desk / "summary").read_text()


def test_outputs_of_a_failure_can_be_written_later(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "b.yaml").write_text(
        VARIANT.format(name="b").replace("./model", "./none").replace("outputs:", "# outputs:")
    )
    (desk / "none").mkdir()
    assert checked("b")[0] == 2
    assert not (desk / "runs/b/junit.xml").exists()
    assert _run(["report", "runs/b", "--as", "junit", "--as", "metrics_json"]) == 0
    assert "has no config.json" in (desk / "runs/b/junit.xml").read_text()
    assert not (desk / "runs/b/metrics.json").exists()
    assert _run(["report", "runs/b"]) == 2
    assert "there is no run, because" in capsys.readouterr().err
