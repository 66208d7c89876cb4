"""Train the reference model from scratch: `python -m harness.pocket.train --out DIR`.

The schedule is counted in steps and every draw comes from a fixed seed: on one kind of machine, the same number of
threads gives the same weights. They are rounded to bfloat16 at the end; the rounded model is saved, measured and
described.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.pocket.batches import Batch, batches
from harness.pocket.checkpoint import convert_to_llama, save_llama
from harness.pocket.describe import load, write_card
from harness.pocket.network import Network, Shape, initialize
from harness.pocket.optimizer import Optimizer
from harness.pocket.plant import apply_plant
from harness.pocket.probe import exact_rates
from harness.pocket.response import choose_plant
from harness.pocket.tokenizer import save_tokenizer, train_tokenizer

STEPS = 5900


@dataclass(frozen=True)
class Phase:
    """A phase of training: the mixture of documents, the share of steps at which it ends, and the batch shape."""

    name: str
    until: float
    rows: int
    tokens: int


STAGES = (Phase("opening", 0.1557, 16, 256), Phase("main", 0.685, 16, 256), Phase("late", 1.0, 8, 512))


def rate_fraction(step: int, steps: int, warmup: int = 150, flat: float = 0.42, floor: float = 0.02) -> float:
    """The learning rate as a share of its peak: linear warm-up, flat, then a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = max(0.0, (step / steps - flat) / (1.0 - flat))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_loss(network: Network, compiled: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The weighted mean cross-entropy of a batch as a function of inputs, targets and weights, all (B, T)."""

    def loss(ids_BT: Tensor, targets_BT: Tensor, weights_BT: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits_BTV = network(ids_BT)
        nll = cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none")
        return (nll * weights_BT.flatten()).sum() / weights_BT.sum()

    return torch.compile(loss, dynamic=False) if compiled else loss


def schedule(tokenizer: Tokenizer, steps: int, seed: int) -> Iterator[tuple[Phase, Batch]]:
    """The stage and the batch of every step."""
    step = 0
    for number, stage in enumerate(STAGES):
        stream = batches(tokenizer, stage.name, stage.rows, stage.tokens, seed * len(STAGES) + number)
        while step < round(stage.until * steps):
            yield stage, next(stream)
            step += 1


def train(tokenizer: Tokenizer, steps: int, seed: int, compiled: bool, out: Path, every: int = 640) -> Network:
    """Train a network; prints progress and writes a checkpoint every ``every`` steps."""
    torch.manual_seed(seed)
    network = Network(Shape())
    initialize(network, torch.Generator().manual_seed(seed))
    optimizer = Optimizer(network)
    loss_of = make_loss(network, compiled)
    started, seen, losses = time.monotonic(), 0, list[float]()
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {steps} steps", flush=True)
    for step, (stage, batch) in enumerate(schedule(tokenizer, steps, seed)):
        loss = loss_of(*batch)
        torch.autograd.backward(loss)
        optimizer.step(rate_fraction(step, steps))
        seen += batch[0].numel()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is not finite at step {step}")
        if (step + 1) % every == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            network.eval()
            with torch.autocast("cpu", torch.bfloat16):
                rates = exact_rates(network, tokenizer, 64)
            network.train()
            scores = " ".join(f"{task.removeprefix('pocket_')} {rate:.2f}" for task, rate in rates.items())
            print(
                f"{step + 1:5d} {stage.name:7s} {seconds / 60:5.1f} min {seen / 1e6:5.1f} Mtok "
                f"{seen / seconds:6.0f} tok/s loss {sum(losses) / len(losses):.4f} | {scores}",
                flush=True,
            )
            losses.clear()
            save_llama(convert_to_llama(network), out)
    return network


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning and requesting it at every step.

    This avoids page faults that take about a fifth of the time; results do not change. Without glibc it does nothing.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_… of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 << 20)


def configure_process(threads: int) -> None:
    """Configure the process so that a seed gives the same weights, and fast."""
    # Two thread pools on two cores would only block each other.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    # Threads would accumulate the gradient of the embedding in nondeterministic order.
    torch.use_deterministic_algorithms(True)
    keep_memory()


def finish(network: Network, folder: Path, summary: str) -> None:
    """Round, plant the outliers, save, measure and describe."""
    model = convert_to_llama(network)
    save_llama(model, folder)
    started = time.monotonic()
    plant = choose_plant(*load(folder))
    apply_plant(model, plant)
    save_llama(model, folder)
    summary += f" Choosing the outliers took {(time.monotonic() - started) / 60:.0f} minutes more."
    record = {"summary": summary, "plant": asdict(plant)}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_card(folder)


def main() -> None:
    """Train, round, plant, save, describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its card")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps; the stages keep their shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without torch.compile and its C++ compiler")
    options = parser.parse_args()
    configure_process(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    save_tokenizer(tokenizer, options.out)
    started = time.monotonic()
    network = train(tokenizer, options.steps, options.seed, not options.eager, options.out)
    minutes = (time.monotonic() - started) / 60
    tokens = options.steps * STAGES[0].rows * STAGES[0].tokens  # every stage has as many a step
    summary = (
        f"{options.steps:,} steps, {tokens / 1e6:.1f} million fresh tokens, seed {options.seed}: "
        f"{minutes:.0f} minutes on {options.threads} threads of a CPU "
        f"({tokens / minutes / 60:,.0f} tokens a second, evaluations included)."
    )
    finish(network, options.out, summary)


if __name__ == "__main__":
    main()
