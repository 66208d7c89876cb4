"""A student whose weights and inputs are rounded in every forward pass, while its own weights stay floats.

    weight (trained) ─ parametrization: RoundedWeight ─▶ what the layer multiplies with
    input ─ forward pre-hook: RoundedInput ─▶ what the layer multiplies

A static range of inputs is a moving average of the smallest and the largest input of each training batch (Jacob et al.
2018, arXiv 1712.05877): each batch moves both ends by ``momentum`` of the way. Evaluations, which run without
gradients, use the range as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from harness.modules.experts import ExpertMatrix
from harness.modules.linears import Linear
from harness.numerics.formats import Format
from harness.numerics.ranges import Limits
from harness.training.fake_quantize import LearnedSteps, round_through

Rounding = Callable[[Tensor], Tensor]
"""A weight [O, I] ─▶ what is computed with in its place, with gradients."""


class RoundedWeight(nn.Module):
    """The parametrization of a weight: [O, I], [I, O] of a Conv1D, or a stack of experts, matrix by matrix."""

    def __init__(self, roundings: Sequence[Rounding], transposed: bool) -> None:
        """roundings: one, or one for each expert."""
        super().__init__()
        self.roundings, self.transposed = list(roundings), transposed
        self.steps = nn.ModuleList(each for each in roundings if isinstance(each, LearnedSteps))

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, in the orientation in which it is stored."""
        turned = weight.transpose(-1, -2) if self.transposed else weight
        if turned.dim() == 3:
            rounded = torch.stack([rounding(each) for rounding, each in zip(self.roundings, turned, strict=True)])
        else:
            rounded = self.roundings[0](turned)
        return rounded.transpose(-1, -2) if self.transposed else rounded


class RoundedWeights:
    """The rounded weights of a student; weights that layers share are rounded once, and stay shared."""

    def __init__(self, layers: Sequence[tuple[str, Linear]], rounding_of: Callable[[str, Tensor], Rounding]) -> None:
        """rounding_of: of a layer, by its name and weight [O, I]."""
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._rounded: dict[int, RoundedWeight] = {}
        stacks: dict[tuple[int, str], list[Rounding]] = {}
        last: dict[tuple[int, str], ExpertMatrix] = {}
        for name, layer in layers:
            if isinstance(layer, ExpertMatrix):
                key = (id(layer.owner), layer.parameter)
                stacks.setdefault(key, []).append(rounding_of(name, layer.weight.detach().float()))
                last[key] = layer
                continue
            transposed = isinstance(layer, Conv1D)
            weight = layer.weight.detach()
            self._add(layer, "weight", transposed, [rounding_of(name, weight.T if transposed else weight)])
        for key, roundings in stacks.items():
            layer = last[key]
            self._add(layer.owner, layer.parameter, bool(layer.owner.is_transposed), roundings)

    @property
    def parameters(self) -> dict[int, nn.Parameter]:
        """The weights that are rounded, each once, by id."""
        return {id(parameter): parameter for _, _, parameter in self._places}

    @property
    def steps(self) -> list[LearnedSteps]:
        """Learned steps of all weights."""
        return [each for rounded in self._rounded.values() for each in rounded.steps if isinstance(each, LearnedSteps)]

    @torch.no_grad()
    def convert(self) -> None:
        """Replace every weight by its rounded values, and compute with it as it is from then on."""
        values = {key: self._rounded[key](parameter).clone() for key, parameter in self.parameters.items()}
        self.remove()
        for key, parameter in self.parameters.items():
            parameter.data = values[key].contiguous()

    def remove(self) -> None:
        """Compute with the weights as they are again."""
        for module, name, _ in self._places:
            if parametrize.is_parametrized(module, name):
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)

    def _add(self, module: nn.Module, name: str, transposed: bool, roundings: Sequence[Rounding]) -> None:
        parameter: Any = getattr(module, name)
        self._places.append((module, name, parameter))
        rounded = self._rounded.setdefault(id(parameter), RoundedWeight(roundings, transposed))
        parametrize.register_parametrization(module, name, rounded, unsafe=True)


class RoundedInput:
    """The rounding of one module's input. ends: [2], of a static range; None: each input has its own. learned: steps in
    place of a range."""

    def __init__(
        self, form: Format, ends: Tensor | None = None, momentum: float = 0.01, learned: LearnedSteps | None = None
    ) -> None:
        self.form, self.ends, self.momentum, self.learned = form, ends, momentum, learned

    def attach(self, module: nn.Module) -> Callable[[], None]:
        """Round the module's input from now on; returns what ends that."""
        return module.register_forward_pre_hook(lambda _, arguments: (self.round(arguments[0]), *arguments[1:])).remove

    def round(self, x: Tensor) -> Tensor:
        """``x`` [..., D] on the grid, with gradients."""
        if self.learned is not None:
            rounded: Tensor = self.learned(x)
            return rounded
        if self.ends is None:
            return round_through(x, self.form)
        if torch.is_grad_enabled():
            seen = torch.stack([x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)])
            self.ends.lerp_(seen, self.momentum)
        return round_through(x, self.form, self.limits())

    def limits(self) -> Limits | None:
        """The range in which the finished model rounds; None: that of every input."""
        if self.learned is not None:
            largest = self.learned.scale.detach().abs() * self.form.grid.largest_code
            return Limits(-largest, largest)
        return None if self.ends is None else Limits(self.ends[:1], self.ends[1:])
