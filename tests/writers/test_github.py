"""What GitHub shows of a run: annotations on standard output, and the summary of the step, each within its limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import WriteError
from harness.report.digest import digest
from harness.write import add_suited, announce
from harness.writers.github_annotations import GithubAnnotations, encode_annotations
from harness.writers.github_summary import MOST_BYTES, GithubSummary, encode_summary
from harness.writers.report_html import ReportHtml
from tests.helpers.made_run import Made

ACTIONS = {"GITHUB_ACTIONS": "true"}


def test_both_are_on_by_themselves_in_a_github_job_and_nowhere_else() -> None:
    asked = (ReportHtml(),)
    job = ACTIONS | {"GITHUB_STEP_SUMMARY": "summary"}
    assert [each.kind for each in add_suited(asked, job)] == ["report_html", "github_annotations", "github_summary"]
    assert add_suited(asked, {}) == asked
    assert add_suited((*asked, GithubSummary()), {"GITHUB_STEP_SUMMARY": "s"}) == (*asked, GithubSummary())


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "error"])
def test_errors_are_the_blocking_rules_that_do_not_pass(made: dict[str, Made], verdict: str) -> None:
    run = made[verdict].run
    text = encode_annotations(digest(run, Path("runs/x")))
    stopping = [each for each in run.verdicts if each.level == "block" and each.status != "pass"]
    assert text.count("::error ") == len(stopping)
    assert (text.count("::error ") == 0) == (verdict == "pass")


def test_of_many_annotations_the_last_says_how_many_are_left_out(made: dict[str, Made]) -> None:
    run = made["fail"].run
    broken = next(each for each in run.verdicts if each.status == "fail" and each.level == "block")
    text = encode_annotations(digest(run.model_copy(update={"verdicts": (broken,) * 25}), Path("runs/x")))
    lines = text.splitlines()
    assert len(lines) == 10
    assert "16 more rules do not pass; all of them: runs/x/report.html" in lines[-1].replace("%2F", "/")


def test_annotations_are_printed_in_a_job_only(made: dict[str, Made]) -> None:
    run, folder = made["fail"].run, Path("runs/x")
    assert announce(run, folder, [GithubAnnotations()], ACTIONS) == (encode_annotations(digest(run, folder)), "")
    assert announce(run, folder, [GithubAnnotations()], {}) == ("", "")


def test_the_summary_is_appended_as_far_as_there_is_room(made: dict[str, Made], tmp_path: Path) -> None:
    run, target = made["fail"].run, tmp_path / "summary"
    job = {"GITHUB_STEP_SUMMARY": str(target)}
    target.write_text("before\n")
    assert announce(run, tmp_path, [GithubSummary()], job) == ("", "")
    text = target.read_text()
    assert text.startswith("before\n\n### ✕ Must not ship")
    assert "measurements</summary>" in text
    whole = len(encode_summary(digest(run, tmp_path)).encode())
    target.write_bytes(b"x" * (MOST_BYTES - whole // 2))
    announce(run, tmp_path, [GithubSummary()], job)
    assert target.stat().st_size <= MOST_BYTES
    assert "Must not ship" in target.read_text()
    target.write_bytes(b"x" * MOST_BYTES)
    announce(run, tmp_path, [GithubSummary()], job)
    assert target.stat().st_size == MOST_BYTES


@pytest.mark.parametrize("most", [1_500, 3_000, 5_000, 20_000])
def test_sections_are_dropped_whole_and_named(made: dict[str, Made], most: int) -> None:
    run = made["fail"].run
    text = encode_summary(digest(run, Path("runs/x")), most)
    assert len(text.encode()) <= most
    assert "Must not ship" in text
    assert text.count("<details>") == text.count("</details>")
    left_out = re.search(r"Left out for length: (.*)\. All of it", text)
    more = re.search(r"… and (\d+) more", text)
    assert left_out or more or most == 20_000
    if most == 1_500:
        assert left_out
        assert "measurements" in left_out[1]


def test_a_summary_that_cannot_be_appended_is_told_and_changes_nothing(made: dict[str, Made], tmp_path: Path) -> None:
    run, job = made["pass"].run, {"GITHUB_STEP_SUMMARY": str(tmp_path)}
    with pytest.raises(WriteError, match="could not be appended"):
        GithubSummary().announce(run, tmp_path, job)
    lines, failure = announce(run, tmp_path, [GithubSummary(), GithubAnnotations()], job | ACTIONS)
    assert lines == encode_annotations(digest(run, tmp_path))
    assert "github_summary: " in failure
