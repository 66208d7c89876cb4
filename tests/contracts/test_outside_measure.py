"""A measure from outside is one file: listed, planned by its own spread, linted, run, judged and drawn by its title."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.outside_package import ROOT, OutsidePackage, outside_package

SOURCE = '''
"""One measure of an outside package."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.measures import Measure
from harness.records import Measurement, Metric, Skipped
from harness.statistics import mean, mean_interval

LOST = Metric(
    name="surprise.lost_nats",
    title="surprise at the held-out text",
    unit="nats/token",
    better="lower",
    description="mean NLL of the variant beyond that of the reference",
    spread="mean",
    spread_size=0.0625,
    chance="ln_v_over_perplexity",
    summary="quality",
)


class Surprise(Measure):
    """How much more the variant is surprised, by a package from outside."""

    table: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[Metric, ...]] = (LOST, LOST.model_copy(update={"name": "surprise.missing", "title": ""}))
    columns: ClassVar[tuple[str, ...] | None] = ("document", "reference_nll", "variant_nll")
    by_document: ClassVar[bool] = True

    def measure(self, table):
        """The paired mean; the other metric is Skipped under the name of the measure."""
        change = (table["variant_nll"] - table["reference_nll"]).to_numpy(np.float64)
        around = mean_interval(change, table["document"].to_numpy())
        lost = Measurement(
            name=LOST.name, unit=LOST.unit, better=LOST.better, basis="sampled", change=mean(change),
            low=around.low, high=around.high, n=len(table), clusters=table["document"].nunique(), method="cluster t",
        )
        return [lost, Skipped(measure="surprise", reason="never measured")]
'''
SUITE = "documents: {data: pocket-heldout, max: 8, context: 64}\nmeasures: [surprise]\n"
GATE = """\
rules:
  - {rule: not_worse, metric: surprise.lost_nats, margin: 0.5, why: w}
  - {rule: not_worse, metric: surprise.lost_nats, margin: 1.0e-3, level: warn, why: w}
  - {rule: at_most, metric: surprise.lost_nats, limit: 9.0, level: warn, why: w}
"""
VARIANT = """\
name: outside
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 8}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    folder = tmp_path_factory.mktemp("outside")
    made = outside_package(folder, "measures", "surprise", "surprising:Surprise", surprising=SOURCE)
    for name, text in (("suite", SUITE), ("gate", GATE), ("variant", VARIANT)):
        (made.work / f"{name}.yaml").write_text(text)
    return made


@pytest.fixture(scope="module")
def run_folder(package: OutsidePackage) -> Path:
    done = package.harness("check", "variant.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return package.work / "runs" / "outside"


def test_it_is_listed(package: OutsidePackage) -> None:
    assert "by a package from outside" in package.harness("list").stdout


def test_it_is_planned_with_the_spread_that_it_declares(package: OutsidePackage) -> None:
    done = package.harness("plan", "variant.yaml")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "surprise.lost_nats margin" in line]
    assert all("between-document SD 0.0625, assumed" in line for line in lines)
    assert [line.split()[0] for line in lines] == ["powered", "underpowered"]


def test_it_is_linted_with_the_chance_level_that_it_declares(package: OutsidePackage) -> None:
    done = package.harness("lint", "./gate.yaml", "--variant", "variant.yaml")
    assert "surprise.lost_nats: the limit is looser than chance" in done.stdout
    assert "a uniform distribution over all 1536 tokens" in done.stdout


def test_it_is_run_and_judged(run_folder: Path) -> None:
    content = json.loads((run_folder / "run.json").read_text())
    names = [m["name"] for m in content["measurements"] if not m["name"].startswith("comparability.")]
    assert names == ["surprise.lost_nats"]
    assert content["verdicts"][0]["status"] == "pass"
    own = {"unsupported": False, "cut_short": False, "failure": None}
    lost = {"labels": {}, "measure": "surprise.missing", "reason": "never measured"} | own
    assert content["skipped"] == [lost]


def test_it_is_drawn_under_its_title_also_without_its_package(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert "<h3>Surprise at the held-out text</h3>" in page
    assert "mean NLL of the variant beyond that of the reference" in page, "quality is shown at a glance"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness", "report", str(run_folder)]
    done = subprocess.run(command, env=environment, cwd=run_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (run_folder / "report.html").read_text() == page
