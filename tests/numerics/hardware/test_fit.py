"""What the table says about modules: never a kernel where a format, a size or a word is another one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.numerics.hardware.fit import Use, cache_kernel, explain_missing, fit, kernels_for, list_compressed, notes
from harness.numerics.hardware.profiles import profiles, target_names
from harness.records import CacheFormat, Identity, ModuleFormat
from tests.helpers.number_formats import INT8_INPUTS, inputs, named


def use(name: str, granularity: str, size: int | None, symmetric: bool | None, words: str = "") -> Use:
    weights = named(name, granularity=granularity, group_size=size, symmetric=symmetric)
    return Use(weights, inputs(words) if words else None)


W4 = use("int4", "group", 128, True)
W8A8 = use("int8", "channel", None, True, "int8 per token, dynamic")


def names(target: str, given: Use) -> list[str]:
    return [kernel.name for kernel in kernels_for(target, given)]


# Each line is one published fact: (target, how a module computes, a kernel that takes it or None).
FACTS = [
    ("cuda-8.0", W4, "Marlin (vLLM)"),
    ("cuda-9.0", W4, "Machete (vLLM)"),
    ("cuda-8.9", use("int4", "group", 32, True), "Marlin (vLLM)"),
    ("cuda-8.0", use("int4", "channel", None, True), "Marlin (vLLM)"),
    ("cuda-8.0", use("int4", "group", 48, True), None),
    ("cuda-8.0", use("int3", "group", 128, True), None),
    ("cuda-8.0", use("int4", "group", 128, False), "Marlin with zero points (vLLM)"),
    ("cuda-8.0", use("int8", "group", 128, False), None),
    ("cuda-8.0", use("int4", "block", 128, True), None),
    ("cuda-8.0", W8A8, "INT8 W8A8 (vLLM, CUTLASS)"),
    ("cuda-10.0", W8A8, None),
    ("cuda-8.9", use("fp8_e4m3", "channel", None, True, "fp8_e4m3 per token, dynamic"), "FP8 W8A8 (vLLM, torchao)"),
    ("cuda-8.0", use("fp8_e4m3", "channel", None, True, "fp8_e4m3 per token, dynamic"), None),
    ("cuda-8.0", use("fp8_e4m3", "channel", None, True), "FP8 Marlin (vLLM)"),
    ("cuda-10.0", use("nvfp4", "group", 16, True, "nvfp4 in groups of 16, dynamic"), "NVFP4 (torchao, CUTLASS)"),
    ("cuda-9.0", use("nvfp4", "group", 16, True, "nvfp4 in groups of 16, dynamic"), None),
    ("cuda-9.0", use("nvfp4", "group", 16, True), "FP4 Marlin (vLLM)"),
    ("cuda-8.0", use("nf4", "group", 64, True), "NF4 (bitsandbytes)"),
    ("x86-amx", W8A8, "INT8 (oneDNN)"),
    ("x86-avx512", use("int4", "group", 32, True), "Q4_0, Q5_0, Q8_0 (llama.cpp)"),
    ("arm", use("int4", "group", 128, True, "int8 asymmetric per token, dynamic"), "INT8 W4A8 (vLLM, KleidiAI)"),
    ("arm", W4, None),
    ("apple", use("int3", "group", 64, False), "affine (MLX)"),
    ("apple", use("int4", "channel", None, True), None),
]


@pytest.mark.parametrize(("target", "given", "kernel"), FACTS)
def test_published_facts(target: str, given: Use, kernel: str | None) -> None:
    found = names(target, given)
    assert kernel in found if kernel else not found


@pytest.mark.parametrize(
    "words",
    [
        "int8 per token, dynamic; columns with |x| >= 6 in full precision",
        "int8 per token with outliers",
        "int8",
        "int8 per column, dynamic",
        "fp8_e4m3 per token, dynamic",
        "int4 per token, dynamic",
    ],
)
def test_inputs_in_other_words_are_other_kernels(words: str) -> None:
    assert names("cuda-9.0", W8A8)
    assert "INT8 W8A8 (vLLM, CUTLASS)" not in names("cuda-9.0", use("int8", "channel", None, True, words))


def test_outliers_in_full_precision_have_a_kernel_of_their_own() -> None:
    given = use("int8", "channel", None, True, "int8 per token, dynamic; columns with |x| >= 6 in full precision")
    assert names("cuda-9.0", given) == ["LLM.int8() (bitsandbytes)"]


USES = st.builds(
    use,
    st.sampled_from(["int2", "int4", "int8", "fp8_e4m3", "nf4", "nvfp4", "mxfp4", "float32", "codebook"]),
    st.sampled_from(["none", "tensor", "channel", "group", "block", "token"]),
    st.sampled_from([None, 16, 32, 48, 64, 128]),
    st.sampled_from([None, True, False]),
    st.sampled_from(["", "int8 per token, dynamic", "fp8_e4m3 per tensor, static (mse)", "something else"]),
)
MODULES = st.lists(st.tuples(st.text(min_size=1, max_size=3), st.integers(0, 1000), USES), max_size=8)


@settings(deadline=None)
@given(st.sampled_from(target_names()), MODULES)
def test_every_weight_is_supported_missing_or_unknown_and_order_does_not_matter(
    target: str, modules: list[tuple[str, int, Use]]
) -> None:
    found, turned = fit(target, modules), fit(target, modules[::-1])
    sizes = {given: sum(n for _, n, other in modules if other == given) for _, _, given in modules}
    lacking = sum(sizes[given] for given in (*found.missing, *found.unknown))
    assert found.total == sum(sizes.values()) == found.supported + lacking
    assert 0 <= found.accelerated <= found.supported
    assert not found.missing.keys() & found.unknown.keys()
    assert (found.supported, found.accelerated, found.total) == (turned.supported, turned.accelerated, turned.total)
    assert {use: sorted(n) for use, n in found.missing.items()} == {u: sorted(n) for u, n in turned.missing.items()}


@settings(deadline=None)
@given(st.sampled_from(target_names()), USES)
def test_a_kernel_takes_exactly_what_its_entry_says(target: str, given: Use) -> None:
    """Beside the look-up, the definition: every entry is compared field by field."""
    words = {
        "None": (None, None),
        "int8 per token, dynamic": ("int8", "token"),
        "fp8_e4m3 per tensor, static (mse)": ("fp8_e4m3", "tensor"),
    }
    wanted, form = [], given.weights
    for kernel in profiles().kernels:
        weights, inputs_taken = kernel.weights, kernel.activations
        if str(given.inputs) not in words or target not in kernel.targets or form.name not in weights.formats:
            continue
        name, per = words[str(given.inputs)]
        same_inputs = (
            inputs_taken is None
            if name is None
            else (
                inputs_taken is not None
                and name in inputs_taken.formats
                and per in inputs_taken.granularities
                and not inputs_taken.outliers
            )
        )
        same_size = form.group_size in weights.group_sizes if form.granularity in ("group", "block") else True
        same_grid = weights.symmetric in (None, form.symmetric)
        if same_inputs and same_size and same_grid and form.granularity in weights.granularities:
            wanted.append(kernel.name)
    assert names(target, given) == wanted


def module(name: str, **fields: Any) -> ModuleFormat:
    plain: dict[str, Any] = {
        "type": "Linear",
        "parameters": 10,
        "stored_bytes": 5,
        "bits_per_weight": 4.0,
        "format": named("float32"),
    }
    return ModuleFormat(module=name, **{**plain, **fields})


def identity(*modules: ModuleFormat, cache: CacheFormat | None = None) -> Identity:
    return Identity(
        name="v", source="v", architecture="A", revision=None, dtype="float32", device="cpu", attention="sdpa",
        parameters=1, weights_sha256="0", config_sha256="0", tokenizer_sha256="0", modules=modules, cache=cache,
    )  # fmt: skip


def quantized(name: str = "int4", size: int = 128) -> dict[str, object]:
    return {"format": named(name, granularity="group", group_size=size, symmetric=True), "backend": "gptq"}


INT4 = quantized()


def test_only_what_compression_touched_counts() -> None:
    kept = [
        module("embed"),
        module("pruned", backend="sparse"),
        module("q", **INT4),
        module("k", activations=INT8_INPUTS),
    ]
    assert [name for name, _, _ in list_compressed(kept)] == ["q", "k"]


def test_notes_name_the_kernels_or_what_is_missing() -> None:
    (said,) = notes("cuda-8.0", identity(module("q", **INT4), module("norm")))
    assert said.level == "info"
    assert "all 1 compressed modules have a kernel (Marlin (vLLM))" in said.text
    assert "long prompts do not get faster" in said.text
    (said,) = notes("cuda-8.0", identity(module("q", **INT4), module("k", **quantized(size=48))))
    assert said.level == "warn"
    assert "int4 in groups of 48 has no kernel (k): Marlin (vLLM) takes symmetric int4" in said.text
    assert "groups of 32, 64 or 128" in said.text
    (said,) = notes("cuda-8.0", identity(module("q", format=named("int32"), backend="gptq")))
    assert "details are unknown" in said.text
    assert notes("cuda-8.0", identity(module("q"))) == []
    (said,) = notes("cuda-8.0", identity(module("q", **quantized("int3"))))
    assert "no kernel for int3 weights on cuda-8.0 is known" in said.text


def test_many_formats_are_counted() -> None:
    modules = [module(f"m{size}", **quantized(size=size)) for size in (3, 5, 7, 9, 11)]
    texts = [note.text for note in notes("cuda-8.0", identity(*modules))]
    assert len(texts) == 4
    assert texts[-1] == "cuda-8.0: 2 more formats have no known kernel"


def test_caches() -> None:
    def cache(keys: str, values: str, **fields: Any) -> CacheFormat:
        more: dict[str, Any] = {"bits_per_value": 8.0, "residual": 0, "backend": "kv_cache"} | fields
        return CacheFormat(keys=inputs(keys), values=inputs(values), **more)

    bare = "fp8_e4m3 without scales"
    plain = cache(bare, bare)
    assert cache_kernel("cuda-9.0", plain)
    assert not cache_kernel("x86-amx", plain)
    assert notes("cuda-9.0", identity(cache=plain)) == []
    for other in (
        cache(bare, bare, residual=32),
        cache("int4 affine per channel, groups of 32 tokens", bare),
        cache("fp8_e4m3 per tensor", bare),
        cache(bare, bare, skipped_layers=(0,)),
    ):
        assert not cache_kernel("cuda-9.0", other)
        (said,) = notes("cuda-9.0", identity(cache=other))
        assert "no known kernel (available: FP8 KV cache (vLLM): fp8_e4m3 or fp8_e5m2 without scales" in said.text
    assert "available: none" in notes("arm", identity(cache=plain))[0].text


def test_a_reason_names_the_first_kernels_and_counts_the_rest() -> None:
    reason = explain_missing("cuda-8.9", use("int8", "group", 48, True))
    first = [kernel.name for kernel in profiles().kernels if kernel.name.startswith(("Marlin (", "INT8 W8A8", "LLM"))]
    assert all(f"{name} takes symmetric int8 per" in reason for name in first)
    assert reason.endswith("; and 1 more"), "Q8_0 of llama.cpp"
    assert "with int8 inputs per token, outliers in full precision" in reason
