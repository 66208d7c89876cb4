"""A rule in a package of its own: by its bound alone it is listed, planned, linted, judged and drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.outside_package import OutsidePackage, outside_package

RULE = '''\
from pydantic import Field

from harness.rules import Bound, Facts, Rule


class Between(Rule):
    """The number must lie between two limits."""

    low: float = Field(description="lower limit")
    high: float = Field(description="upper limit")

    def bound(self, metric: Facts) -> Bound:
        if self.low >= self.high:
            return Bound("two limits", misfit="no number lies between them; write the smaller one as low")
        return Bound(f"between {self.low:g} and {self.high:g}", "change", lower=self.low, upper=self.high)
'''
VARIANT = """\
name: outside
reference: {model: pocket, dtype: float32}
variant:
  compress:
    - {backend: round_to_nearest, bits: 8}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SUITE = """\
documents: {data: pocket-heldout, max: 12, context: 128, bos: true, packed: false}
measures: [perplexity, divergence]
"""
GATE = """\
rules:
  - {rule: between, metric: perplexity.ratio, low: 0.5, high: 1.5, why: neither broken nor too good to be true}
  - {rule: between, metric: perplexity.nll_delta, low: -0.9, high: -0.5, why: fails, level: warn}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    made = outside_package(tmp_path_factory.mktemp("rule"), "rules", "between", "two_limits:Between", two_limits=RULE)
    for name, text in (("variant.yaml", VARIANT), ("suite.yaml", SUITE), ("gate.yaml", GATE)):
        (made.work / name).write_text(text)
    return made


@pytest.fixture(scope="module")
def run(package: OutsidePackage) -> Path:
    done = package.harness("check", "variant.yaml", "--out", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    return package.work / "run" / "outside"


def test_it_is_listed(package: OutsidePackage) -> None:
    listed = package.harness("list")
    assert re.search(r"^between +The number must lie between two limits", listed.stdout, re.MULTILINE), listed.stderr


def test_it_is_planned_with_both_limits(package: OutsidePackage) -> None:
    planned = package.harness("plan", "variant.yaml")
    assert planned.returncode == 0, planned.stderr
    decided = "gate: between perplexity.ratio low 0.5, high 1.5  n = 12 documents; 80 % power needs n = 2;"
    assert decided in planned.stdout
    assert re.search(r"gate: between perplexity.nll_delta .* not even an unchanged variant passes", planned.stdout)


def test_it_is_linted(package: OutsidePackage) -> None:
    loose = GATE.replace("perplexity.ratio, low: 0.5, high: 1.5", "divergence.top1_agreement, low: -1, high: 2")
    (package.work / "loose.yaml").write_text(loose)
    linted = package.harness("lint", "loose.yaml", "--suite", "suite.yaml")
    assert "divergence.top1_agreement: every possible value passes" in linted.stdout, linted.stdout
    assert "perplexity.nll_delta: not even an unchanged variant passes" in linted.stdout


def test_what_does_not_fit_is_refused_by_line_before_anything_runs(package: OutsidePackage) -> None:
    (package.work / "wrong.yaml").write_text(GATE.replace("low: 0.5, high: 1.5", "low: 1.5, high: 0.5"))
    (package.work / "wrong_variant.yaml").write_text(VARIANT.replace("gate.yaml", "wrong.yaml"))
    planned = package.harness("plan", "wrong_variant.yaml")
    assert planned.returncode == 2
    assert "wrong.yaml:2" in planned.stderr
    assert "write the smaller one as low" in planned.stderr


def test_it_is_judged_by_both_limits(run: Path) -> None:
    first, second = json.loads((run / "run.json").read_text())["verdicts"]
    assert (first["rule"], first["status"], first["expected"]) == ("between", "pass", "between 0.5 and 1.5")
    assert (second["status"], second["level"]) == ("fail", "warn")
    assert second["because"].endswith("the whole interval is beyond the upper limit -0.5")


def test_it_is_drawn_with_both_limits(run: Path) -> None:
    described = re.findall(r"<desc>(measured [^<]*)</desc>", (run / "report.html").read_text())
    assert any(text.endswith("limit 0.5, passes above it; limit 1.5, passes below it") for text in described), described
