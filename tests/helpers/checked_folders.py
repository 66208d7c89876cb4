"""Two model folders, one check of them under the rules of ``ship`` about coverage, and what it said."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.check import check
from harness.errors import HarnessError
from harness.plan import load_gate
from harness.pocket import MODEL_DIR
from harness.terminal import Terminal

SIZES: dict[str, Any] = {
    "vocab_size": 1536,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""Of a tiny model with the tokens of the embedded one."""
SUITE = """\
description: what little it takes
documents: {data: pocket-heldout, max: 4, context: 48}
measures: [divergence, memory, coverage]
"""


@dataclass(frozen=True)
class Checked:
    """Exit code, what the terminal showed, and the content of run.json (empty if there is none)."""

    code: int
    output: str
    run: dict[str, Any]

    def notes(self, topic: str) -> list[str]:
        """Texts of the notes on a topic."""
        return [note["text"] for note in self.run.get("notes", ()) if note["topic"] == topic]

    def failed(self, level: str = "block") -> list[str]:
        """Metrics (of the harness's own rules: their names) whose rules of a level failed."""
        verdicts = self.run.get("verdicts", ())
        return [v["metric"] or v["rule"] for v in verdicts if v["status"] == "fail" and v["level"] == level]

    def change(self, metric: str) -> float:
        """The change of a metric."""
        (found,) = [m["change"] for m in self.run["measurements"] if m["name"] == metric]
        return float(found)


def save(model: Any, folder: Path) -> Path:
    """Write a model with the tokenizer of the embedded one."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder)
    return folder


def with_tower() -> Any:
    """A model that has a vision tower beside its language model."""
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids: dict[str, Any] = {"mm_tokens_per_image": 4, "boi_token_index": 2, "eoi_token_index": 3, "image_token_index": 4}
    config = transformers.Gemma3Config(
        text_config=SIZES | {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=seen | {"image_size": 28, "patch_size": 14},
        **ids,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def copy_pocket(folder: Path) -> Path:
    """Write the embedded model without its list of hashes."""
    return Path(shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("manifest.json", "*.md", "training*")))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a folder in place."""
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file({name: each.contiguous() for name, each in held.items()}, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    """Change fields of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def pack_gptq(folder: Path, chosen: Callable[[str], bool] = lambda _: True, group: int = 32, **said: Any) -> None:
    """Pack the chosen projections of a folder as GPTQ does, symmetric 4-bit codes; ``said``: what the config says."""

    def pack(held: dict[str, Tensor]) -> None:
        for name in [key[:-7] for key in held if key.endswith("_proj.weight") and chosen(key)]:
            weight_OI = held.pop(f"{name}.weight").float()
            outputs, inputs = weight_OI.shape
            blocks = weight_OI.view(outputs, inputs // group, group)
            scales = (blocks.abs().amax(2) / 7).half()
            codes = (blocks / scales.float()[..., None]).round().clamp(-8, 7).add(8).long().view(outputs, inputs).T
            words = torch.stack([codes[place::8] << 4 * place for place in range(8)]).sum(0)
            held[f"{name}.qweight"] = torch.where(words >= 2**31, words - 2**32, words).int()
            held[f"{name}.qzeros"] = torch.full((inputs // group, outputs // 8), 0x77777777, dtype=torch.int32)
            held[f"{name}.scales"] = scales.T
            held[f"{name}.g_idx"] = (torch.arange(inputs) // group).int()

    change_tensors(folder, pack)
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True, "desc_act": False}
    change_config(folder, quantization_config=config | said)


def write_rules(base: Path, families: tuple[str, ...] = ("coverage.",)) -> None:
    """Write the rules of ``ship`` on families of metrics, and one on the divergence, with the suite that they need."""
    rules = [spec.rule.model_dump(mode="json") | {"rule": spec.rule.kind} for spec in load_gate("ship", base).rules]
    about = [rule for rule in rules if rule["metric"].startswith(families)]
    about.append({"rule": "at_most", "metric": "divergence.kl_mean", "limit": 0.5, "why": "close", "decide": "point"})
    # A line for each rule: where it stands is what tells it from others.
    (base / "gate.yaml").write_text(json.dumps({"description": "of ship", "rules": about}, indent=1))
    (base / "suite.yaml").write_text(SUITE)


WEAK = "weak_reference: random weights\n"


def check_folders(
    base: Path,
    variant: str = "{model: ./var}",
    reference: str = "{model: ./ref}",
    more: str = "",
    families: tuple[str, ...] = ("coverage.",),
    excused: bool = True,
) -> Checked:
    """Check ``base/var`` against ``base/ref``. more: further lines of the variant file. families: see write_rules.

    excused: whether the variant file says that a weak reference is meant.
    """
    write_rules(base, families)
    models = f"name: v\nreference: {reference}\nvariant: {variant}\n{WEAK if excused else ''}{more}"
    (base / "v.yaml").write_text(f"{models}suites: [./suite.yaml]\ngates: [./gate.yaml]\n")
    log = io.StringIO()
    try:
        code = check([base / "v.yaml"], base / "runs", Terminal(Console(file=log, width=300)))
    except HarnessError as error:
        code = 2
        log.write(str(error))
    saved = base / "runs" / "v" / "run.json"
    return Checked(code, log.getvalue(), json.loads(saved.read_text()) if saved.exists() else {})
