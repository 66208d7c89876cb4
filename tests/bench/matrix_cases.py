"""The rows of the matrix: one line for every backend and method. A library's row names the simulation beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Step = dict[str, Any]

LIBRARIES = (
    "torch",
    "transformers",
    "torchao",
    "bitsandbytes",
    "optimum-quanto",
    "hqq",
    "llmcompressor",
    "compressed-tensors",
    "auto-round",
    "nvidia-modelopt",
    "gptqmodel",
    "peft",
    "gguf",
    "llama-cpp-python",
)
"""What pip calls the packages whose versions stand on the page."""


@dataclass(frozen=True)
class Sizes:
    """What a model asks of a case: the size of groups, and layers that grouped rows leave out."""

    group: int
    skip: tuple[str, ...]

    @property
    def grouped(self) -> Step:
        """Settings of a step with groups, of ours and of libraries."""
        return {"group_size": self.group, "skip": list(self.skip)}


@dataclass(frozen=True)
class Case:
    """One row. made: its steps for a model. beside: name of the row with our own simulation of the same recipe.

    differs: why their numbers may differ; shown where they do.
    files: writes what the variant is made from, of the model in a folder (first) into another; gives the other keys of
    ``variant``.
    """

    backend: str
    method: str
    made: Callable[[Sizes], Sequence[Step]]
    beside: str = ""
    differs: str = ""
    files: Callable[[str, Path], Step] = lambda _model, _place: {}

    @property
    def name(self) -> str:
        """How the page calls it."""
        return f"{self.backend}: {self.method}"

    @property
    def slug(self) -> str:
        """A name for files."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def steps(self, sizes: Sizes) -> list[Step]:
        """The steps of the variant file."""
        return list(self.made(sizes))


def rtn(method: str, /, **fields: Any) -> Case:
    """Our rounding with settings that fit every model."""
    return Case("ours", method, lambda _: [{"backend": "round_to_nearest", **fields}])


def rtn_grouped(method: str, /, **fields: Any) -> Case:
    """Our rounding in groups of the model's size."""
    return Case("ours", method, lambda sizes: [{"backend": "round_to_nearest", **sizes.grouped, **fields}])


def lib(backend: str, method: str, /, beside: str = "", differs: str = "", **fields: Any) -> Case:
    """A library's backend with settings that fit every model. beside: the method of our row."""
    ours = beside and f"ours: {beside}"
    return Case(backend, method, lambda _: [{"backend": backend, **fields}], ours, differs)


def lib_grouped(backend: str, method: str, /, beside: str = "", differs: str = "", **fields: Any) -> Case:
    """A library's backend in groups of the model's size."""
    ours = beside and f"ours: {beside}"
    return Case(backend, method, lambda sizes: [{"backend": backend, **sizes.grouped, **fields}], ours, differs)


def steps(*fixed: Step) -> Callable[[Sizes], Sequence[Step]]:
    """The same steps for every model."""
    return lambda _: fixed


def grouped(*each: Step) -> Callable[[Sizes], Sequence[Step]]:
    """The same steps for every model, all of them in groups of its size."""
    return lambda sizes: [{**sizes.grouped, **step} for step in each]


W8: Step = {"backend": "round_to_nearest", "bits": 8, "granularity": "channel"}
W8_ALL: Step = {**W8, "full_range": True}
A8_TOKEN: Step = {"backend": "activations", "bits": 8, "granularity": "token"}
A8_STATIC: Step = {"backend": "activations", "bits": 8, "granularity": "tensor", "dynamic": False}
A7_TENSOR: Step = {"backend": "activations", "bits": 7, "granularity": "tensor", "symmetric": False}
GPTQ4: Step = {"backend": "gptq", "bits": 4, "full_range": True}

OURS = (
    rtn("INT8 channel", bits=8, granularity="channel"),
    rtn("INT8 channel, all codes", bits=8, granularity="channel", full_range=True),
    rtn_grouped("INT4 groups, all codes", bits=4, full_range=True),
    rtn_grouped("INT4 groups", bits=4),
    rtn_grouped("INT4 groups, affine", bits=4, symmetric=False),
    rtn_grouped("INT3 groups, affine", bits=3, symmetric=False),
    rtn_grouped("INT2 groups, affine", bits=2, symmetric=False),
    rtn("FP8 E4M3 channel", format="fp8_e4m3", granularity="channel"),
    rtn("NF4 groups of 64", format="nf4", group_size=64),
    rtn("NF4 groups of 64, double quantized", format="nf4", group_size=64, double_quantize=True),
    Case("ours", "INT8 channel, all codes, INT8 inputs per token", steps(W8_ALL, A8_TOKEN)),
    Case("ours", "INT8 channel, INT8 inputs per tensor, static", steps(W8, A8_STATIC)),
    Case(
        "ours", "INT8 tensor, all codes, INT7 inputs per tensor", steps({**W8_ALL, "granularity": "tensor"}, A7_TENSOR)
    ),
    Case("ours", "LLM.int8()", steps({"backend": "llm_int8"})),
    Case("ours", "GPTQ INT4 groups", grouped({"backend": "gptq", "bits": 4})),
    Case("ours", "GPTQ INT4 groups, all codes", grouped(GPTQ4)),
    Case(
        "ours",
        "GPTQ INT4 groups, all codes, strongest inputs first",
        grouped({**GPTQ4, "act_order": True, "static_groups": True, "sequential": "block"}),
    ),
    Case("ours", "AWQ INT4 groups", grouped({"backend": "awq", "bits": 4})),
    Case("ours", "SmoothQuant, INT8 channel, INT8 inputs per token", steps({"backend": "smoothquant"}, W8, A8_TOKEN)),
    Case("ours", "dense and sparse, 4 bits", steps({"backend": "dense_and_sparse", "bits": 4})),
    Case("ours", "KV cache INT8", steps({"backend": "kv_cache", "bits": 8})),
)

