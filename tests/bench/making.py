"""What loading a model, making a 4-bit variant and describing it cost over the bare work. A script, not a test.

    python tests/bench/making.py
    python tests/bench/making.py --layers 22 --repeats 1

One process, one thread, processor time. The bare work is to read the weight files and to round every linear weight
once. In every repeat it is done right before the other, so that other work on the machine falls on both alike; printed
are medians, and the median of the ratios. ``peak`` is the most memory of the process over the distinct tensors of both
sides. The model is a random Llama in bfloat16, by default of 400 million parameters.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.backends.round_to_nearest import RoundToNearest
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.planning.specs import Plan, VariantSpec
from harness.pocket import MODEL_DIR
from harness.records import ModelSpec
from harness.running import variant
from harness.system.stopwatch import Seconds, Stopwatch

PARTS = {"check_grids": "check of the grid", "identify": "hash", "find_non_finite": "look for NaN"}
"""Functions of ``harness.running.variant`` that are shown apart."""


def save_model(folder: Path, hidden: int, layers: int) -> None:
    """A random Llama over the embedded model's tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 512),
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, folder)


def do_bare_work(folder: Path, step: RoundToNearest) -> dict[str, torch.Tensor]:
    """The variant's tensors, without any check."""
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    for name in (name for name in tensors if name.endswith("_proj.weight")):
        tensors[name] = step.round_weight(tensors[name]).values.to(tensors[name].dtype)
    return tensors


@contextmanager
def time_parts(stopwatch: Stopwatch, seconds: Seconds) -> Iterator[None]:
    """Let the functions of PARTS count for themselves."""

    def timed(function: Callable[..., object], stage: str) -> Callable[..., object]:
        def call(*given: object) -> object:
            with stopwatch.measure(seconds, stage):
                return function(*given)

        return call

    with ExitStack() as stack:
        for name, stage in PARTS.items():
            stack.enter_context(patch.object(variant, name, timed(getattr(variant, name), stage)))
        yield


def do_all(plan: Plan, stopwatch: Stopwatch, seconds: Seconds) -> tuple[LoadedModel, LoadedModel]:
    """Reference and variant, as a check opens them."""
    with stopwatch.measure(seconds, "load"):
        reference = load(plan.reference, "reference")
    with time_parts(stopwatch, seconds), stopwatch.measure(seconds, "make"):
        return reference, variant.make_variant(plan, reference, ())


def count_bytes(*sides: LoadedModel) -> int:
    """Bytes of all tensors, those that both sides hold once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for side in sides for t in side.model.parameters()}.values())


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    step, rows, ratios = RoundToNearest(bits=4, group_size=32), list[Seconds](), list[float]()
    stopwatch = Stopwatch(clock=time.process_time)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, options.hidden, options.layers)
        spec, made = ModelSpec(model=name, dtype="bfloat16"), VariantSpec(compress=(step,))
        plan = Plan.model_construct(name="variant", source="", reference=spec, variant=made, suites=(), gates=())
        load(spec, "first")  # what is imported at the first call counts for none
        for _ in range(options.repeats):
            seconds: Seconds = {}
            with stopwatch.measure(seconds, "bare work"):
                do_bare_work(folder, step)
            before = stopwatch.explained
            size = count_bytes(*do_all(plan, stopwatch, seconds))
            ratios.append((stopwatch.explained - before) / seconds["bare work"])
            rows.append(seconds)
    for stage in rows[0]:
        print(f"{stage:20}{statistics.median(row[stage] for row in rows):9.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / size
    print(f"{'over the bare work':20}{statistics.median(ratios):9.2f} ×\n{'peak':20}{peak:9.2f} ×")


if __name__ == "__main__":
    main()
