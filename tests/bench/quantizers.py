"""What putting a weight on a grid costs here and in other libraries. A script, not a test: nothing is asserted.

    python tests/bench/quantizers.py --size 1024 4096 --repeats 9
    python tests/bench/quantizers.py --only gptq --size 1024

One process, one thread, processor time. In every repeat each library does the same job once, right after the other, so
that other work on the machine falls on all alike; printed are medians and the median of the ratios, theirs over ours:
above 1 we are faster. Jobs: from a float32 weight to the values its codes stand for, limits and scales included;
GPTQ from weight and Hessian to those values, scales included. ``differ`` is the share of values that are not the same
to the last bit; for GPTQ it is the output error, theirs over ours. The libraries are those of the extra ``compare``.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.numerics.formats import Format, quantize
from harness.numerics.gptq import gptq
from harness.numerics.granularity import Blocks
from harness.numerics.grids import NF4, integer

Run = Callable[[], Tensor]


@dataclass
class Job:
    """One job, done here and by others under the name of their library."""

    name: str
    here: Run
    others: dict[str, Run]
    judge: Callable[[Tensor, Tensor], float]
    repeats: int
    seconds: dict[str, list[float]] = field(default_factory=dict)


def library(name: str) -> Any:
    """The module, or None where the library is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def torchao(x: Tensor, bits: int, block: tuple[int, int]) -> Run | None:
    """torchao's affine primitives on full-range symmetric integers."""
    primitives = library("torchao.quantization.quant_primitives")
    if primitives is None:
        return None
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def run() -> Tensor:
        scale, zero = primitives.choose_qparams_affine(
            x, primitives.MappingType.SYMMETRIC, block, torch.int8, low, high,
            scale_dtype=torch.float32, zero_point_dtype=torch.int32,
        )  # fmt: skip
        codes = primitives.quantize_affine(x, block, scale, zero, torch.int8, low, high)
        return primitives.dequantize_affine(codes, block, scale, zero, torch.int8, low, high)  # type: ignore[no-any-return]

    return run


def compressed_tensors(x: Tensor, bits: int, group: int | None) -> Run | None:
    """compressed-tensors' fused path from weights to values, which spares it the codes."""
    quantization = library("compressed_tensors.quantization")
    if quantization is None:
        return None
    forward = library("compressed_tensors.quantization.lifecycle.forward")
    args = scheme(quantization, bits, group)

    def run() -> Tensor:
        scale, zero = parameters(x, args, group)
        return forward.fake_quantize(x, scale, zero, args)  # type: ignore[no-any-return]

    return run


def scheme(quantization: Any, bits: int, group: int | None) -> Any:
    """Symmetric integers by channel or group."""
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return quantization.QuantizationArgs(num_bits=bits, symmetric=True, **strategy)


def parameters(x: Tensor, args: Any, group: int | None) -> tuple[Tensor, Tensor]:
    """Scales and zero points as compressed-tensors computes them from minimum and maximum."""
    pieces = x.reshape(len(x), -1, group or x.shape[1])
    utils = library("compressed_tensors.quantization.utils")
    return utils.calculate_qparams(pieces.amin(-1), pieces.amax(-1), args)  # type: ignore[no-any-return]


def bitsandbytes(x: Tensor) -> Run | None:
    """bitsandbytes' NF4 in blocks of 64."""
    functional = library("bitsandbytes.functional")
    if functional is None:
        return None

    def run() -> Tensor:
        codes, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4")
        return functional.dequantize_4bit(codes, state)  # type: ignore[no-any-return]

    return run


def llm_compressor(x: Tensor, hessian: Tensor, bits: int, group: int | None) -> Run | None:
    """llm-compressor's GPTQ of one weight. It works in the tensors it is given, so it gets copies."""
    module, quantization = (
        library("llmcompressor.modifiers.gptq.gptq_quantize"), library("compressed_tensors.quantization")
    )  # fmt: skip
    if module is None:
        return None
    args = scheme(quantization, bits, group)

    def run() -> Tensor:
        scale, zero = parameters(x, args, group)
        found = module.quantize_weight(x[None].clone(), hessian[None].clone(), scale[None], zero[None], None, args)
        return found[0][0]  # type: ignore[no-any-return]

    return run


