"""What the shared pass costs over the bare forwards of reference and variant. A script, not a test: nothing
is asserted.

    python tests/bench/shared_pass.py --dtype float32 --documents 16 --kernel compiled
    python tests/bench/shared_pass.py --dtype bfloat16 --kernel eager naive
    python tests/bench/shared_pass.py --memory --kernel native

One process, one thread. Ratios are of processor time, batch by batch, the bare forward of a batch right
before the same batch in the pass, so that other work on the machine falls on both alike. Peak memory is that
of the process above what it holds with both models loaded. Rows of the output: each kernel of the shared pass
with all of its probes, and nine separate passes in the usual torch code (two for perplexity, two for KL, two
for calibration, two for layers, one for outliers).
With --memory: the peak of the pass, and of bare forwards, above both models, each alone in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.data.encoding import EncodedDocument
from harness.lockstep.batches import Batch, plan_batches
from harness.lockstep.driver import CPU_TOKENS, shared_pass
from harness.lockstep.kernels import Choice
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.progress import Progress
from harness.tables.store import Store
from tests.helpers.pass_pairs import Loaded, Silent

Pair = tuple[Any, Any]


def make_pair(dtype: torch.dtype) -> tuple[Any, Any]:
    """A random Llama of 43.7 million parameters, and a copy rounded to 4 bits in groups of 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, num_hidden_layers=8, intermediate_size=1536,
        num_attention_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval().to(dtype)
    variant = copy.deepcopy(reference)
    with torch.no_grad():
        for name, weight in variant.named_parameters():
            if "proj" in name:
                groups = weight.float().view(-1, 64)
                scale = groups.abs().amax(1, keepdim=True) / 7
                weight.copy_(((groups / scale).round().clamp(-8, 7) * scale).view_as(weight))
    return reference, variant


def make_documents(count: int, length: int) -> list[EncodedDocument]:
    """Documents of random ids, all of one length."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        ids = rng.integers(0, 32_000, length)
        sizes = np.ones(length, np.float32)
        made.append(EncodedDocument(index, str(index), "", ids, sizes, length, False, ""))
    return made


@torch.inference_mode()
def bare(models: tuple[Any, Any], batch: Batch) -> None:
    """One forward of each model; the logits are thrown away."""
    ids = batch.token_ids(torch.device("cpu"))
    for model in models:
        model(input_ids=ids, use_cache=False)


class Interleaved:
    """Progress that times every batch of the pass and, right before it, the bare forwards of that batch."""

    def __init__(self, models: tuple[Any, Any], batches: list[Batch]) -> None:
        self.models, self.batches = models, batches
        self.bare: list[float] = []
        self.measured: list[float] = []
        self._start: float | None = None

    def step(self, _what: str, done: int, of: int) -> None:
        """Between two batches."""
        now = time.process_time()
        if self._start is not None:
            self.measured.append(now - self._start)
        if done < of:
            start = time.process_time()
            bare(self.models, self.batches[done])
            self.bare.append(time.process_time() - start)
        self._start = time.process_time()


def run_pass(models: Pair, documents: list[EncodedDocument], kernel: Choice, tokens: int, progress: Progress) -> None:
    """The shared pass with every probe, into tables on disk."""
    sides: list[Any] = [Loaded("reference", models[0]), Loaded("variant", models[1])]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder), "bench") as store:
        probes = [Tokens(), Layers(), Channels()]
        sink = store.sink("bench")
        report = shared_pass(
            sides[0], sides[1:], documents, probes, [sink], progress, batch_tokens=tokens, kernel=kernel
        )  # fmt: skip
        assert report.kernel == kernel, report.notes


def time_run(models: Pair, documents: list[EncodedDocument], kernel: str, tokens: int) -> Interleaved:
    """A pass with one kernel, or with ``naive`` code, beside bare forwards."""
    clock = Interleaved(models, plan_batches(documents, tokens))
    if kernel == "naive":
        run_naive(models, clock)
    else:
        run_pass(models, documents, cast(Choice, kernel), tokens, clock)
    return clock


def run_naive(models: Pair, clock: Interleaved) -> None:
    """Nine passes over each batch, each as one usually writes it."""
    batches = clock.batches
    for done, batch in enumerate(batches):
        clock.step("naive", done, len(batches))
        naive(models, batch)
    clock.step("naive", len(batches), len(batches))


@torch.inference_mode()
def naive(models: tuple[Any, Any], batch: Batch) -> None:
    """Perplexity of each, KL, calibration of each, layer errors, outliers."""
    ids = batch.token_ids(torch.device("cpu"))

    def logits(model: Any) -> Tensor:
        found: Tensor = model(input_ids=ids, use_cache=False).logits
        return found[:, :-1].float()

    for model in models:
        cross_entropy(logits(model).flatten(0, 1), ids[:, 1:].flatten())
    log_p, log_q = (log_softmax(logits(model), -1) for model in models)
    (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    (log_p - log_q).abs().max()
    del log_p, log_q
    for model in models:
        confidence, guess = softmax(logits(model), -1).max(-1)
        torch.bucketize(confidence, torch.linspace(0, 1, 11))
        (guess == ids[:, 1:]).float().mean()
    kept: list[dict[str, Tensor]] = []
    for model in models:
        outputs: dict[str, Tensor] = {}
        hooked(model, lambda name, _x, y, into=outputs: into.__setitem__(name, y), ids)
        kept.append(outputs)
    for name, output in kept[0].items():
        ((output.float() - kept[1][name].float()).square().sum() / output.float().square().sum()).sqrt()
    hooked(models[0], lambda _name, x, _y: torch.aminmax(x.flatten(0, 1), dim=0), ids)


def hooked(model: Any, tap: Callable[..., object], ids: Tensor) -> None:
    """One forward in which ``tap`` sees the input and output of every linear layer but the head."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            handles.append(module.register_forward_hook(lambda _m, x, y, n=name: tap(n, x[0], y) and None))
    model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()


