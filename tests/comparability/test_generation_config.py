"""What a folder makes servers sample with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.folders import Pair

GENERATION = "generation_config.json"


@pytest.mark.parametrize(
    ("new", "field", "before", "after"),
    [
        ({"repetition_penalty": 1.8}, "repetition_penalty", "1.0", "1.8"),
        ({"suppress_tokens": [4, 5]}, "suppress_tokens", "none", "[4, 5]"),
        ({"max_new_tokens": 16}, "max_new_tokens", "none", "16"),
    ],
)
def test_a_default_that_one_side_states_is_a_difference(
    tmp_path: Path, new: dict[str, Any], field: str, before: str, after: str
) -> None:
    pair = Pair(tmp_path)
    pair.edit(GENERATION, **new)
    (found,) = pair.find("generation_config")
    assert (found.field, found.reference, found.variant, found.severity) == (field, before, after, "at_once")


def test_a_default_that_is_written_out_is_none(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.edit(GENERATION, temperature=1.0, top_k=50, do_sample=False, use_cache=True, transformers_version="4.40.0")
    assert pair.compare().comparable == "yes"
    assert not pair.find("generation_config")
