"""What tests of libraries' backends have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness import plugins
from harness.backends import Backend, Compressed
from harness.models.loaded import LoadedModel
from harness.testing import trials
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

MIDDLE = "model.layers.0.mlp.gate_proj"
IDS = torch.arange(1, 31).reshape(2, 15)


def step(backend: str, **settings: Any) -> Backend:
    """A backend by name."""
    found = plugins.load(Backend, backend)(**settings)
    assert isinstance(found, Backend)
    return found


def compressed(model: PreTrainedModel, backend: str, **settings: Any) -> Compressed:
    """What a backend makes of a copy of the model."""
    copied: Any = copy.deepcopy(model)
    return step(backend, **settings).compress(copied.eval().requires_grad_(False), tiny_tokenizer(), ())


def variant(backend: str, reference: PreTrainedModel | None = None, **settings: Any) -> LoadedModel:
    """The variant that a run would measure, with all checks."""
    chosen = step(backend, **settings)
    return trials.as_variant(chosen, reference or tiny_llama(tied=False), trials.calibration_for(chosen))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@torch.no_grad()
def effective(module: nn.Module, inputs: int = 64) -> Tensor:
    """The weight [O, I] that a layer computes with: what it makes of the identity, less its bias."""
    weight_IO: Tensor = module(torch.eye(inputs)) - module(torch.zeros(1, inputs))
    return weight_IO.T


def by_hand(change: Callable[[PreTrainedModel], Any]) -> PreTrainedModel:
    """A model on which the library was called without the harness; what the call returns counts, if anything."""
    model = tiny_llama(tied=False)
    model.requires_grad_(False)
    return change(model) or model


def put(model: PreTrainedModel, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put another module in the place of every linear layer but the head."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, make(module))


def agree(found: Tensor, expected: Tensor, step_OI: Tensor | float, left_out: Tensor | None = None) -> float:
    """The share of weights that lie on another value of the same grid, which must be a neighbour: ties.

    left_out: weights whose tie is no accident.
    """
    apart = ((found - expected).abs() / step_OI).detach()
    assert float(apart.max()) < 1.01, f"weights are up to {float(apart.max()):.3g} steps apart"
    differ = (apart > 0.01) if left_out is None else (apart > 0.01) & ~left_out
    return float(differ.float().mean())


def largest(weight: Tensor, group: int | None = None) -> Tensor:
    """Which weights are the largest of those that share a scale: half a step beyond the last code of a full range."""
    blocks: Tensor = weight.detach().abs().unflatten(1, (-1, group or weight.shape[1]))
    return (blocks == blocks.amax(-1, keepdim=True)).flatten(1)


def formats(done: Compressed) -> Mapping[str, Any]:
    """The description of each module, by name."""
    return {each.module: each for each in done.modules}