TIES = "ties: the library multiplies by the reciprocal of the scale"
W8A8 = "int8_dynamic_activation_int8_weight"

TORCHAO = (
    lib("torchao", "INT8 channel", "INT8 channel, all codes", TIES, method="int8_weight_only"),
    lib("torchao", "FP8 E4M3 channel", "FP8 E4M3 channel", TIES, method="float8_weight_only"),
    lib_grouped("torchao", "INT4 groups", "INT4 groups, all codes", TIES, method="intx_weight_only", bits=4),
    lib_grouped(
        "torchao",
        "INT4 groups, affine",
        "INT4 groups, affine",
        TIES,
        method="intx_weight_only",
        bits=4,
        symmetric=False,
    ),
    lib_grouped(
        "torchao",
        "INT3 groups, affine",
        "INT3 groups, affine",
        TIES,
        method="intx_weight_only",
        bits=3,
        symmetric=False,
    ),
    lib_grouped(
        "torchao",
        "INT2 groups, affine",
        "INT2 groups, affine",
        TIES,
        method="intx_weight_only",
        bits=2,
        symmetric=False,
    ),
    lib(
        "torchao",
        "INT8 channel, INT8 inputs per token",
        "INT8 channel, all codes, INT8 inputs per token",
        "inputs of the library use the code −128, too",
        method=W8A8,
    ),
    lib_grouped(
        "torchao", "INT4 groups, INT8 inputs", method="int8_dynamic_activation_intx_weight", bits=4, symmetric=False
    ),
    lib_grouped("torchao", "INT4 packed, on CUDA devices", method="int4_weight_only"),
)

FLOAT16 = "the library rounds weights and inputs to float16 first, and undoes scales with 6.200124e-05 for 1 / 127²"
BITSANDBYTES = (
    lib("bitsandbytes", "LLM.int8()", "LLM.int8()", FLOAT16, method="llm_int8"),
    lib("bitsandbytes", "NF4 groups of 64", "NF4 groups of 64", "groups run over the ends of rows", method="nf4"),
    lib(
        "bitsandbytes",
        "NF4 groups of 64, double quantized",
        "NF4 groups of 64, double quantized",
        "the library looks scales up in a table, which now and then takes the second nearest",
        method="nf4",
        double_quantize=True,
    ),
    lib("bitsandbytes", "FP4 groups of 64", method="fp4"),
)

OFFSET = "the library's grid begins at the smallest weight and need not hold 0, so that weights near it move"
QUANTO = (
    lib("quanto", "INT8 channel", "INT8 channel", TIES, weights="int8"),
    lib("quanto", "FP8 E4M3 channel", "FP8 E4M3 channel", TIES, weights="fp8_e4m3"),
    lib_grouped("quanto", "INT4 groups", "INT4 groups, affine", OFFSET, weights="int4"),
    lib_grouped("quanto", "INT2 groups", "INT2 groups, affine", OFFSET, weights="int2"),
    lib(
        "quanto",
        "INT8 channel, INT8 inputs per tensor, static",
        "INT8 channel, INT8 inputs per tensor, static",
        "ranges of the library are a moving average over documents, ours hold all that was seen",
        weights="int8",
        activations="int8",
    ),
)

FITTED = (
    "zero points of the library are fitted and no whole numbers: its grid need not hold 0, so that weights near it move"
)
HQQ = (
    lib_grouped("hqq", "INT8 groups", bits=8),
    lib_grouped("hqq", "INT4 groups", "INT4 groups, affine", FITTED, bits=4),
    lib_grouped("hqq", "INT3 groups", "INT3 groups, affine", FITTED, bits=3),
    lib_grouped("hqq", "INT2 groups", "INT2 groups, affine", FITTED, bits=2),
)