def resident() -> int:
    """Bytes of the process that are in memory now, what was freed given back (Linux, glibc)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak(reset: bool = False) -> int:
    """Largest resident size of the process in bytes since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def print_memory(dtype: str, kernel: str, documents: list[EncodedDocument], tokens: int) -> None:
    """The peak of a pass with every probe, or of ``bare`` forwards, after one of a single document."""
    models = make_pair(getattr(torch, dtype))

    def run(some: list[EncodedDocument]) -> None:
        if kernel != "bare":
            run_pass(models, some, cast(Choice, kernel), tokens, Silent())
            return
        for batch in plan_batches(some, tokens):
            bare(models, batch)

    run(documents[:1])
    base = resident()
    peak(reset=True)
    run(documents)
    print(f"{dtype + ' ' + kernel:20}{(peak() - base) / 1e6:8.0f} MB above both models", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kernel", nargs="+", default=["eager", "compiled", "native", "naive"])
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=CPU_TOKENS)
    parser.add_argument("--memory", action="store_true", help="peaks instead of time")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    documents = make_documents(asked.documents, asked.length)
    if asked.memory:
        for each in itertools.product(asked.dtype, ["bare", *asked.kernel]):
            alone = get_context("spawn").Process(target=print_memory, args=(*each, documents, asked.batch_tokens))
            alone.start()
            alone.join()
        return
    print(f"{asked.documents} x {asked.length} tokens, {asked.batch_tokens} a batch, one thread, processor time")
    print(f"{'':20}{'bare ms/batch':>14}{'ms/batch':>10}{'ratio (quartiles)':>22}{'peak MB':>9}{'whole s':>9}")
    for dtype in asked.dtype:
        models = make_pair(getattr(torch, dtype))
        for kernel in asked.kernel:
            base = resident()
            time_run(models, documents[:3], kernel, asked.batch_tokens)  # caches, compiled code
            peak(reset=True)
            start = time.process_time()
            clock = time_run(models, documents, kernel, asked.batch_tokens)
            whole = time.process_time() - start - sum(clock.bare)
            ratios = [a / b for a, b in zip(clock.measured, clock.bare, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            print(
                f"{dtype + ' ' + kernel:20}{1e3 * statistics.median(clock.bare):14.0f}"
                f"{1e3 * statistics.median(clock.measured):10.0f}{middle:10.3f} ({low:.3f}-{high:.3f})"
                f"{(peak() - base) / 1e6:8.0f}{whole:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
