"""Words for number formats in run.json of schema 1, which become records when a file is read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from harness.records import FLOATS, CacheFormat, NumberFormat
from harness.records.schema_1_formats import parse_format, parse_name, upgrade_identity
from harness.write import read_run

OLD = Path(__file__).parent / "schema_1_formats.json"
"""A run.json that the last version of schema 1 wrote, without measurements and with four modules a side."""

NAMES = [
    ("int4", "int", 4, ""), ("int32", "int", 32, ""), ("uint8", "int", 8, "uint8"), ("float32", "float", 32, ""),
    ("bfloat16", "float", 16, "bfloat16"), ("float8_e4m3fn", "float", 8, "float8_e4m3fn"),
    ("fp8_e4m3", "float", 8, "fp8_e4m3"), ("fp4", "float", 4, "fp4"), ("fp4_e2m1", "float", 4, "fp4_e2m1"),
    ("mxfp8_e5m2", "float", 8, "mxfp8_e5m2"), ("nvfp4", "float", 4, "nvfp4"), ("nf4", "codebook", 4, "nf4"),
    ("codebook3", "codebook", 3, ""), ("codebook3+sparse", "codebook", 3, ""), ("Q4_K", "int", 4, "Q4_K"),
    ("MXFP4", "float", 4, "MXFP4"), ("IQ2_XXS", "other", None, "IQ2_XXS"), ("mine", "other", None, "mine"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "bits", "element"), NAMES)
def test_names_become_fields_and_the_fields_the_same_name(name: str, kind: str, bits: int | None, element: str) -> None:
    form = NumberFormat(**parse_name(name))
    assert (form.type, form.bits, form.element, form.name) == (kind, bits, element, name)


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("int8 per token, dynamic", None),
        ("int8 asymmetric per tensor, dynamic", "asymmetric int8 per tensor, dynamic"),
        ("int4 per tensor, static (percentile 95)", None),
        ("int8 per tensor, static (min_max)", None),
        ("fp8_e4m3 per tensor, static", None),
        ("mxfp8_e4m3 in groups of 32, dynamic", None),
        ("nvfp4 per group of 16, dynamic", "nvfp4 in groups of 16, dynamic"),
        ("int8 per token, dynamic; columns with |x| >= 6.0 in full precision",
         "int8 per token, dynamic; columns with |x| >= 6 in full precision"),
        ("int4 affine per channel, groups of 32 tokens", "asymmetric int4 per channel in groups of 32 tokens"),
        ("int8 symmetric per token, a whole head", "int8 per token and head"),
        ("fp8_e5m2 without scales", None),
        ("rounded by my own plugin", None),
    ],
)  # fmt: skip
def test_words_of_schema_1_are_read(words: str, now: str | None) -> None:
    form = NumberFormat(**parse_format(words))
    assert str(form) == (now or words)
    assert (form.type == "other") == words.startswith("rounded")


def test_a_run_of_schema_1_is_read_with_its_formats() -> None:
    old, run = json.loads(OLD.read_text()), read_run(OLD)
    before = {module["module"]: module for module in old["variant"]["modules"]}
    after = {module.module: module for module in run.variant.modules}
    assert before.keys() == after.keys()
    query = after["model.layers.0.self_attn.q_proj"]
    assert query.format == NumberFormat(
        type="int", bits=4, symmetric=True, granularity="group", group_size=32, ranges="min_max"
    )
    assert query.activations == NumberFormat(type="int", bits=8, granularity="token", dynamic=True)
    assert (query.distinct_values, query.gemm_kind) == (before[query.module]["levels"], "")
    assert {module.format for module in run.reference.modules} == {FLOATS["float32"]}
    assert all(module.activations is None for module in run.reference.modules)
    same = ("type", "parameters", "stored_bytes", "bits_per_weight", "kernel", "backend", "role")
    for name, module in after.items():
        assert {key: getattr(module, key) for key in same} == {key: before[name][key] for key in same}


def test_a_cache_of_schema_1_is_read() -> None:
    words = " (not in layers 0, 2)"
    cache: dict[str, Any] = {"keys": f"int4 affine per channel, groups of 32 tokens{words}", "residual": 32}
    cache |= {"values": f"float32{words}", "bits_per_value": 18.5, "kernel": "simulated", "backend": "kv_cache"}
    identity = {"cache": cache}
    upgrade_identity(identity)
    found = CacheFormat.model_validate_json(json.dumps(identity["cache"]))
    assert found.skipped_layers == (0, 2)
    assert (found.keys.name, found.keys.group_size, found.keys.symmetric) == ("int4", 32, False)
    assert found.values.name == "float32"


@pytest.mark.parametrize("identity", [{}, {"modules": 3}, {"modules": [3, {"format": 3}]}, {"cache": {"keys": 1}}])
def test_what_is_no_identity_is_left_for_validation(identity: dict[str, Any]) -> None:
    before = copy.deepcopy(identity)
    upgrade_identity(identity)
    assert identity == before
