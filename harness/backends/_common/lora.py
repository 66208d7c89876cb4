"""Fresh LoRA and DoRA adapters on a frozen model: inserted, written as files, taken off or merged.

    linear layers ─ insert_adapter ─▶ W·x + (α/r)·B·(A·x)     A random, B zero: at first nothing changes
                                          │
          write ◀── tensors ──────────────┴──── merge ──▶ W + (α/r)·B·A, in the dtype of the model

DoRA (Liu et al. 2024, arXiv 2402.09353) trains the length of every output channel apart from its direction:
W' = m · V / ‖V‖ with V = W + (α/r)·B·A, and m = ‖W‖ at first. LoRA: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from harness.models.adapters import CONFIG, WEIGHTS
from harness.system.files import write_atomic

_PLACE = "default"
"""The name that peft gives to an adapter that has none."""


@dataclass(frozen=True)
class Shape:
    """What an adapter is apart from its tensors. rank: columns of A and rows of B. alpha: B·A is multiplied by alpha /
    rank. dropout: share of the inputs of A that a step of the training leaves out."""

    rank: int
    alpha: float
    dropout: float = 0.0
    dora: bool = False


class _StepDropout(nn.Dropout):
    """Dropout while gradients are computed, and only then: the model around it stays in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, training=torch.is_grad_enabled())


class Inserted:
    """A model with a new adapter. ``model`` is the one that was given, whose chosen layers were replaced in place."""

    def __init__(self, adapted: Any) -> None:
        self._adapted = adapted

    @property
    def model(self) -> PreTrainedModel:
        """The model of transformers inside, without peft's own class around it."""
        return cast(PreTrainedModel, self._adapted.get_base_model())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the adapter, by the names that they have in its file."""
        return {name: cast(nn.Parameter, each) for name, each in self._tensors().items()}

    def remove(self) -> PreTrainedModel:
        """The model without the adapter, as it was before."""
        return cast(PreTrainedModel, self._adapted.unload())

    def merge(self, plain: Callable[[nn.Module], nn.Module]) -> PreTrainedModel:
        """The model with the adapter in its weights. plain: gives a layer whose weights are floats for one that was
        adapted, or that layer itself."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self._adapted.modules():
            if isinstance(module, BaseTunerLayer):
                cast(Any, module).base_layer = plain(module.get_base_layer())
        return cast(PreTrainedModel, self._adapted.merge_and_unload())

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        """Write configuration and tensors as peft reads them; the same adapter gives the same bytes in every process.

        dtype: of the tensors in the file. Raises WriteError.
        """
        config = self._adapted.peft_config[_PLACE].to_dict() | {"inference_mode": True}
        fields = {key: _as_plain(value) for key, value in config.items()}
        write_atomic(folder / CONFIG, json.dumps(fields, indent=2, sort_keys=True).encode())
        tensors = {name: each.detach().to("cpu", dtype).contiguous() for name, each in self._tensors().items()}
        write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))

    def _tensors(self) -> dict[str, Tensor]:
        """``state_dict()`` is not called: bitsandbytes rewrites weights when it is."""
        from peft import get_peft_model_state_dict

        held = dict(self._adapted.named_parameters(remove_duplicate=False))
        return dict(get_peft_model_state_dict(self._adapted, state_dict=held, save_embedding_layers=False))


def insert_adapter(model: PreTrainedModel, names: Sequence[str], shape: Shape, seed: int) -> Inserted:
    """Put an adapter on the named linear layers, whose output it does not change yet; freeze everything else.

    The tensors are float32. A is drawn from the seed alone, layer after layer; random states of the process stay as
    they are.
    """
    from peft import LoraConfig, get_peft_model

    config: Any = LoraConfig(
        r=shape.rank,
        lora_alpha=cast(int, shape.alpha),
        lora_dropout=shape.dropout,
        use_dora=shape.dora,
        target_modules=list(names),
        task_type="CAUSAL_LM",
    )
    with _private_random_state(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of tied heads, and of the orientation of GPT-2's weights, which is set then.
        adapted: Any = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(dropouts := getattr(module, "lora_dropout", None), nn.ModuleDict) and shape.dropout:
            dropouts[_PLACE] = _StepDropout(shape.dropout)
    adapted.eval()
    return Inserted(adapted)


def make_paged_adamw(groups: list[dict[str, Any]], bits: int) -> torch.optim.Optimizer:
    """AdamW of bitsandbytes, whose moments of 8 or 32 bits a GPU moves to the memory of the processor where its own
    runs out."""
    from bitsandbytes.optim import PagedAdamW8bit, PagedAdamW32bit

    optimizer: Any = {8: PagedAdamW8bit, 32: PagedAdamW32bit}[bits](groups)
    optimizer.is_paged = groups[0]["params"][0].device.type != "cpu"  # From where there is nothing to be moved.
    optimizer.state_dict = partial(_list_states, optimizer)
    return cast(torch.optim.Optimizer, optimizer)


def _list_states(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The states as torch lists them, each in memory of its own.

    bitsandbytes hides them in nested dictionaries, where a checkpoint does not look (it loads both), and lets
    parameters share the tables of codes.
    """
    found = torch.optim.Optimizer.state_dict(optimizer)
    states = found["state"].items()
    copies = {n: {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} for n, state in states}
    return found | {"state": copies}


@contextmanager
def _private_random_state(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _as_plain(value: Any) -> Any:
    """Sets have no order, and that of their texts differs from process to process."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _as_plain(each) for key, each in value.items()}
    return getattr(value, "value", value)
