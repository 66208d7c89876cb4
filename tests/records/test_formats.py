"""The record of a number format: its name, its words, and that it is closed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.records import FLOATS, CacheFormat, NumberFormat

WORDS: list[tuple[dict[str, Any], str]] = [
    ({"type": "int", "bits": 4, "granularity": "group", "group_size": 32}, "int4 in groups of 32"),
    ({"type": "int", "bits": 8, "symmetric": False, "granularity": "channel"}, "asymmetric int8 per channel"),
    ({"type": "int", "bits": 4, "granularity": "block", "group_size": 128}, "int4 in blocks of 128"),
    ({"type": "float", "bits": 8, "element": "fp8_e4m3", "granularity": "tensor", "dynamic": True},
     "fp8_e4m3 per tensor, dynamic"),
    ({"type": "int", "bits": 8, "granularity": "tensor", "dynamic": False}, "int8 per tensor, static"),
    ({"type": "int", "bits": 8, "granularity": "tensor", "dynamic": False, "ranges": "percentile", "percentile": 99.9},
     "int8 per tensor, static (percentile 99.9)"),
    ({"type": "int", "bits": 8, "granularity": "token", "dynamic": True, "outliers": 6.0},
     "int8 per token, dynamic; columns with |x| >= 6 in full precision"),
    ({"type": "int", "bits": 2, "symmetric": False, "granularity": "channel", "group_size": 32},
     "asymmetric int2 per channel in groups of 32 tokens"),
    ({"type": "int", "bits": 2, "granularity": "token", "group_size": 32}, "int2 per token in groups of 32 channels"),
    ({"type": "int", "bits": 8, "granularity": "head"}, "int8 per token and head"),
    ({"type": "float", "bits": 8, "element": "fp8_e5m2", "scales": "none"}, "fp8_e5m2 without scales"),
    ({"type": "codebook", "bits": 4, "granularity": "channel", "sparse": True}, "codebook4+sparse per channel"),
    ({"type": "int", "bits": 4, "element": "Q4_K", "granularity": "group", "group_size": 32}, "Q4_K in groups of 32"),
    ({"type": "other", "element": "IQ2_XXS"}, "IQ2_XXS"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), WORDS)
def test_words_are_made_from_the_fields(fields: dict[str, Any], words: str) -> None:
    assert str(NumberFormat(**fields)) == words


def test_full_precision_starts_at_sixteen_bits() -> None:
    assert {name: each.name for name, each in FLOATS.items()} == {name: name for name in FLOATS}
    assert all(each.full_precision for each in FLOATS.values())
    assert not NumberFormat(type="float", bits=8, element="fp8_e4m3").full_precision
    assert not NumberFormat(type="int", bits=32).full_precision


@pytest.mark.parametrize("fields", [{"type": "int4"}, {"type": "int", "bits": 0}, {"type": "int", "axis": 0}, {}])
def test_the_record_is_closed(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NumberFormat(**fields)


def test_a_cache_says_what_stays_in_full_precision() -> None:
    bare = NumberFormat(type="float", bits=8, element="fp8_e4m3", scales="none")
    cache = CacheFormat(
        keys=bare, values=FLOATS["bfloat16"], bits_per_value=12.0, residual=32, skipped_layers=(0, 3), backend="mine"
    )
    assert str(cache) == (
        "keys fp8_e4m3 without scales; values bfloat16; the newest 32 tokens in full precision; "
        "layers 0, 3 in full precision"
    )
