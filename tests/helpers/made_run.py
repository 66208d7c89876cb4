"""A made-up run around made-up tables: pass, fail, inconclusive or error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.measures import load_metrics
from harness.records import (
    Artifact,
    ArtifactFile,
    CacheFormat,
    CalibrationData,
    Clock,
    Comparison,
    Difference,
    Environment,
    Identity,
    ModuleFormat,
    Note,
    Run,
    Skipped,
)
from tests.helpers.made_measurements import make_measurements
from tests.helpers.made_tables import LINEARS, MadeTables, make_tables
from tests.helpers.made_verdicts import make_asked, make_verdicts
from tests.helpers.number_formats import INT8_INPUTS, inputs, named

EXIT_CODES: dict[str, Literal[0, 1, 2, 3]] = {"pass": 0, "fail": 1, "error": 2, "inconclusive": 3}
SCALE = {"pass": 0.05, "inconclusive": 0.12, "fail": 0.45, "error": 0.05}


@dataclass(frozen=True)
class Made:
    """A run and its tables."""

    run: Run
    tables: MadeTables


def make_run(verdict: str = "pass", documents: int = 200, length: int = 150, layers: int = 4, items: int = 200) -> Made:
    """The same arguments give the same run, bit for bit."""
    rng = np.random.default_rng(7)
    frames = make_tables(rng, SCALE[verdict], documents, length, layers, items)
    measurements = make_measurements(frames, SCALE[verdict])
    if verdict == "error":
        measurements = [m for m in measurements if m.name != "perplexity.ratio"]
    verdicts = tuple(make_verdicts(measurements))
    statuses = [found.status for found in verdicts if found.level == "block"]
    assert verdict == next(status for status in ("error", "fail", "inconclusive", "pass") if status in statuses)
    run = Run(
        name="pocket-w4-g32",
        data_key="9f" * 32,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        failure=None if verdict == "pass" else "quality",
        asked=make_asked(),
        reference=identity("pocket", "float32", modules(layers, False), "a1"),
        variant=fitted(identity("pocket-w4-g32", "float32", modules(layers, True), "b2")),
        environment=Environment(
            harness="0.1.0",
            python="3.11.9",
            platform="Linux-6.1-x86_64",
            processor="x86_64",
            threads=2,
            packages={"numpy": "2.4.6", "torch": "2.13.0", "transformers": "5.17.0"},
        ),
        clock=Clock(
            started="2026-11-22T08:00:00+00:00",
            finished="2026-11-22T08:03:12+00:00",
            seconds={"load reference": 0.9, "make variant": 1.25, "shared pass": 61.5, "items": 118.0},
        ),
        metrics=tuple(load_metrics()),
        measurements=tuple(measurements),
        skipped=(Skipped(measure="memory.peak_bytes", reason="peak memory is read on CUDA devices only"),),
        verdicts=verdicts,
        notes=(
            Note(topic="documents", text="3 of 200 documents of suite core cut at the context"),
            Note(topic="floor", text="the same pair twice differs by at most 0 nats", level="info"),
        ),
        artifact=Artifact(
            kind="saved",
            files=(
                ArtifactFile(name="config.json", bytes=812, sha256="f6" * 32),
                ArtifactFile(name="model.safetensors", bytes=7_874_560, sha256="a7" * 32),
            ),
        ),
        comparison=make_comparison(),
    )
    return Made(run, MadeTables(frames))


def make_comparison() -> Comparison:
    """A longer context, and a pre-tokenizer that is only written otherwise."""
    longer = Difference(
        part="configuration",
        field="max_position_embeddings",
        reference="512",
        variant="2048",
        meaning="positions beyond are refused, or extrapolated, on one side only",
        severity="beyond_inputs",
        from_position=512,
    )
    other = Difference(
        part="pre_tokenizer",
        field="pre_tokenizer",
        reference="{}",
        variant="none",
        meaning="written otherwise; none of 22 example texts differs",
        severity="informative",
        example="a text",
    )
    return Comparison.of("artifact", False, ("configuration", "pre_tokenizer"), (longer, other))


def identity(name: str, dtype: str, formats: tuple[ModuleFormat, ...], fill: str) -> Identity:
    return Identity(
        name=name,
        source=f"models/{name}",
        architecture="LlamaForCausalLM",
        revision=None,
        dtype=dtype,
        device="cpu",
        attention="sdpa",
        parameters=1_967_808,
        weights_sha256=fill * 32,
        config_sha256="c3" * 32,
        tokenizer_sha256="d4" * 32,
        modules=formats,
    )


def fitted(variant: Identity) -> Identity:
    """The variant with a quantized KV cache, and documents that it was fitted to."""
    cache = CacheFormat(
        keys=inputs("int4 per channel"),
        values=inputs("int4 per token"),
        bits_per_value=4.5,
        residual=32,
        kernel="simulated",
        backend="kv_cache",
    )
    data = CalibrationData(source="pocket-calibration", documents=64, tokens=8_192, sha256="e5" * 32)
    return variant.model_copy(update={"cache": cache, "calibration": data})


def modules(layers: int, compressed: bool) -> tuple[ModuleFormat, ...]:
    shapes = {"q_proj": 36_864, "k_proj": 12_288, "v_proj": 12_288, "o_proj": 36_864}
    found = [plain("model.embed_tokens", "Embedding", 393_216)]
    for layer in range(layers):
        for linear in LINEARS:
            name, count = f"model.layers.{layer}.{linear}", shapes.get(linear.rpartition(".")[2], 98_304)
            if not compressed:
                found.append(plain(name, "Linear", count))
                continue
            found.append(
                ModuleFormat(
                    module=name,
                    type="Linear",
                    parameters=count,
                    stored_bytes=count * 9 // 16,
                    bits_per_weight=4.5,
                    format=named("int4", granularity="group", group_size=32, symmetric=True, ranges="min_max"),
                    activations=INT8_INPUTS if "mlp" in linear else None,
                    kernel="simulated",
                    backend="round_to_nearest",
                    role="linear",
                    distinct_values=15,
                )
            )
    return (*found, plain("model.norm", "LlamaRMSNorm", 192))


def plain(name: str, type_: str, count: int) -> ModuleFormat:
    return ModuleFormat(
        module=name,
        type=type_,
        parameters=count,
        stored_bytes=4 * count,
        bits_per_weight=32.0,
        format=named("float32"),
        role="embedding" if type_ == "Embedding" else "norm" if "Norm" in type_ else "linear",
    )
