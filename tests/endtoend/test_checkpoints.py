"""The whole flow on checkpoints that somebody else made: GGUF files and adapters of the embedded model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.check import check
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.records import ModelSpec
from harness.terminal import Terminal
from tests.endtoend.test_check import read, run
from tests.helpers.gguf_files import bpe_tokens, write_gguf
from tests.helpers.llama_cpp_stand_in import install
from tests.helpers.peft_adapters import save_lora

pytest.importorskip("gguf")

SUITE = """\
description: a few documents
documents: {data: pocket-heldout, max: 12, context: 128}
measures: [divergence, perplexity, layer_error, memory]
"""
GATE = """\
description: any
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.5, why: any divergence is shown}
"""


@pytest.fixture(scope="module")
def pocket() -> LoadedModel:
    return load(ModelSpec(model="pocket"), "pocket")


@pytest.fixture(scope="module")
def folder(pocket: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both variants, checked by one command."""
    folder = tmp_path_factory.mktemp("checked")
    model: Any = pocket.model
    write_gguf(model, folder / "pocket-q4.gguf", "Q4_0", tokens=bpe_tokens(pocket.tokenizer))
    save_lora(copy.deepcopy(model), folder / "lora", std=0.01)
    files = [
        write(folder, "gguf", "{model: pocket-q4.gguf}"),
        write(folder, "lora", "{adapter: lora, compress: [{backend: round_to_nearest, bits: 8}]}"),
    ]
    code, output = run(folder, "check", *files)
    assert code == 0, output
    return folder


def write(folder: Path, name: str, variant: str, suite: str = SUITE) -> Path:
    (folder / "suite.yaml").write_text(suite)
    (folder / "gate.yaml").write_text(GATE)
    path = folder / f"{name}.yaml"
    models = f"reference: {{model: pocket}}\nvariant: {variant}"
    path.write_text(f"name: {name}\n{models}\nsuites: [./suite.yaml]\ngates: [./gate.yaml]\n")
    return path


def by_name(content: Mapping[str, Any]) -> dict[str, Any]:
    return {measurement["name"]: measurement for measurement in content["measurements"]}


def test_a_gguf_file_is_judged_and_labelled(folder: Path) -> None:
    content, report = read(folder, "gguf"), (folder / "runs/gguf/report.html").read_text()
    found = by_name(content)
    assert found["divergence.kl_mean"]["change"] > 1e-4
    assert found["memory.bits_per_weight"]["variant"] < 5
    assert "layers.worst" in found
    assert "runs on dequantized weights" in report
    assert "Q4_0, group 32, simulated" in report
    assert "gguf" in content["environment"]["packages"]


def test_an_adapter_is_judged_with_every_layer(folder: Path) -> None:
    content, report = read(folder, "lora"), (folder / "runs/lora/report.html").read_text()
    names = {m["labels"]["module"] for m in content["measurements"] if m["name"] == "layers.relative_error"}
    assert {"model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"} <= names
    assert not any("lora" in name for name in names)
    assert content["variant"]["source"] == f"pocket + {folder / 'lora'}"
    assert "LORA adapter lora (r 4, alpha 8" in report
    assert "peft" in content["environment"]["packages"]


EVERYTHING = """\
description: every probe
documents: {data: pocket-heldout, max: 8, context: 96}
measures:
  - logits
  - divergence
  - perplexity
  - calibration
  - layer_error
  - outliers
  - memory
  - {measure: generation, max: 4, prompt_tokens: 12, new_tokens: 6}
  - {measure: tasks, tasks: [pocket_facts, pocket_sums, pocket_prose], limit: 4}
  - {measure: latency, repeats: 1, prompt_tokens: 16, new_tokens: 2}
"""


def test_llama_cpp_goes_through_every_probe_and_what_needs_modules_is_skipped_with_the_reason(
    pocket: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the library: the same numbers as the file dequantized, from the same weights."""
    install(monkeypatch)
    model: Any = pocket.model
    write_gguf(model, tmp_path / "pocket.gguf", "Q8_0", tokens=bpe_tokens(pocket.tokenizer))
    monkeypatch.chdir(tmp_path)
    names = {"engine": "{model: pocket.gguf, engine: llama_cpp}", "floats": "{model: pocket.gguf}"}
    files = [write(tmp_path, name, variant, EVERYTHING) for name, variant in names.items()]
    assert check(files, tmp_path / "runs", Terminal()) == 0
    engine, floats = (json.loads((tmp_path / "runs" / name / "run.json").read_text()) for name in names)
    ours, theirs = by_name(engine), by_name(floats)
    for name in ("divergence.kl_mean", "perplexity.ratio", "memory.weight_bytes"):
        assert ours[name]["change"] == pytest.approx(theirs[name]["change"], rel=1e-3)
    assert ours["divergence.kl_mean"]["change"] > 0
    written = [name for name in ours if name.startswith(("tasks.", "generation."))]
    assert len(written) > 8
    for name in written:
        for field in ("variant", "change"):
            found, wanted = ours[name][field], theirs[name][field]
            assert found == wanted or found == pytest.approx(wanted, rel=1e-3, abs=1e-6), name
    timed = [m for m in engine["measurements"] if m["name"] == "latency.ratio"]
    assert {m["labels"]["phase"] for m in timed} >= {"prefill", "decode"}
    assert not any(m["not_judged"] for m in timed)
    skipped = {each["measure"]: each["reason"] for each in engine["skipped"]}
    closed = "the engine llama_cpp gives no access to the inputs and outputs of its modules"
    assert skipped["layers.worst"] == skipped["outliers.channels"] == closed
    assert "the size of the key-value cache is not known (variant)" in skipped["memory.kv_bytes_per_token"]
    assert any("with its own kernels" in note["text"] for note in engine["notes"])
