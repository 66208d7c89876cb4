"""The table of weights: bytes, formats, the KV cache and the peak."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from harness.backends.kv_cache import KvCache
from harness.backends.round_to_nearest import RoundToNearest
from harness.measures.hardware import Hardware
from harness.measures.memory import Memory
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.modules import weight_errors
from harness.plan import load_suite
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes import Context
from harness.probes.weights import Weights, _compare, _list_experts
from harness.records import FLOATS, CacheFormat, Measurement, ModelSpec, ModuleFormat, NumberFormat
from harness.rules.at_most import AtMost
from harness.running.variant import make_variant
from tests.helpers.number_formats import inputs
from tests.helpers.tiny_models import family, save, tiny_gpt2, tiny_llama

ERRORS = [
    "compressed",
    "paired",
    "relative_error",
    "rounding_error",
    "explained_error",
    "retrained",
    "compared",
    "error_note",
]
COLUMNS = ["side", *ModuleFormat.model_fields, "cache", "zeros", "pattern", *ERRORS]


class FrameSink:
    """A sink that keeps frames."""

    def __init__(self) -> None:
        self.frames: dict[str, Mapping[str, pd.DataFrame]] = {}

    def done(self, unit: str) -> bool:
        return unit in self.frames

    def commit(self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: object = None) -> None:
        assert unit not in self.frames
        assert snapshots is None
        self.frames[unit] = frames

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        raise AssertionError("no unit of weights builds on another")

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        raise AssertionError("no unit of weights builds on another")


class Silent:
    """A progress that says nothing."""

    def step(self, what: str, done: int, of: int) -> None:
        """Nothing."""


def plan_of(folder: Path, **fields: Any) -> Plan:
    rule = AtMost(metric="memory.weight_bytes", limit=1.0, why="any")
    return Plan(
        name="tiny",
        source="variant.yaml",
        reference=ModelSpec(model=str(folder)),
        variant=VariantSpec(compress=(RoundToNearest(**fields),)),
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),)),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),)),),
    )


def observe(reference: LoadedModel, *variants: LoadedModel) -> list[pd.DataFrame]:
    sinks = [FrameSink() for _ in variants]
    Weights(errors=True).observe(Context(reference, variants, sinks, Silent()))
    return [sink.frames["weights"]["weights"] for sink in sinks]


def cells(rows: pd.DataFrame, row: str, *columns: str) -> list[Any]:
    found: Any = rows.loc[row, list(columns)]
    return list(found.tolist())


def measure_hardware(table: pd.DataFrame) -> dict[str, Measurement]:
    """On a GPU of compute capability 8.0."""
    measured = {}
    for entry in Hardware(target="cuda-8.0").measure(table):
        assert isinstance(entry, Measurement)
        measured[entry.name] = entry
    return measured


@pytest.fixture
def reference(tmp_path: Path) -> LoadedModel:
    return load(ModelSpec(model=str(save(tiny_llama(), tmp_path / "model"))), "reference")


def test_both_sides_have_every_module_and_the_declared_columns(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(plan_of(tmp_path / "model", bits=4), reference, ())
    (table,) = observe(reference, variant)
    assert list(table.columns) == COLUMNS
    assert [str(table.dtypes[name]) for name in ("parameters", "stored_bytes", "bits_per_weight")] == [
        "int64", "int64", "float64",
    ]  # fmt: skip
    assert str(table.dtypes["distinct_values"]) == "Int64"
    expected = {
        *(f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkvo"),
        *(f"model.layers.{i}.mlp.{name}_proj" for i in (0, 1) for name in ("gate", "up", "down")),
        *(f"model.layers.{i}.{name}_layernorm" for i in (0, 1) for name in ("input", "post_attention")),
        *("model.embed_tokens", "model.norm", "lm_head", "kv_cache"),
    }
    for side in ("reference", "variant"):
        modules = table[table.side == side].module
        assert set(modules) == expected
        assert modules.is_unique


def test_bytes_are_counted_from_the_definition(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(plan_of(tmp_path / "model", bits=4, group_size=32), reference, ())
    (table,) = observe(reference, variant)
    sums = table[table.type != "kv_cache"].groupby("side")[["parameters", "stored_bytes"]].sum()
    total = tiny_llama().num_parameters()
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 112)
    assert sums.parameters.tolist() == [total, total]
    assert sums.loc["reference", "stored_bytes"] == 4 * total
    # 112 inputs of down_proj are three groups and a half.
    scales = 2 * (2 * 64 * 2 + 2 * 32 * 2 + 2 * 112 * 2 + 64 * 4)
    assert sums.loc["variant", "stored_bytes"] == 4 * (total - linear) + linear / 2 + 2 * scales
    row = table[(table.side == "variant") & (table.module == "model.layers.0.mlp.up_proj")].iloc[0]
    form = NumberFormat.model_validate_json(row.format)
    assert (form.name, form.granularity, form.group_size, form.symmetric) == ("int4", "group", 32, True)
    assert (row.kernel, row.backend, row.bits_per_weight) == ("simulated", "round_to_nearest", 4.5)
    row = table[(table.side == "variant") & (table.module == "model.norm")].iloc[0]
    assert (row.kernel, row.bits_per_weight, row.activations, row.cache) == ("real", 32.0, "", "")
    assert NumberFormat.model_validate_json(row.format) == FLOATS["float32"]


def test_errors_of_weights_stand_beside_the_formats(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(plan_of(tmp_path / "model", bits=3, granularity="channel"), reference, ())
    (table,) = observe(reference, variant)
    rows = table[table.side == "variant"].set_index("module")
    name = "model.layers.1.mlp.gate_proj"
    before, after = (loaded.model.get_parameter(f"{name}.weight") for loaded in (reference, variant))
    assert rows.loc[name, "relative_error"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    assert cells(rows, name, "compared", "error_note") == [1.0, ""]
    assert rows.loc["lm_head", "relative_error"] == 0.0
    others = rows[~rows.role.isin(["linear", "head"])]
    assert others.relative_error.isna().all()
    assert table[table.side == "reference"].relative_error.isna().all()


def test_a_head_that_was_untied_is_counted_on_its_own(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(plan_of(tmp_path / "model", bits=8, granularity="channel", skip=()), reference, ())
    (table,) = observe(reference, variant)
    heads = table[table.module == "lm_head"].set_index("side")
    assert cells(heads, "reference", "type", "stored_bytes") == ["Linear (shared)", 0]
    assert cells(heads, "variant", "type", "stored_bytes") == ["Linear", 96 * 64 + 96 * 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_measured_by_token(dtype: Literal["float32", "bfloat16"], tmp_path: Path) -> None:
    size = {"float32": 4, "bfloat16": 2}[dtype]
    for model, expected in ((tiny_llama(), 2 * 2 * 2 * 16 * size), (tiny_gpt2(), 2 * 2 * 48 * size)):
        folder = save(model, tmp_path / type(model).__name__)
        loaded = load(ModelSpec(model=str(folder), dtype=dtype), "reference")
        (table,) = observe(loaded, loaded)
        rows = table[table.module == "kv_cache"]
        assert rows.type.tolist() == ["kv_cache", "kv_cache"]
        assert rows.stored_bytes.tolist() == [expected, expected]
        assert [NumberFormat.model_validate_json(each) for each in rows.format] == [FLOATS[dtype]] * 2


def test_a_compressed_cache_says_how_it_is_kept(reference: LoadedModel) -> None:
    """For the measure that looks up kernels: the dtype of the tensors that simulate it says nothing."""
    kept = CacheFormat(
        keys=inputs("int4 affine per channel, groups of 32 tokens"), values=inputs("int8 per token, a whole head"),
        bits_per_value=6.0, residual=32, kernel="simulated", backend="kv_cache",
    )  # fmt: skip
    variant = replace(reference, identity=reference.identity.model_copy(update={"cache": kept}))
    (table,) = observe(reference, variant)
    rows = table[table.module == "kv_cache"].set_index("side")
    assert cells(rows, "reference", "cache", "kernel", "backend") == ["", "real", ""]
    assert cells(rows, "variant", "kernel", "backend") == ["simulated", "kv_cache"]
    assert CacheFormat.model_validate_json(str(rows.loc["variant", "cache"])) == kept
    assert str(kept) == (
        "keys asymmetric int4 per channel in groups of 32 tokens; values int8 per token and head; "
        "the newest 32 tokens in full precision"
    )


def test_the_table_is_what_the_hardware_measure_reads(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make_variant(plan_of(tmp_path / "model", bits=4, group_size=32), reference, ())
    (table,) = observe(reference, variant)
    found = measure_hardware(table)
    assert found["hardware.supported"].variant == 1.0
    assert found["hardware.supported"].n == 14, "seven linear layers in each of two blocks"
    assert found["hardware.cache_supported"].variant == 1.0
    variant = make_variant(plan_of(tmp_path / "model", bits=3), reference, ())
    (table,) = observe(reference, variant)
    found = measure_hardware(table)
    assert found["hardware.supported"].variant == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_simulated_cache_takes_the_bits_of_its_format(dtype: Literal["float32", "bfloat16"], tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    plan = plan_of(folder, bits=8).model_copy(
        update={"variant": VariantSpec(compress=(KvCache(key_bits=2, value_bits=4),))}
    )
    reference = load(ModelSpec(model=str(folder), dtype=dtype), "reference")
    (table,) = observe(reference, make_variant(plan, reference, ()))
    rows = table[table.module == "kv_cache"].set_index("side")
    floats = 2 * 2 * 2 * 16
    # A scale and an offset of 16 bits: for 32 tokens of a key channel, for the 16 value channels of a head.
    codes, steps = floats / 2 * (2 + 4), floats / 2 * (32 / 32 + 32 / 16)
    assert rows.loc["variant", "stored_bytes"] == (codes + steps) / 8
    assert cells(rows, "variant", "kernel", "backend", "type") == ["simulated", "kv_cache", "kv_cache"]
    kept = CacheFormat.model_validate_json(str(rows.loc["variant", "cache"]))
    assert (kept.keys.name, kept.keys.granularity, kept.values.name) == ("int2", "channel", "int4")
    size = {"float32": 4, "bfloat16": 2}[dtype]
    assert cells(rows, "reference", "stored_bytes", "cache", "kernel") == [floats * size, "", "real"]
    one = KvCache(bits=3, group_size=7)  # 3 bits, 32 / 7 and 32 · 3 / 16 bits of scales and offsets
    plan = plan.model_copy(update={"variant": VariantSpec(compress=(one,))})
    (table,) = observe(reference, make_variant(plan, reference, ()))
    bits = floats / 2 * (3 + 32 / 7 + 3 + 6)
    found = table[(table.module == "kv_cache") & (table.side == "variant")].stored_bytes.item()
    assert bits / 8 <= found < bits / 8 + 1


def test_a_sliding_window_does_not_hide_the_dtype_of_its_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MistralConfig(**tiny_llama().config.to_diff_dict() | {"model_type": "mistral", "sliding_window": 8})
    folder = save(MistralForCausalLM(config).eval(), tmp_path / "model")
    loaded = load(ModelSpec(model=str(folder)), "reference")
    (table,) = observe(loaded, loaded)
    rows = table[table.module == "kv_cache"]
    assert [NumberFormat.model_validate_json(each) for each in rows.format] == [FLOATS["float32"]] * 2
    assert rows.stored_bytes.tolist() == [2 * 2 * 2 * 16 * 4] * 2


def test_there_is_a_peak_on_cuda_only(reference: LoadedModel, tmp_path: Path) -> None:
    (table,) = observe(reference, reference)
    assert "peak" not in set(table.type)
    if not torch.cuda.is_available():
        return
    spec = ModelSpec(model=str(tmp_path / "model"), device="cuda")
    first, second = load(spec, "reference"), load(spec, "variant")
    (table,) = observe(first, second)
    peaks = table[table.type == "peak"].set_index("side").stored_bytes
    weights = sum(module.stored_bytes for module in first.identity.modules)
    assert weights < peaks["reference"] < weights + 2**28
    assert peaks["reference"] == pytest.approx(peaks["variant"], rel=0.05)


def test_a_variant_that_is_done_is_not_observed_again(reference: LoadedModel) -> None:
    ready, fresh = FrameSink(), FrameSink()
    ready.frames["weights"] = {}
    Weights().observe(Context(reference, [reference, reference], [ready, fresh], Silent()))
    assert ready.frames["weights"] == {}
    assert set(fresh.frames["weights"]["weights"].side) == {"reference", "variant"}


@pytest.mark.parametrize("name", ["mixtral", "listed_experts"])
def test_the_error_of_each_expert_is_that_of_its_own_weights(name: str) -> None:
    reference, variant = family(name), copy.deepcopy(family(name))
    place = "model.layers.1.mlp.experts"
    experts: Any = variant.get_submodule(place)
    weight = experts.down_proj.data[2] if name == "mixtral" else experts[2].down_proj.weight.data
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.add_(noise * 0.25 * weight.norm() / noise.norm())
    found, pairs = _compare(side_of(reference), side_of(variant))
    table = _list_experts(found, pairs)
    matrices = ["down_proj", "gate_up_proj"] if name == "mixtral" else ["down_proj", "gate_proj", "up_proj"]
    assert sorted(set(table["matrix"])) == matrices
    assert len(table) == 2 * 4 * len(matrices)
    errors = table.set_index(["module", "expert", "matrix"])["relative_error"]
    assert errors[place, 2, "down_proj"] == pytest.approx(0.25, rel=1e-5)
    assert (errors.drop((place, 2, "down_proj")) == 0).all()


def side_of(model: Any) -> Any:
    return SimpleNamespace(
        model=model, language_model=SimpleNamespace(modules=model), layers=None, identity=SimpleNamespace(modules=())
    )


def test_experts_have_a_table_and_dense_models_have_none(tmp_path: Path, reference: LoadedModel) -> None:
    mixture = load(ModelSpec(model=str(save(family("mixtral"), tmp_path / "mixtral"))), "reference")
    for loaded, tables in ((mixture, {"weights", "expert_weights"}), (reference, {"weights"})):
        sink = FrameSink()
        Weights(errors=True).observe(Context(loaded, [loaded], [sink], Silent()))
        assert set(sink.frames["weights"]) == tables


def test_weights_are_compared_where_a_measure_asks_and_nowhere_else(
    reference: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[object] = []

    def count(*given: Any) -> Any:
        compared.append(given)
        return compare(*given)

    compare = weight_errors.weight_errors
    monkeypatch.setattr(weight_errors, "weight_errors", count)
    variant = make_variant(plan_of(tmp_path / "model", bits=4), reference, ())
    tables = []
    for number, measures in enumerate(("[memory, hardware]", "[memory, weight_error]")):
        (tmp_path / "asked.yaml").write_text(f"description: about weights\nmeasures: {measures}\n")
        (probe,) = (each for each in load_suite("./asked.yaml", tmp_path).probes if each.kind == "weights")
        sink = FrameSink()
        probe.observe(Context(reference, [variant], [sink], Silent()))
        assert len(compared) == number
        tables.append(sink.frames["weights"]["weights"])
    without, paired = tables
    assert list(without) == list(paired)
    assert not without["paired"].any()
    assert without["relative_error"].isna().all()
    assert (paired[paired["compressed"]]["relative_error"] > 0).all()
    assert Memory().measure(without) == Memory().measure(paired)
