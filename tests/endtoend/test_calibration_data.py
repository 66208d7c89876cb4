"""Calibration documents from YAML to run.json and the report, on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

GATE = """\
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.6, why: ranges of two documents cut off much}
  - {rule: at_most, metric: calibration_data.overlap, limit: 0.9, why: the documents must not be those it was fitted to}
"""
SUITE = """\
documents: {data: pocket-heldout, max: 8, context: 96}
measures: [perplexity, calibration_data]
"""
VARIANT = """\
name: fitted
reference: {model: pocket}
variant:
  compress:
    - {backend: round_to_nearest, bits: 8}
    - {backend: activations, bits: 8, granularity: tensor, dynamic: false}
calibration: {data: fit.jsonl, documents: 3, tokens: 64}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def test_what_a_variant_was_fitted_to_is_recorded_and_compared(tmp_path: Path) -> None:
    from harness.data.documents import read_documents

    texts = [document.text for document in read_documents("pocket-heldout", 1)]
    texts.append("Nothing of this kind is told in the stories of the little world, and nobody there would tell it so.")
    (tmp_path / "fit.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, text in (("gate", GATE), ("suite", SUITE), ("variant", VARIANT)):
        (tmp_path / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-m", "harness", "check", "variant.yaml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "runs/fitted/run.json").read_text())
    data = content["variant"]["calibration"]
    assert (data["documents"], len(data["sha256"])) == (2, 64)
    assert content["reference"]["calibration"] is None
    found = {each["name"]: each for each in content["measurements"] if not each["labels"]}
    assert found["calibration_data.overlap"]["change"] == 1 / 8
    assert 0 < found["calibration_data.token_divergence"]["change"] < 0.7
    worst = next(each for each in content["measurements"] if each["name"] == "calibration_data.outside_range_worst")
    assert 0 < worst["change"] < 0.5
    notes = [note["text"] for note in content["notes"] if note["topic"] == "calibration"]
    assert any("3 documents were requested, 2 are available" in note for note in notes)
    assert any(note.startswith("1 of 8 documents of suite suite share 13 tokens in a row") for note in notes)
    linear = [module for module in content["variant"]["modules"] if module["backend"]]
    assert len(linear) == 28
    assert all(8 < module["distinct_values"] <= 32 for module in linear)
    assert all(
        [module["activations"][key] for key in ("bits", "granularity", "dynamic")] == [8, "tensor", False]
        for module in linear
    )
    report = (tmp_path / "runs/fitted/report.html").read_text()
    assert "Deployment checklist" in report
    assert data["sha256"][:12] in report
