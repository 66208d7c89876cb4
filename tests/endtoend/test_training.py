"""A variant that is made by training, as a user makes it: judged, killed, continued, and not trained twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.data.documents import read_documents
from tests.endtoend.test_check import read, run, without_clock

SUITE = """\
documents: {data: pocket-heldout, max: 8, context: 64}
measures: [divergence, memory]
"""
GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: anything passes}
"""
STRICT = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: anything passes}
  - {rule: at_most, metric: training.overlap, limit: 0.0, decide: point, why: nobody is judged on what they learned}
"""


SAVES_OFTEN = """\
from functools import partial
from harness import cli
from harness.running import training
training.Training = partial(training.Training, save_seconds=0)
cli.main()
"""


def write(folder: Path, steps: int, gate: str = GATE, data: str = "pocket-train") -> Path:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(gate)
    path = folder / "trained.yaml"
    path.write_text(
        "name: trained\n"
        "reference: {model: pocket}\n"
        "variant: {compress: [{backend: qat, bits: 2, batch: 4, learning_rate: 0.001, evaluations: 2}]}\n"
        f"training: {{data: {data}, documents: 12, held_out: 4, tokens: 32, steps: {steps}}}\n"
        "suites: [./suite.yaml]\n"
        "gates: [./gate.yaml]\n"
    )
    return path


def test_it_is_judged_shown_and_trained_once(tmp_path: Path) -> None:
    code, said = run(tmp_path, "check", write(tmp_path, 2))
    assert code == 0, said
    record = read(tmp_path, "trained")
    assert record["variant"]["training"]["documents"] == 12
    names = {each["name"] for each in record["measurements"]}
    assert {"training.overlap", "training.held_out_loss", "training.held_out_kl", "training.memory"} <= names
    report = (tmp_path / "runs" / "trained" / "report.html").read_text()
    assert '<section id="training"' in report
    assert "qat: loss by step" in report
    assert "optimizer states" in report
    (file,) = (tmp_path / "runs" / "trained" / "training").iterdir()
    made = file.stat().st_mtime_ns
    # Another gate: nothing is trained anew. And texts of the suite among those of the training are named, and block.
    code, said = run(tmp_path, "check", write(tmp_path, 2, STRICT))
    assert file.stat().st_mtime_ns == made
    before = record["variant"]["weights_sha256"]
    assert read(tmp_path, "trained")["variant"]["weights_sha256"] == before
    lines = (json.dumps({"id": each.id, "text": each.text}) for each in read_documents("pocket-heldout", 16))
    (tmp_path / "seen.jsonl").write_text("\n".join(lines))
    code, said = run(tmp_path, "check", write(tmp_path, 2, STRICT, data="./seen.jsonl"))
    assert code == 1, said
    assert "8 of 8 documents of suite suite share 13 tokens in a row with the training texts" in said
    (other,) = (tmp_path / "runs" / "trained" / "training").iterdir()
    assert other != file


@pytest.mark.slow
def test_a_check_killed_while_it_trains_continues_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    code, said = run(tmp_path / "whole", "check", write(tmp_path / "whole", 60))
    assert code == 0, said
    path, states = write(tmp_path, 60), tmp_path / "runs" / "trained" / "training"
    process = subprocess.Popen([sys.executable, "-c", SAVES_OFTEN, "check", str(path)], cwd=tmp_path)
    while not list(states.glob("*.state.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(states.glob("*.done.safetensors"))
    code, said = run(tmp_path, "check", path)
    assert code == 0, said
    records = [without_clock(folder, "trained").replace(str(folder), "") for folder in (tmp_path / "whole", tmp_path)]
    assert records[0] == records[1]
