"""A step that changes, or says that it changed, what no pass uses is an error of that step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backends import Backend, Compressed
from harness.errors import BackendError
from harness.models.loaded import LoadedModel
from harness.plugins import load
from harness.testing.trials import as_variant, calibration_for, logits
from tests.helpers.checked_folders import with_tower
from tests.helpers.hybrids import hybrid
from tests.helpers.tiny_models import family

DT = "backbone.layers.{}.mixer.dt_proj"
TOWER = "model.vision_tower"


def make(model: Any, kind: str, *after: Backend, **settings: Any) -> LoadedModel:
    chosen: Any = load(Backend, kind)
    step = chosen(**settings)
    for library in step.requires:
        pytest.importorskip(library)
    return as_variant(step, model, calibration_for(step), after)


def suggested(error: pytest.ExceptionInfo[BackendError]) -> tuple[str, ...]:
    """The patterns that the message says to skip."""
    found = re.search(r"skip: \[(.+)\]$", str(error.value))
    assert found
    return tuple(part.strip("'") for part in found[1].split(", "))


def tower() -> Any:
    torch.manual_seed(0)
    return with_tower().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["round_to_nearest", "gptq", "awq"])
def test_a_step_on_a_weight_that_is_read_without_a_call_acts(kind: str) -> None:
    model = hybrid("mamba")
    made = make(model, kind, bits=4, only=("*.dt_proj",))
    assert [m.module for m in made.identity.modules if m.backend] == [DT.format(0), DT.format(1)]
    assert not torch.equal(logits(made.model), logits(model))


@pytest.mark.parametrize(("kind", "settings"), [("activations", {"bits": 8}), ("llm_int8", {})])
def test_inputs_of_a_layer_that_is_never_called_cannot_be_rounded(kind: str, settings: dict[str, Any]) -> None:
    expected = (
        f"{kind}: 2 modules ({DT.format(0)}, {DT.format(1)}) are never called: the model reads the weight and "
        f"multiplies itself, so no input is rounded there; leave it out with skip: ['lm_head', '{DT.format('*')}']"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(expected)}$") as error:
        make(hybrid("mamba"), kind, **settings)
    made = make(hybrid("mamba"), kind, **settings, skip=suggested(error))
    rounded = {m.module for m in made.identity.modules if m.activations}
    assert rounded == {
        f"backbone.layers.{n}.mixer.{part}" for n in (0, 1) for part in ("in_proj", "x_proj", "out_proj")
    }


def test_a_library_weight_that_the_model_multiplies_itself_is_refused_by_name() -> None:
    layers = re.escape(f"{DT.format(0)}, {DT.format(1)}")
    expected = rf"^pytorch_dynamic_int8: 2 modules \({layers}\) are never called: .+ cannot read that of the library"
    with pytest.raises(BackendError, match=expected) as error:
        make(hybrid("mamba"), "pytorch_dynamic_int8")
    make(hybrid("mamba"), "pytorch_dynamic_int8", skip=suggested(error))


@pytest.mark.parametrize("only", [(), (f"{TOWER}.*",)])
def test_a_tower_that_no_text_runs_must_be_left_out(only: Sequence[str]) -> None:
    with pytest.raises(BackendError, match=r"^round_to_nearest: \d+ modules \(model\.vision_tower\.") as error:
        make(tower(), "round_to_nearest", bits=4, only=only)
    assert "are changed, but no text runs them, so no measurement can show what that does" in str(error.value)
    assert suggested(error) == ("lm_head", f"{TOWER}.*")
    if not only:
        made = make(tower(), "round_to_nearest", bits=4, skip=suggested(error))
        assert not [m.module for m in made.identity.modules if m.backend and m.module.startswith(TOWER)]


class Wipes(Backend):
    """Wipes a tower, and says nothing of it."""

    kind = "wipes"

    def compress(self, model: Any, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        for parameter in model.get_submodule(TOWER).parameters():
            parameter.zero_()
        return Compressed(model)


def test_a_change_that_no_step_describes_is_found_too() -> None:
    with pytest.raises(BackendError, match=r"^wipes: \d+ modules \(.+\) are changed, but no text runs them"):
        as_variant(Wipes(), tower(), ())


def test_experts_that_no_token_of_a_short_text_reaches_are_not_meant() -> None:
    made = make(family("listed_experts"), "round_to_nearest", bits=4)
    experts = [m for m in made.identity.modules if ".experts." in m.module]
    assert len(experts) == 24
    assert all(m.backend for m in experts)
