"""Probes in a package of their own, with the measures that read their tables: in the shared pass, and alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.outside_package import OutsidePackage, outside_package

PROBES = '''
"""Two probes: one takes part in the shared pass, one reads the texts of a suite by itself."""

import pandas as pd

from harness.lockstep.recording import Recorder
from harness.probes import Probe


class LogitGap(Probe):
    """The largest difference of the logits of every document."""

    runs = "shared_pass"
    scale: float = 1.0
    """Factor on the logits."""

    def begin(self, context):
        return Gaps(self.scale, context.variants)


class Gaps(Recorder):
    reads_logits = True

    def __init__(self, scale, variants):
        self.scale, self.largest = scale, [0.0] * variants

    def start(self, batch):
        self.batch, self.largest = batch, [0.0] * len(self.largest)

    def logits(self, variant, reference_NV, variant_NV, targets_N):
        gap = self.scale * float((reference_NV - variant_NV).abs().max())
        self.largest[variant] = max(self.largest[variant], gap)

    def rows(self, variant):
        rows = [(document.index, self.largest[variant]) for document in self.batch.documents]
        return {"logit_gap": pd.DataFrame(rows, columns=["document", "gap"])}


class TextLength(Probe):
    """The tokens that every text of a suite has on both sides."""

    runs = "alone"
    reads = "texts"

    def inputs(self):
        return "read nothing but texts"

    def observe(self, context):
        assert context.spec is not None and context.artifact is None and not context.documents
        for variant, sink in zip(context.variants, context.sinks, strict=True):
            for number, text in enumerate(context.texts):
                context.progress.step("text_length", number, len(context.texts))
                if not sink.done(f"text_length/{number}"):
                    counts = [len(side.tokenizer(text.text)["input_ids"]) for side in (context.reference, variant)]
                    row = pd.DataFrame([(number, *counts)], columns=["document", "reference", "variant"])
                    sink.commit(f"text_length/{number}", {"text_length": row})
'''
MEASURES = '''
"""A measure for each table."""

from harness.measures import Measure
from harness.records import Measurement, Metric


class Gap(Measure):
    """The largest difference of logits over all documents."""

    table = "logit_gap"
    scale: float = 1.0
    """Factor on the logits."""

    def probe_settings(self):
        return {"scale": self.scale}

    def produces(self):
        return (Metric(name="gap.max", unit="logits", better="lower"),)

    def measure(self, table):
        count, found = len(table), float(table["gap"].max())
        metric = {"name": "gap.max", "unit": "logits", "better": "lower"}
        return [Measurement(**metric, change=found, n=count, clusters=count, basis="sampled", method="maximum")]


class Length(Measure):
    """Tokens of the variant for every token of the reference."""

    table = "text_length"

    def produces(self):
        return (Metric(name="length.ratio", unit="ratio", better="lower", neutral=1.0),)

    def measure(self, table):
        one, two = (float(table[side].sum()) for side in ("reference", "variant"))
        metric = {"name": "length.ratio", "unit": "ratio", "better": "lower", "neutral": 1.0}
        count = len(table)
        return [Measurement(**metric, change=two / one, n=count, clusters=count,
                            basis="sampled", method="tokens of all texts")]
'''
BROKEN = "\n\nclass Unfinished(Probe):\n    'Never observes.'\n\n    runs = 'alone'\n    reads = 'nothing'\n"
VARIANT = """\
name: rounded
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 4, group_size: 128}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SUITE = """\
description: What two measures from outside say.
documents: {data: pocket-heldout, max: 4, context: 32}
measures: [{measure: gap, scale: 2.0}, length]
"""
GATE = """\
description: One rule that must fail and one that must pass.
rules:
  - {rule: at_most, metric: gap.max, limit: 1e-6, decide: point, why: four bits move every logit}
  - {rule: at_most, metric: length.ratio, limit: 1.5, decide: point, why: the tokenizer is the same}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    folder = tmp_path_factory.mktemp("outside")
    made = outside_package(folder, "probes", "logit_gap", "ours:LogitGap", ours=PROBES, judged=MEASURES)
    made.offer("probes", "text_length", "ours:TextLength")
    made.offer("measures", "gap", "judged:Gap")
    made.offer("measures", "length", "judged:Length")
    for name, text in (("variant", VARIANT), ("suite", SUITE), ("gate", GATE)):
        (made.work / f"{name}.yaml").write_text(text)
    return made


@pytest.fixture(scope="module")
def checked(package: OutsidePackage) -> dict[str, Any]:
    done = package.harness("check", "variant.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    run: dict[str, Any] = json.loads((package.work / "runs/rounded/run.json").read_text())
    return run


def test_they_are_listed(package: OutsidePackage) -> None:
    listed = package.harness("list")
    assert listed.returncode == 0, listed.stderr
    for name, summary in (("logit_gap", "The largest difference of the logits"), ("length", "Tokens of the variant")):
        assert re.search(rf"^{name} +{summary}", listed.stdout, re.MULTILINE)


def test_they_are_planned(package: OutsidePackage) -> None:
    planned = package.harness("plan", "variant.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "gap.max" in planned.stdout
    assert "length.ratio" in planned.stdout


def test_they_are_run_and_judged(checked: dict[str, Any]) -> None:
    found = {entry["name"]: entry for entry in checked["measurements"]}
    assert found["gap.max"]["change"] > 0.01
    assert found["gap.max"]["n"] == 4
    assert found["length.ratio"]["change"] == 1.0
    assert found["length.ratio"]["n"] == 4
    assert {entry["metric"]: entry["status"] for entry in checked["verdicts"]} == {
        "gap.max": "fail",
        "length.ratio": "pass",
    }
    probes = checked["asked"]["suites"][0]["probes"]
    assert [each for each in probes if each["probe"] != "comparability"] == [
        {"probe": "logit_gap", "scale": 2.0},
        {"probe": "text_length"},
    ]
    assert {"shared pass", "text_length"} <= checked["clock"]["seconds"].keys()


def test_they_are_drawn(package: OutsidePackage, checked: dict[str, Any]) -> None:
    page = (package.work / "runs/rounded/report.html").read_text()
    assert "gap.max" in page
    assert "length.ratio" in page


def test_a_probe_without_its_hook_is_refused_before_a_model_is_loaded(package: OutsidePackage, tmp_path: Path) -> None:
    made = outside_package(tmp_path, "probes", "text_length", "ours:Unfinished", ours=PROBES + BROKEN, judged=MEASURES)
    made.offer("measures", "length", "judged:Length")
    for name, text in (
        ("variant", VARIANT),
        ("suite", SUITE.replace("{measure: gap, scale: 2.0}, ", "")),
        ("gate", GATE),
    ):
        (made.work / f"{name}.yaml").write_text(text)
    done = made.harness("check", "variant.yaml")
    assert done.returncode == 2
    assert "probe 'text_length': ours.Unfinished lacks observe, which a probe must define" in done.stdout + done.stderr
