"""A variant holds what its steps changed, and the memory of the reference for the rest."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from harness.backends.awq import Awq
from harness.backends.round_to_nearest import RoundToNearest
from harness.models.identity import weights_sha256
from harness.modules.linears import linears
from harness.testing.models import tiny_llama
from harness.testing.trials import as_variant, calibration_for
from tests.helpers.tiny_models import family


def places(model: nn.Module) -> dict[str, int]:
    return {name: each.data_ptr() for name, each in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_what_no_step_changes_is_held_once(tied: bool) -> None:
    reference: Any = tiny_llama(tied=tied)
    before = weights_sha256(reference)
    variant = as_variant(RoundToNearest(bits=4, skip=("lm_head", "*.up_proj")), reference, ()).model
    old, new = places(reference), places(variant)
    rounded = {f"{name}.weight" for name, _ in linears(reference) if not name.endswith(("lm_head", "up_proj"))}
    assert rounded
    assert {name for name in old if new[name] != old[name]} == rounded
    own: dict[str, nn.Parameter] = dict(variant.named_parameters())
    assert not any(own[name] is each for name, each in reference.named_parameters())
    assert (variant.lm_head.weight is variant.model.embed_tokens.weight) == tied
    assert weights_sha256(reference) == before


def test_a_step_that_writes_into_its_model_gets_a_whole_copy() -> None:
    reference, step = tiny_llama(), Awq(bits=4)
    variant = as_variant(step, reference, calibration_for(step)).model
    assert not set(places(reference).values()) & set(places(variant).values())


def test_stacked_experts_are_copied_since_every_step_writes_into_them() -> None:
    reference = family("mixtral")
    before = weights_sha256(reference)
    variant = as_variant(RoundToNearest(bits=4), reference, ()).model
    assert weights_sha256(reference) == before != weights_sha256(variant)
    old, new = places(reference), places(variant)
    assert old["model.embed_tokens.weight"] == new["model.embed_tokens.weight"]
