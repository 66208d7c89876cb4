"""Variants with other layers or other ids than their reference: what cannot be compared is never a pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import pocket
from tests.endtoend.test_check import read, run

SUITE = """\
description: a few documents
documents: {data: pocket-heldout, max: 8, context: 128}
measures: [logits, divergence, perplexity, layer_error, weight_error]
"""
KL = "  - {rule: at_most, metric: divergence.kl_mean, limit: 0.01, decide: point, why: as good as equal}\n"
LAYERS = "  - {rule: at_most, metric: layers.worst, limit: 1000.0, decide: point, why: anything that was compared}\n"
WEIGHTS = "  - {rule: at_most, metric: weights.worst, limit: 1000.0, decide: point, why: anything that was compared}\n"
MODEL = Path(pocket.__file__).parent / "model"
Tensors = dict[str, torch.Tensor]


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def prepare(folder: Path, change: Callable[[Tensors], Tensors], rules: str, entry: str = "", **config: Any) -> None:
    """A variant file of a changed copy of the embedded model, with ``entry`` as further keys of its entry."""
    shutil.copytree(MODEL, folder / "changed", ignore=shutil.ignore_patterns("manifest.json"))
    held = load_file(folder / "changed/model.safetensors")
    save_file(change(held), folder / "changed/model.safetensors", metadata={"format": "pt"})
    edit_config(folder / "changed", **config)
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(f"description: limits\nrules:\n{rules}")
    (folder / "changed.yaml").write_text(
        f"name: changed\nreference: {{model: pocket}}\nvariant: {{model: ./changed{entry}}}\n"
        "suites: [./suite.yaml]\ngates: [./gate.yaml]\n"
    )


def check(
    folder: Path, change: Callable[[Tensors], Tensors], rules: str, entry: str = "", **config: Any
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and run.json of ``prepare``."""
    prepare(folder, change, rules, entry, **config)
    code, output = run(folder, "check", folder / "changed.yaml")
    assert (folder / "runs/changed/run.json").exists(), output
    return code, output, read(folder, "changed")


def renumber(held: Tensors, origin: list[int]) -> Tensors:
    """The model whose layer i is the layer ``origin[i]`` of the given one."""
    made = {name: tensor for name, tensor in held.items() if not name.startswith("model.layers.")}
    for place, layer in enumerate(origin):
        prefix = f"model.layers.{layer}."
        inside = {name: tensor for name, tensor in held.items() if name.startswith(prefix)}
        made |= {f"model.layers.{place}.{name.removeprefix(prefix)}": tensor.clone() for name, tensor in inside.items()}
    return made


@pytest.mark.parametrize("origin", [[0, 2, 3], [0, 1, 1, 2, 3]], ids=["pruned", "deeper"])
def test_another_number_of_layers_judges_no_layer(tmp_path: Path, origin: list[int]) -> None:
    code, output, found = check(
        tmp_path, lambda held: renumber(held, origin), LAYERS + WEIGHTS, num_hidden_layers=len(origin)
    )
    assert code == 2, output
    assert f"the variant has {len(origin)} decoder layers, the reference 4" in output
    assert "layers: in the entry variant" in output
    assert {verdict["metric"]: verdict["status"] for verdict in found["verdicts"]} == {
        "layers.worst": "error", "weights.worst": "error",
    }  # fmt: skip
    assert not [m for m in found["measurements"] if m["name"].startswith("layers.")]


@pytest.mark.parametrize(
    ("origin", "declared", "same"),
    [([0, 2, 3], "[0, 2, 3]", "model.layers.0"), ([0, 1, 1, 2, 3], "[0, 1, null, 2, 3]", "model.layers.1")],
    ids=["pruned", "deeper"],
)
def test_a_declared_map_pairs_the_layers(tmp_path: Path, origin: list[int], declared: str, same: str) -> None:
    code, output, found = check(
        tmp_path, lambda held: renumber(held, origin), LAYERS + WEIGHTS, f", layers: {declared}",
        num_hidden_layers=len(origin),
    )  # fmt: skip
    assert code == 0, output
    errors = {m["labels"]["module"]: m["change"] for m in found["measurements"] if m["name"] == "layers.relative_error"}
    assert errors[same] == 0.0
    assert errors["model.layers.3"] > 0.0
    (weights,) = [m for m in found["measurements"] if m["name"] == "weights.worst"]
    assert weights["change"] == 0.0, "every layer that is paired has the weights of its counterpart"


def test_a_module_that_cannot_be_compared_spoils_the_worst(tmp_path: Path) -> None:
    def halve(held: Tensors) -> Tensors:
        kept = dict(held)
        for name, tensor in held.items():
            if "gate_proj" in name or "up_proj" in name:
                kept[name] = tensor[:48].clone()
            elif "down_proj" in name:
                kept[name] = tensor[:, :48].clone()
        return kept

    code, output, found = check(tmp_path, halve, LAYERS, intermediate_size=48)
    assert code == 2, output
    (verdict,) = found["verdicts"]
    assert verdict["because"].startswith(
        "layers.worst: model.layers.0.mlp.down_proj, and 11 more could not be compared"
    )
    assert [m for m in found["measurements"] if m["name"] == "layers.relative_error"], "what can be compared is told"


def test_a_map_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, lambda held: renumber(held, [0, 2, 3]), LAYERS, ", layers: [0, 2]", num_hidden_layers=3)
    code, output = run(tmp_path, "check", tmp_path / "changed.yaml")
    assert code == 2, output
    assert "variant.layers: found 2 entries, expected 3, one for each decoder layer of the variant" in output


def widen(held: Tensors, rows: int, scale: float) -> Tensors:
    """The model with further rows of its tied embedding: ``scale`` times the mean direction of the others."""
    table = held["model.embed_tokens.weight"]
    extra = (scale * table.float().mean(0)).to(table.dtype).expand(rows, -1)
    return held | {"model.embed_tokens.weight": torch.cat([table, extra]).contiguous()}


def test_extra_ids_that_are_unused_are_bounded_and_said(tmp_path: Path) -> None:
    code, output, found = check(tmp_path, lambda held: widen(held, 1, 0.0), KL, vocab_size=1537)
    assert code == 0, output
    (note,) = [n for n in found["notes"] if "ids that exist on one side only are unused" in n["text"]]
    assert "on average in a document, most in heldout/" in note["text"]


def test_extra_rows_that_win_the_argmax_are_no_pass(tmp_path: Path) -> None:
    code, output, found = check(tmp_path, lambda held: widen(held, 64, 60.0), KL, vocab_size=1600)
    assert code == 2, output
    assert "ids that exist on one side only are in use: the variant gives them a probability of up to" in output
    assert "heldout/" in output
    assert not [m for m in found["measurements"] if m["name"].startswith("divergence.")]