PYTORCH = (
    lib(
        "pytorch_dynamic_int8",
        "INT8 tensor, INT8 inputs per tensor",
        "INT8 tensor, all codes, INT7 inputs per tensor",
        "both use 128 codes for inputs; what else differs is not known",
    ),
    lib("pytorch_dynamic_int8", "INT8 channel, INT8 inputs per tensor", granularity="channel"),
)

SHIFTED = "ties: the library adds the zero point before it rounds to even"
CLIPS = "the library weighs scales by the size of weights too, and does not clip"
SPREAD = "the library smooths by the range of inputs, max − min, and by twice the largest weight"
LLMCOMPRESSOR = (
    lib("llmcompressor", "INT8 channel", "INT8 channel, all codes", bits=8),
    lib_grouped("llmcompressor", "INT4 groups", "INT4 groups, all codes", bits=4),
    lib_grouped("llmcompressor", "INT4 groups, affine", "INT4 groups, affine", SHIFTED, bits=4, symmetric=False),
    lib_grouped(
        "llmcompressor",
        "GPTQ INT4 groups",
        "GPTQ INT4 groups, all codes, strongest inputs first",
        "the library keeps no row that rounding to nearest serves better",
        bits=4,
        method="gptq",
    ),
    lib_grouped("llmcompressor", "AWQ INT4 groups", "AWQ INT4 groups", CLIPS, bits=4, method="awq"),
    lib(
        "llmcompressor",
        "INT8 channel, INT8 inputs per token",
        "INT8 channel, all codes, INT8 inputs per token",
        "inputs of the library use the code −128, too",
        scheme="W8A8",
    ),
    lib(
        "llmcompressor",
        "SmoothQuant, INT8 channel, INT8 inputs per token",
        "SmoothQuant, INT8 channel, INT8 inputs per token",
        SPREAD,
        scheme="W8A8",
        smoothing=0.5,
    ),
    lib("llmcompressor", "FP8 E4M3 tensor, FP8 inputs, static", scheme="FP8"),
    lib("llmcompressor", "FP8 E4M3 channel, FP8 inputs per token", scheme="FP8_DYNAMIC"),
    lib("llmcompressor", "KV cache INT8", kv_cache="int8"),
)

SIGNS = "scales of the library are 16-bit floats and may be negative, so that the largest weight has a code of its own"
AUTOROUND = (
    lib_grouped("autoround", "INT4 groups, not tuned", "INT4 groups, all codes", SIGNS, bits=4, iterations=0),
    lib_grouped("autoround", "INT4 groups", bits=4, iterations=50),
    lib_grouped("autoround", "INT2 groups, affine", bits=2, symmetric=False, iterations=50),
)

MODELOPT = (
    lib("modelopt", "INT8 channel", "INT8 channel", TIES, scheme="int8_weights"),
    lib_grouped("modelopt", "INT4 groups", "INT4 groups", TIES, scheme="int4"),
    lib_grouped("modelopt", "AWQ INT4 groups", "AWQ INT4 groups", CLIPS, scheme="int4_awq"),
    lib(
        "modelopt",
        "INT8 channel, INT8 inputs per tensor, static",
        "INT8 channel, INT8 inputs per tensor, static",
        scheme="int8",
    ),
    lib("modelopt", "SmoothQuant, INT8 channel, INT8 inputs per tensor, static", scheme="int8_smoothquant"),
    lib("modelopt", "FP8 E4M3 tensor, FP8 inputs, static", scheme="fp8"),
    lib("modelopt", "FP8 E4M3 channel, FP8 inputs per token", scheme="fp8_per_channel_per_token"),
    lib("modelopt", "NVFP4, on CUDA devices", scheme="nvfp4"),
)

GPTQMODEL = (lib_grouped("gptqmodel", "GPTQ INT4 groups", "GPTQ INT4 groups, all codes", bits=4, damping=0.01),)


def gguf(kind: str, beside: str = "", differs: str = "", engine: str = "transformers") -> Case:
    """The model in a GGUF file, all matrices in one format; Llama alone, which the writer knows."""

    def files(model: str, place: Path) -> Step:
        from tests.bench.gguf_rows import write

        return {"model": str(write(model, place / f"{kind}.gguf", kind)), "engine": engine, "tokenizer": "reference"}

    name = "llama_cpp" if engine == "llama_cpp" else "gguf"
    return Case(name, kind, steps(), beside and f"ours: {beside}", differs, files=files)


GGUF = (*(gguf(kind) for kind in ("Q8_0", "Q5_1", "Q4_1", "Q4_0")), gguf("Q8_0", engine="llama_cpp"))

CASES: tuple[Case, ...] = (
    *OURS,
    *TORCHAO,
    *BITSANDBYTES,
    *QUANTO,
    *HQQ,
    *PYTORCH,
    *LLMCOMPRESSOR,
    *AUTOROUND,
    *MODELOPT,
    *GPTQMODEL,
    *GGUF,
)
"""All rows, in the order of the page."""
