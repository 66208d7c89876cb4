"""Shares of weights with a kernel: exact, never from a format that is not in the table, never out of nothing."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.judge import judge
from harness.measures.hardware import Hardware
from harness.numerics.hardware.profiles import target_names
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import CacheFormat, Measurement, Skipped
from harness.records.conclusion import overall
from harness.rules.at_least import AtLeast
from tests.helpers.number_formats import INT8_INPUTS, inputs, named
from tests.helpers.results import measurement, with_skipped


def json(name: str, **fields: Any) -> str:
    return named(name, **fields).model_dump_json(exclude_defaults=True)


def int4(size: int = 128) -> dict[str, Any]:
    return {"format": json("int4", granularity="group", group_size=size, symmetric=True), "backend": "gptq"}


PLAIN = {
    "side": "variant", "type": "Linear", "parameters": 100, "format": json("float32"), "activations": "", "backend": "",
    "cache": "",
}  # fmt: skip
INT4 = int4()
INT8 = {"format": json("int8", granularity="channel", symmetric=True), "backend": "rtn"}
ROUNDED = INT8_INPUTS.model_dump_json(exclude_defaults=True)
CACHE = {"type": "kv_cache", "parameters": 0, "module": "kv_cache"}


def table(*rows: dict[str, Any], cache: dict[str, Any] | None = None) -> pd.DataFrame:
    """The variant's modules, the same ones in floats on the reference's side, and the cache of both."""
    named = [PLAIN | {"module": f"m{index}"} | row for index, row in enumerate(rows)]
    reference = [PLAIN | {"module": row["module"], "side": "reference"} for row in named]
    caches = [PLAIN | CACHE | (cache or {}), PLAIN | CACHE | {"side": "reference"}]
    frame = pd.DataFrame([*reference, *named, *caches])
    return frame.astype({"parameters": "int64"})


def by_metric(target: str | None, frame: pd.DataFrame) -> dict[str, Measurement | Skipped]:
    return with_skipped(Hardware(target=target).measure(frame))


def test_shares_count_parameters_of_compressed_modules_only() -> None:
    frame = table(INT4, int4(48) | {"parameters": 300}, {"parameters": 5000})
    found = by_metric("cuda-9.0", frame)
    supported = measurement(found["hardware.supported"])
    accelerated = measurement(found["hardware.accelerated"])
    assert supported.variant == supported.change == supported.low == supported.high == 0.25
    assert supported.variant_low == supported.variant_high == 0.25
    assert supported.n == 2
    assert supported.labels == {"target": "cuda-9.0", "without": "int4 in groups of 48"}
    assert supported.method.startswith("exact")
    assert "int4 in groups of 48 has no kernel (m1)" in supported.method
    assert accelerated.variant == 0.0
    assert supported.neutral == 1.0


def test_kernels_that_compute_in_few_bits() -> None:
    eight = INT8 | {"activations": ROUNDED}
    found = by_metric("cuda-9.0", table(INT4, eight))
    assert measurement(found["hardware.supported"]).variant == 1.0
    assert measurement(found["hardware.accelerated"]).variant == 0.5
    assert found["hardware.supported"].labels == {"target": "cuda-9.0"}
    assert measurement(by_metric("cuda-10.0", table(eight))["hardware.supported"]).variant == 0.0


def test_inputs_alone_have_no_kernel() -> None:
    found = by_metric("cuda-9.0", table({"activations": ROUNDED}))
    assert measurement(found["hardware.supported"]).variant == 0.0


@pytest.mark.parametrize(
    ("target", "frame", "reason"),
    [
        (None, table(INT4), "target: cuda-9.0"),
        ("cuda-9.0", table({}), "no weight is compressed"),
        ("cuda-9.0", table({"format": json("int32"), "backend": "gptq"}), "details are unknown"),
        ("cuda-9.0", table(INT4, {"format": json("uint8"), "backend": "bitsandbytes"}), "details are unknown"),
        ("cuda-9.0", table(INT4).query("side == 'reference'"), "no weights were listed"),
        ("cuda-9.0", table(INT4 | {"parameters": 0}), "no weight is compressed"),
    ],
)
def test_nothing_to_tell_is_skipped_with_the_reason(target: str | None, frame: pd.DataFrame, reason: str) -> None:
    skipped = by_metric(target, frame)["hardware.supported"]
    assert isinstance(skipped, Skipped)
    assert reason in skipped.reason


def test_caches() -> None:
    def share(**kept: Any) -> Measurement:
        return measurement(by_metric("cuda-9.0", table(INT4, cache=kept))["hardware.cache_supported"])

    def kept(residual: int) -> str:
        bare = inputs("fp8_e4m3 without scales")
        return CacheFormat(
            keys=bare, values=bare, bits_per_value=8.0, residual=residual, backend="kv_cache"
        ).model_dump_json()

    assert share().variant == 1.0
    assert share(cache=kept(0), backend="kv_cache").variant == 1.0
    lacking = share(cache=kept(32), backend="kv_cache")
    assert lacking.variant == 0.0
    assert "32 tokens" in lacking.labels["without"]
    frame = table(INT4)
    assert isinstance(by_metric("arm", frame[frame["type"] != "kv_cache"])["hardware.cache_supported"], Skipped)


def test_the_target_of_the_variant_counts_unless_the_suite_names_one() -> None:
    assert Hardware().with_target("arm") == Hardware(target="arm")
    assert Hardware(target="apple").with_target("arm") == Hardware(target="apple")
    assert Hardware().with_target(None) == Hardware()
    assert Hardware().obstacle()
    assert not Hardware(target="arm").obstacle()
    with pytest.raises(ValidationError, match=r"did you mean cuda-9\.0"):
        Hardware(target="cuda9.0")


def verdict_of(measure: Hardware, frame: pd.DataFrame) -> str:
    rule = AtLeast(metric="hardware.supported", limit=1.0, why="all of it needs a kernel there")
    gate = GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),))
    found = measure.measure(frame)
    measured = [entry for entry in found if isinstance(entry, Measurement)]
    skipped = [entry for entry in found if isinstance(entry, Skipped)]
    return overall(judge([gate], measured, skipped, identical=False))[0]


def test_a_gate_passes_only_what_has_kernels_throughout() -> None:
    measure = Hardware(target="cuda-9.0")
    assert verdict_of(measure, table(INT4)) == "pass"
    assert verdict_of(measure, table(INT4, int4(48) | {"parameters": 1})) == "fail"
    assert verdict_of(measure, table(INT4, {"format": json("int32"), "backend": "gptq"})) == "error"
    assert verdict_of(measure, table({})) == "error"
    assert verdict_of(Hardware(), table(INT4)) == "error"


FORMATS = st.builds(
    json,
    st.sampled_from(["int2", "int4", "int8", "fp8_e4m3", "nf4", "int32", "float32"]),
    granularity=st.sampled_from(["none", "tensor", "channel", "group"]),
    group_size=st.sampled_from([None, 32, 48, 64]),
    symmetric=st.sampled_from([None, True, False]),
)
ROWS = st.fixed_dictionaries({
    "format": FORMATS,
    "activations": st.sampled_from(["", ROUNDED, json("what is this")]),
    "backend": st.sampled_from(["", "rtn"]),
    "parameters": st.integers(0, 50),
})  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(target_names()), st.lists(ROWS, min_size=1, max_size=5), ROWS)
def test_a_module_more_without_a_kernel_never_turns_fail_into_pass(target: str, rows: Any, other: Any) -> None:
    """Whatever is added: full support of the whole needs full support of every part."""
    measure = Hardware(target=target)
    if verdict_of(measure, table(*rows, other)) == "pass":
        assert verdict_of(measure, table(*rows)) in ("pass", "error"), "error: nothing compressed is left"
