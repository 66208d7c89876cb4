"""The number format that the guide shows, in a package of its own: listed, planned, run, judged and drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.outside_package import OutsidePackage, outside_package

GUIDE = Path(__file__).parents[2] / ".github" / "guides" / "number-format.md"
VARIANT = """
name: six
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, format: fp6_e3m2, group_size: 64}]}
target: cuda-9.0
suites: [./size.yaml]
gates: [./size_gate.yaml]
"""
SUITE = "measures: [memory, hardware]\n"
GATE = "rules: [{rule: at_most, metric: memory.bits_per_weight, limit: 10, why: 32 of the reference are too many}]\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    (block,) = re.findall(r"```python\n(# fp6_formats\.py\n.*?)```", GUIDE.read_text(), re.DOTALL)
    value = "fp6_formats:FP6_E3M2"
    made = outside_package(tmp_path_factory.mktemp("six"), "number_formats", "fp6_e3m2", value, fp6_formats=block)
    for name, text in (("v", VARIANT), ("size", SUITE), ("size_gate", GATE)):
        (made.work / f"{name}.yaml").write_text(text)
    return made


def test_it_is_listed_and_planned(package: OutsidePackage) -> None:
    listed = package.harness("list")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^fp6_e3m2 +6-bit floats with 3 bits of exponent", listed.stdout, re.MULTILINE)
    planned = package.harness("plan", "v.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "fp6_e3m2" in planned.stdout


def test_a_name_close_to_it_is_a_mistake_with_a_hint(package: OutsidePackage) -> None:
    (package.work / "wrong.yaml").write_text(VARIANT.replace("fp6_e3m2", "fp6_e3m3"))
    planned = package.harness("plan", "wrong.yaml")
    assert planned.returncode == 2
    assert "did you mean fp6_e3m2?" in " ".join((planned.stdout + planned.stderr).split())


def test_it_is_run_judged_described_and_drawn(package: OutsidePackage) -> None:
    checked = package.harness("check", "v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "no kernel for fp6_e3m2 weights on cuda-9.0 is known" in " ".join(checked.stdout.split())
    run = json.loads((package.work / "runs" / "six" / "run.json").read_text())
    formats = [module["format"] for module in run["variant"]["modules"] if module["backend"]]
    assert formats
    assert all((form["type"], form["bits"], form["element"]) == ("float", 6, "fp6_e3m2") for form in formats)
    assert all(module["distinct_values"] for module in run["variant"]["modules"] if module["backend"])
    (verdict,) = run["verdicts"]
    assert (verdict["rule"], verdict["status"]) == ("at_most", "pass")
    supported = next(m for m in run["measurements"] if m["name"] == "hardware.supported")
    assert supported["labels"] == {"target": "cuda-9.0", "without": "fp6_e3m2 in groups of 64"}
    assert "fp6_e3m2, group 64" in (package.work / "runs" / "six" / "report.html").read_text()
