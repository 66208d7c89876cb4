"""The plugins that the guides show, installed as an outside package: listed, planned, run, judged and written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.outside_package import OutsidePackage, outside_package

GUIDES = Path(__file__).parents[2] / ".github" / "guides"
FAMILIES = {"measure": "measures", "probe": "probes", "rule": "rules", "writer": "writers"}
READER = '''
from harness.measures import Measure
from harness.records import Measurement, Metric


class Tied(Measure):
    """Reads the table of the probe that the guide shows."""

    table = "tied_head"

    def produces(self):
        return (Metric(name="tied.sides", unit="sides", better="neither"),)

    def measure(self, table):
        found = {"name": "tied.sides", "unit": "sides", "better": "neither", "variant": float(table["tied"].sum())}
        return [Measurement(**found, basis="counted", n=2, clusters=2, method="both sides")]
'''
VARIANT = """
name: guided
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 4}]}
suites: [./few.yaml]
gates: [./both.yaml]
"""
SUITE = "documents: {data: pocket-heldout, max: 8, context: 64}\nmeasures: [confidence_drop, tied]\n"
GATE = "rules: [{rule: between, metric: confidence_drop.mean, low: -0.5, high: 0.5, why: any number}]\n"


def example(guide: str) -> tuple[str, str, str]:
    """Name, class and source of the plugin that a guide shows."""
    (block,) = re.findall(r"```python\n(# \w+\.py\n.*?)```", (GUIDES / f"{guide}.md").read_text(), re.DOTALL)
    (name,), (plugin,) = re.findall(r"^# (\w+)\.py", block), re.findall(r"^class (\w+)", block, re.MULTILINE)
    return name, plugin, block


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    shown = {guide: example(guide) for guide in FAMILIES}
    modules = {name: source for name, _, source in shown.values()} | {"tied": READER}
    made = outside_package(tmp_path_factory.mktemp("guides"), "measures", "tied", "tied:Tied", **modules)
    for guide, (name, plugin, _) in shown.items():
        made.offer(FAMILIES[guide], name, f"{name}:{plugin}")
    for name, text in (("v", VARIANT), ("few", SUITE), ("both", GATE)):
        (made.work / f"{name}.yaml").write_text(text)
    return made


def test_they_are_listed_with_their_docstrings(package: OutsidePackage) -> None:
    listed = package.harness("list")
    assert listed.returncode == 0, listed.stderr
    for guide in FAMILIES:
        name, _, source = example(guide)
        (summary,) = re.findall(r'^class .*?"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
        assert re.search(rf"^{name} +{re.escape(summary)}", listed.stdout, re.MULTILINE), name


def test_they_are_planned_run_and_judged(package: OutsidePackage) -> None:
    planned = package.harness("plan", "v.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "confidence_drop.mean" in planned.stdout
    checked = package.harness("check", "v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    run = json.loads((package.work / "runs" / "guided" / "run.json").read_text())
    drop, tied = (
        next(m for m in run["measurements"] if m["name"] == n) for n in ("confidence_drop.mean", "tied.sides")
    )
    assert drop["low"] < drop["change"] < drop["high"]
    assert drop["clusters"] == 8
    assert tied["variant"] in (0.0, 2.0)
    (verdict,) = run["verdicts"]
    assert (verdict["rule"], verdict["status"]) == ("between", "pass")


def test_the_writer_writes_a_run_that_was_read_back(package: OutsidePackage) -> None:
    written = package.harness("report", "runs/guided", "--as", "summary_md")
    assert written.returncode == 0, written.stderr
    assert (package.work / "runs" / "guided" / "summary.md").read_text().startswith("# guided: pass")
