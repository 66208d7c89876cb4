"""Many variants of one file: checked in one pass, each with its folder, one page about all, one exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

SUITE = """description: a few documents
documents: {data: pocket-heldout, max: 24, context: 64}
measures: [divergence, memory]
"""
GATE = """description: most tokens must stay
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.3, why: more is another model}
"""
FILE = """name: m
reference: {model: pocket}
matrix: {bits: [2, 8]}
variant: {compress: [{backend: round_to_nearest, bits: $bits, granularity: group, group_size: 128}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_matrix_is_checked_in_one_pass_and_one_page_names_the_variant_to_take(tmp_path: Path) -> None:
    for name, content in (("suite.yaml", SUITE), ("gate.yaml", GATE), ("m.yaml", FILE)):
        (tmp_path / name).write_text(content)

    code, output = run(tmp_path, "check", "m.yaml")
    assert code == 1, output
    assert output.count("reference pocket") == 1
    asked = json.loads((tmp_path / "runs/m-bits8/run.json").read_text())["asked"]
    assert asked["choice"] == {"bits": "8"}
    page = (tmp_path / "runs/overview.html").read_text()
    assert "Take m-bits8" in page
    assert 'href="m-bits2/report.html"' in page

    # What the page says of a variant that is checked again must not outlive the check, even one that breaks off.
    (tmp_path / "one.yaml").write_text(FILE.replace("matrix: {bits: [2, 8]}\n", "").replace("$bits", "8"))
    (tmp_path / "one.yaml").write_text((tmp_path / "one.yaml").read_text().replace("name: m", "name: m-bits8"))
    assert run(tmp_path, "check", "one.yaml")[0] == 0
    assert not (tmp_path / "runs/overview.html").exists()

    code, output = run(tmp_path, "report", "runs/m-bits2", "runs/m-bits8", "--out", "page.html")
    assert (code, output) == (0, "wrote page.html\n")
    assert "Take m-bits8" in (tmp_path / "page.html").read_text()

    (tmp_path / "m.yaml").write_text(FILE.replace("$bits", "$bit"))
    code, output = run(tmp_path, "check", "m.yaml")
    assert code == 2
    assert "m.yaml:4: variant.compress[0].bits: found '$bit', expected an axis of the matrix: bits" in output


SELECTING = FILE.replace("bits: [2, 8]", "bits: [2, 4, 8]") + (
    "select: smallest_passing\noutputs: [report_html, junit, sarif, comment_md, gitlab_code_quality]\n"
)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    for name, content in (("suite.yaml", SUITE), ("gate.yaml", GATE), ("m.yaml", SELECTING)):
        (tmp_path / name).write_text(content)
    return tmp_path


def errors_in(folder: Path) -> int:
    """Failures and errors in the JUnit file, the SARIF file and the code quality report of a run."""
    suites = ElementTree.parse(folder / "junit.xml").getroot()  # noqa: S314 - written a moment ago
    results = json.loads((folder / "results.sarif").read_text())["runs"][0]["results"]
    entries = json.loads((folder / "gl-code-quality.json").read_text())
    found = [int(str(suite.get(key))) for suite in suites for key in ("failures", "errors")]
    return sum(found) + [*(each["level"] for each in results), *(each["severity"] for each in entries)].count("error")


def test_the_smallest_that_passes_decides_and_is_named_everywhere(desk: Path) -> None:
    code, output = run(desk, "check", "m.yaml")
    runs = {bits: json.loads((desk / f"runs/m-bits{bits}/run.json").read_text()) for bits in (2, 4, 8)}
    assert [runs[bits]["exit_code"] for bits in (2, 4, 8)] == [1, 0, 0]
    assert code == 0, output
    assert "m.yaml: 2 of 3 variants pass; selected m-bits4" in output
    assert {each["selected"] for each in runs.values()} == {"m-bits4"}
    assert "Take m-bits4" in (desk / "runs/overview.html").read_text()
    assert runs[2]["asked"]["select"] == "smallest_passing"
    for bits in runs:
        folder = desk / f"runs/m-bits{bits}"
        assert errors_in(folder) == 0
        for name in ("junit.xml", "results.sarif", "comment.md"):
            assert "m-bits4" in (folder / name).read_text() or bits == 4
            assert "selected" in (folder / name).read_text()
    assert "variant not selected, fail" in (desk / "runs/m-bits2/junit.xml").read_text()
    assert "blocker" not in (desk / "runs/m-bits2/gl-code-quality.json").read_text()


def test_where_none_passes_the_worst_counts(desk: Path) -> None:
    (desk / "gate.yaml").write_text(GATE.replace("0.3", "0.000000001"))
    code, output = run(desk, "check", "m.yaml")
    assert code == 1, output
    assert "0 of 3 variants pass" in output
    found = json.loads((desk / "runs/m-bits8/run.json").read_text())
    assert found["selected"] == ""
    assert errors_in(desk / "runs/m-bits8") > 0


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("smallest_passing", "smallest", "expected one of all, smallest_passing"),
        ("matrix: {bits: [2, 4, 8]}\n", "", "smallest_passing without a matrix"),
    ],
)
def test_what_cannot_be_selected_is_a_mistake(desk: Path, before: str, after: str, said: str) -> None:
    (desk / "m.yaml").write_text(SELECTING.replace(before, after).replace("$bits" if not after else "\0", "8"))
    code, output = run(desk, "check", "m.yaml")
    assert code == 2
    assert said in output
