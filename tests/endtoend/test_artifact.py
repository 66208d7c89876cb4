"""From a variant file to an exit code: what would be shipped is read back, and the gate ``ship`` stops what it is not.

Two silent corruptions are tried with the libraries themselves: 4-bit weights of bitsandbytes, which are spoilt when
they are saved after a forward pass on processors with AVX512-BF16, and ModelOpt's FP8 export, whose scales transformers
would drop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.bitsandbytes import Bitsandbytes
from harness.backends.round_to_nearest import RoundToNearest
from harness.check import check
from harness.terminal import Terminal
from tests.helpers.read_back import here

torch.set_num_threads(1)

SUITE = """\
description: a little of everything that the gate ship asks for
documents: {data: pocket-heldout, max: 12, context: 96}
measures: [logits, divergence, perplexity, calibration, layer_error, weight_error, coverage, artifact,
           {measure: generation, max: 4, prompt_tokens: 16, new_tokens: 12},
           {measure: tasks, tasks: [pocket_requests, pocket_sums], limit: 4}]
"""
INT8 = "{backend: round_to_nearest, bits: 8, group_size: 32}"


class SpoiltNf4(Bitsandbytes):
    """NF4 as the library makes and saves it, with its layout for AVX512-BF16."""

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        from bitsandbytes.nn import Linear4bit

        done = super().compress(model, tokenizer, calibration)
        for module in done.model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = True
        return done

    def save(self, model: Any, folder: Path) -> None:
        from transformers import BitsAndBytesConfig

        model.config.quantization_config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["lm_head"],
        )  # fmt: skip
        model.save_pretrained(folder)


class ExportedFp8(Backend):
    """FP8 by ModelOpt, exported as its guide says."""

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        import modelopt.torch.quantization as mtq

        ids = torch.arange(1, 33)[None]
        return Compressed(mtq.quantize(model, mtq.FP8_DEFAULT_CFG, lambda each: each(input_ids=ids)))

    def save(self, model: Any, folder: Path) -> None:
        from modelopt.torch.export import export_hf_checkpoint

        export_hf_checkpoint(model, export_dir=folder)


class DroppedScales(RoundToNearest):
    """Rounds, and saves one layer's codes as if they were its weight: a folder that loads without a word."""

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        model.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        name = "model.layers.0.mlp.down_proj.weight"
        scale = weights[name].abs().max() / 127
        save_file(weights | {name: weights[name] / scale}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of this file, as if an outside package offered them."""
    mine = {"spoilt_nf4": SpoiltNf4, "exported_fp8": ExportedFp8, "dropped_scales": DroppedScales}
    found = {name: SimpleNamespace(load=lambda cls=cls: cls) for name, cls in mine.items()}
    monkeypatch.setattr(plugins, "_entry_points", lambda family: found if family == "backends" else {})


def variant(folder: Path, name: str, steps: str, *, suite: str = "./suite.yaml") -> Path:
    (folder / "suite.yaml").write_text(SUITE)
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nreference: {{model: pocket}}\nvariant: {{compress: [{steps}]}}\n"
        f"suites: [{suite}]\ngates: [ship]\n"
    )
    return path


def run(folder: Path, *files: Path) -> int:
    return check(files, folder / "runs", Terminal())


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "runs" / name / "run.json").read_text())
    return content


def verdicts(content: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Status and reason of the rules on the artifact."""
    found = [verdict for verdict in content["verdicts"] if verdict["metric"].startswith("artifact.")]
    return {verdict["metric"].partition(".")[2]: (verdict["status"], verdict["because"]) for verdict in found}


def notes(content: dict[str, Any]) -> str:
    return "\n".join(note["text"] for note in content["notes"] if note["topic"] == "artifact")


@pytest.fixture(params=["here", pytest.param("fresh", marks=pytest.mark.slow)])
def process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where artifacts are read back: in this process, or (slow) in one that has to import everything first."""
    if request.param == "here":
        monkeypatch.setattr("harness.artifacts.reloading.read_back", here)


def test_a_good_variant_comes_back_from_a_fresh_process_bit_by_bit(tmp_path: Path) -> None:
    run(tmp_path, variant(tmp_path, "good", INT8))
    content = read(tmp_path, "good")
    assert {name: status for name, (status, _) in verdicts(content).items()} == {
        "kl_max": "pass", "texts_changed": "pass", "modules_changed": "pass", "live_kl_max": "pass"
    }  # fmt: skip
    found = [m for m in content["measurements"] if m["name"].startswith("artifact.kl")]
    assert {(m["name"], m["change"], m["high"]) for m in found} == {
        ("artifact.kl_mean", 0.0, 0.0), ("artifact.kl_max", 0.0, 0.0)
    }  # fmt: skip
    files = {file["name"]: file["bytes"] for file in content["artifact"]["files"]}
    folder = tmp_path / "runs/good/artifact"
    assert files == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert f"held as floats; on disk {files['model.safetensors']:,} bytes, not the" in notes(content)
    assert content["artifact"]["files"][0]["sha256"][:12] in (tmp_path / "runs/good/report.html").read_text()


@pytest.mark.usefixtures("process")
def test_codes_without_their_scale_are_stopped_by_nothing_else(tmp_path: Path) -> None:
    wrong = INT8.replace("round_to_nearest", "dropped_scales")
    assert run(tmp_path, variant(tmp_path, "bad", wrong)) == 1
    content = read(tmp_path, "bad")
    assert verdicts(content)["kl_max"][0] == "fail"
    others = [v for v in content["verdicts"] if v["level"] == "block" and not v["metric"].startswith("artifact.")]
    assert others
    assert all(verdict["status"] != "fail" for verdict in others)
    assert "model.layers.0.mlp.down_proj first" in notes(content)


@pytest.mark.usefixtures("process")
def test_4_bit_weights_that_are_spoilt_when_they_are_saved_are_stopped(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("the library lays weights out anew on processors with AVX512-BF16 only")
    assert run(tmp_path, variant(tmp_path, "nf4", "{backend: spoilt_nf4, method: nf4}")) == 1
    content = read(tmp_path, "nf4")
    found = verdicts(content)
    assert found["kl_max"][0] == "fail", found
    assert found["live_kl_max"][0] == "fail"
    assert "saving changed the model in memory" in notes(content)


@pytest.mark.usefixtures("process")
def test_an_export_whose_scales_transformers_would_drop_is_not_judged(tmp_path: Path) -> None:
    pytest.importorskip("modelopt")
    assert run(tmp_path, variant(tmp_path, "fp8", "{backend: exported_fp8}")) == 2
    content = read(tmp_path, "fp8")
    status, because = verdicts(content)["kl_max"]
    assert status == "error"
    assert "artifact/config.json: quantization_config.quant_method is 'modelopt'" in because
    assert "it would ignore the scales and load wrong weights" in because
    assert "which transformers does not know" in (tmp_path / "runs/fp8/report.html").read_text()
    assert content["measurements"], "what was measured before is kept"


@pytest.mark.slow
def test_rounding_of_activations_is_not_in_the_files_and_that_is_said(tmp_path: Path) -> None:
    steps = f"{INT8}, {{backend: activations, bits: 4}}"
    assert run(tmp_path, variant(tmp_path, "w8a4", steps)) == 1
    content = read(tmp_path, "w8a4")
    assert verdicts(content)["kl_max"][0] == "fail"
    assert "activation quantization is not in the artifact" in notes(content)


@pytest.mark.slow
def test_a_simulated_cache_is_not_in_the_files(tmp_path: Path) -> None:
    assert run(tmp_path, variant(tmp_path, "kv2", "{backend: kv_cache, bits: 2}")) == 1
    assert "KV cache quantization is not in the artifact" in notes(read(tmp_path, "kv2"))


@pytest.mark.slow
def test_the_starter_passes_with_what_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.commands.starter import write_starter

    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path / "variant.yaml")
    run(tmp_path, tmp_path / "variant.yaml")
    content = read(tmp_path, "pocket-w4-g128")
    assert {status for status, _ in verdicts(content).values()} == {"pass"}