def differing(ours: Tensor, theirs: Tensor) -> float:
    """Share of values that are not equal."""
    return float((ours != theirs).float().mean())


def round_values(x: Tensor, form: Format) -> Tensor:
    """The weights after rounding."""
    return quantize(x, form).values


def rounding(size: int, repeats: int) -> Iterator[Job]:
    """Round-to-nearest and NF4."""
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    for bits, group in ((4, 32), (4, 128), (8, None)):
        form = Format(integer(bits, full_range=True), Blocks("group", group) if group else Blocks("channel"))
        others = {
            "torchao": torchao(x, bits, (1, group or size)),
            "compressed-tensors": compressed_tensors(x, bits, group),
        }
        name = f"int{bits} {f'group {group}' if group else 'channel'}"
        yield Job(name, partial(round_values, x, form), installed(others), differing, repeats)
    form = Format(NF4, Blocks("group", 64))
    others = {"bitsandbytes": bitsandbytes(x)}
    yield Job("nf4 group 64", partial(round_values, x, form), installed(others), differing, repeats)


def repairing(size: int, repeats: int) -> Iterator[Job]:
    """GPTQ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, size, generator=generator)
    # Inputs that depend on each other: without that there would be nothing to repair.
    inputs = torch.randn(2 * size, size, generator=generator) @ (
        torch.eye(size) + torch.randn(size, size, generator=generator) / size**0.5
    )
    hessian = 2 * inputs.T @ inputs / len(inputs)

    def worse(ours: Tensor, theirs: Tensor) -> float:
        mine, other = ((((x - y) @ hessian) * (x - y)).sum() for y in (ours, theirs))
        return float(other / mine)

    for bits, group in ((4, 128), (4, None)):
        form = Format(integer(bits, full_range=True), Blocks("group", group) if group else Blocks("channel"))
        others = {"llm-compressor": llm_compressor(x, hessian, bits, group)}
        name = f"gptq int{bits} {f'group {group}' if group else 'channel'}"

        def here(form: Format = form) -> Tensor:
            return gptq(x, hessian, form, static_groups=True).quantized.values

        yield Job(name, here, installed(others), worse, repeats)


def installed(others: dict[str, Run | None]) -> dict[str, Run]:
    """Those that can run."""
    return {name: run for name, run in others.items() if run is not None}


def measure(job: Job) -> dict[str, float]:
    """Time every run in turn, and compare what they return."""
    runs = {"here": job.here, **job.others}
    results = {name: run() for name, run in runs.items()}  # Also loads what is loaded on first use.
    for _ in range(job.repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            job.seconds.setdefault(name, []).append(time.process_time() - start)
    return {name: job.judge(results["here"], results[name]) for name in job.others}


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=["rounding", "gptq"], default=["rounding", "gptq"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {"rounding": rounding, "gptq": repairing}
    print(f"{'':26}{'library':20}{'ms here':>10}{'ms there':>10}{'ratio (quartiles)':>24}{'differ':>10}")
    for size in asked.size:
        for kind in asked.only:
            for job in kinds[kind](size, asked.repeats):
                compared = measure(job)
                for name, seconds in job.seconds.items():
                    if name == "here":
                        continue
                    ratios = [b / a for a, b in zip(job.seconds["here"], seconds, strict=True)]
                    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                    mine, other = (1e3 * statistics.median(job.seconds[key]) for key in ("here", name))
                    print(
                        f"{f'{job.name}, {size}':26}{name:20}{mine:10.2f}{other:10.2f}"
                        f"{middle:12.2f} ({low:.2f}-{high:.2f}){compared[name]:10.2g}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
