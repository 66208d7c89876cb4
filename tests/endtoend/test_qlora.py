"""QLoRA as a user makes it: base and adapter are trained, judged, shipped and read back; what it costs is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from harness.pocket.tasks import task_items
from tests.endtoend.test_check import read, run

pytest.importorskip("peft")

SUITE = """\
documents: {data: pocket-heldout, max: 4, context: 48}
measures: [divergence, perplexity, memory, artifact, coverage]
"""
GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: anything passes}
  - {rule: at_most, metric: artifact.kl_max, limit: 0.0, decide: point, why: base and adapter are read back}
  - {rule: at_most, metric: coverage.missing, limit: 0.0, decide: point, why: nothing is left out}
"""


def write(folder: Path, name: str, settings: str = "") -> Path:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE)
    rows = ({"prompt": item["prompt"], "text": item["target"]} for item in task_items("pocket_sums4", 16, seed=9))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\n"
        "reference: {model: pocket}\n"
        "variant:\n"
        f"  compress: [{{backend: qlora, r: 4, batch: 4, learning_rate: 0.01, evaluations: 1{settings}}}]\n"
        "training: {data: ./sums.jsonl, prompt_field: prompt, documents: 12, held_out: 4, tokens: 32, steps: 2}\n"
        "suites: [./suite.yaml]\n"
        "gates: [./gate.yaml]\n"
    )
    return path


def test_base_and_adapter_are_shipped_and_read_back(tmp_path: Path) -> None:
    code, said = run(tmp_path, "check", write(tmp_path, "beside"))
    assert code == 0, said
    record, folder = read(tmp_path, "beside"), tmp_path / "runs" / "beside"
    adapter = load_file(folder / "artifact" / "adapter" / "adapter_model.safetensors")
    beside = [module for module in record["variant"]["modules"] if module["type"].endswith("(adapter)")]
    assert sum(module["stored_bytes"] for module in beside) == sum(each.nbytes for each in adapter.values())
    nf4 = [module for module in record["variant"]["modules"] if module["backend"] == "qlora"]
    assert {module["format"]["element"] for module in nf4} == {"nf4"}
    assert {module["format"]["scales"] for module in nf4} == {"double"}
    names = {each["name"]: each for each in record["measurements"]}
    stored = sum(module["stored_bytes"] for module in record["variant"]["modules"])
    assert names["memory.weight_bytes"]["variant"] == stored
    assert "training.held_out_loss" in names
    assert any("LoRA of rank 4 on 28 of 28 rounded modules" in note["text"] for note in record["notes"])
    # The same again: nothing is trained anew, and the adapter is the same.
    before = (folder / "training" / "adapter" / "adapter_model.safetensors").read_bytes()
    (done,) = (folder / "training").glob("*.done.safetensors")
    made = done.stat().st_mtime_ns
    code, said = run(tmp_path, "check", write(tmp_path, "beside"))
    assert code == 0, said
    assert done.stat().st_mtime_ns == made
    assert (folder / "training" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert read(tmp_path, "beside")["variant"]["weights_sha256"] == record["variant"]["weights_sha256"]


def test_merged_there_are_floats_and_it_says_so(tmp_path: Path) -> None:
    code, said = run(tmp_path, "check", write(tmp_path, "merged", ", merge: true"))
    assert code == 0, said
    record = read(tmp_path, "merged")
    assert {module["format"]["type"] for module in record["variant"]["modules"]} == {"float"}
    assert {module["backend"] for module in record["variant"]["modules"]} == {""}
    saved = load_file(tmp_path / "runs" / "merged" / "artifact" / "model.safetensors")
    assert {str(each.dtype) for each in saved.values()} == {"torch.float32"}
    assert not (tmp_path / "runs" / "merged" / "artifact" / "adapter").exists()
    assert any("which are float32 now and no longer NF4" in note["text"] for note in record["notes"])
