"""Mixtures of experts: their weights as matrices, whichever way a class keeps them, and the tokens each expert gets.

    as modules   mlp.experts.3.down_proj           linear layers like any others, in a list named ``experts``
    stacked      mlp.experts.down_proj [E, O, I]   one parameter for all experts, as transformers builds them;
                 mlp.experts.down_proj[3]          is what one expert's matrix is called here

A stacked parameter is one entry in lists of formats (all its experts have the same format); its matrices are quantized,
calibrated and clipped each by itself.

Legend: E experts, O output channels, I inputs, N tokens, K experts a token is routed to, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

READING = ("gate_up_proj", "up_proj")
"""Parameters whose matrices read the hidden states."""
STACKED = (*READING, "down_proj")
"""Stacked parameters whose inputs are known."""
_MATRIX = re.compile(r"(?P<module>.+)\.(?P<parameter>[^.\[]+)\[(?P<expert>\d+)\]")

Tap = Callable[[Tensor], None]


class ExpertMatrix(nn.Linear):
    """One expert's matrix of a stacked parameter as a linear layer of its own; its weight lies in the stack.

    Nobody calls it: the experts module computes with the stack. Writing into its weight writes into the stack.
    """

    def __init__(self, owner: Any, parameter: str, expert: int) -> None:
        nn.Module.__init__(self)
        # In a tuple, or the module would be registered as a part of this one.
        self.owned_by: tuple[Any] = (owner,)
        self.parameter, self.expert = parameter, expert
        weight = getattr(owner, parameter).detach()[expert]
        self.weight = nn.Parameter(weight.T if owner.is_transposed else weight, requires_grad=False)
        self.out_features, self.in_features = self.weight.shape
        biases = getattr(owner, f"{parameter}_bias", None) if owner.has_bias else None
        bias = None if biases is None else nn.Parameter(biases.detach()[expert], requires_grad=False)
        self.register_parameter("bias", bias)

    @property
    def owner(self) -> Any:
        """The experts module."""
        return self.owned_by[0]

    @property
    def stack(self) -> nn.Parameter:
        """The parameter [E, O, I] (or [E, I, O]) in which the weight lies."""
        found: nn.Parameter = getattr(self.owner, self.parameter)
        return found


def stacked_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the stacked parameters that ``module`` itself keeps: three dimensions, the first one its experts."""
    experts = getattr(module, "num_experts", None)
    return tuple(
        name
        for name, tensor in module._parameters.items()
        if tensor is not None and tensor.dim() == 3 and tensor.shape[0] == experts and tensor.is_floating_point()
    )


def stacks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Full name, experts module and own name of every stacked parameter, in the order of ``named_modules``."""
    for path, module in model.named_modules():
        for name in stacked_parameters(module):
            yield f"{path}.{name}" if path else name, module, name


def expert_matrices(model: nn.Module) -> Iterator[tuple[str, ExpertMatrix]]:
    """Every expert's matrix of the stacks whose orientation and inputs are known, by name."""
    for full, module, name in stacks(model):
        if known(module, name):
            for expert in range(getattr(module, name).shape[0]):
                yield f"{full}[{expert}]", ExpertMatrix(module, name, expert)


def known(module: nn.Module, parameter: str) -> bool:
    """Whether it is known what the matrices of a stack read, and which way round they lie."""
    return parameter in STACKED and isinstance(getattr(module, "is_transposed", None), bool)


def stack_of(name: str) -> str:
    """The name of the stack in which a matrix lies; any other name is its own."""
    found = _MATRIX.fullmatch(name)
    return f"{found['module']}.{found['parameter']}" if found else name


def stacked_tensor(model: nn.Module, name: str) -> Tensor | None:
    """The stack [E, O, I] of a full parameter name, None for anything else."""
    path, _, parameter = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    if parameter not in stacked_parameters(module):
        return None
    stack: Tensor = getattr(module, parameter).detach()
    return stack.transpose(1, 2) if getattr(module, "is_transposed", False) else stack


Stacked = dict[tuple[str, int], Tap]
"""Taps by parameter and expert."""


def split_taps(taps: Mapping[str, Tap]) -> tuple[dict[str, Tap], dict[str, Stacked]]:
    """Taps of real modules by name; those of stacked matrices by experts module, then by parameter and expert."""
    plain: dict[str, Tap] = {}
    stacked: dict[str, Stacked] = {}
    for name, tap in taps.items():
        if found := _MATRIX.fullmatch(name):
            stacked.setdefault(found["module"], {})[found["parameter"], int(found["expert"])] = tap
        else:
            plain[name] = tap
    return plain, stacked


def feed(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], taps: Mapping[tuple[str, int], Tap]
) -> None:
    """Give each tap, by parameter and expert, the inputs [n, I] that its matrix gets in a call of the experts module.

    Experts without a token are not heard. All matrices that read hidden states come before those that read what these
    give, so that the order of calls is that of the data.
    """
    hidden_NH, chosen_NK = call_of(arguments, named)
    rows = {expert: _rows(chosen_NK, expert) for expert in {expert for _, expert in taps}}
    reached = {expert: hidden_NH[found] for expert, found in sorted(rows.items()) if len(found)}
    for name in READING:
        for expert, x_nH in reached.items():
            if tap := taps.get((name, expert)):
                tap(x_nH)
    for expert, x_nH in reached.items():
        if tap := taps.get(("down_proj", expert)):
            tap(_between(module, x_nH, expert))


def call_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] and chosen experts [N, K] of a call: (hidden states, experts, weights), by position or name.

    An expert number of E or more stands for none. Raises TypeError for a call of another form.
    """
    return rows_of(arguments, named), chosen_of(arguments, named)


def chosen_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The chosen experts [N, K] in a call of stacked experts. Raises TypeError where there are none."""
    for each in (*arguments, *named.values()):
        if isinstance(each, Tensor) and not each.is_floating_point():
            return each.reshape(-1, each.shape[-1])
    raise TypeError("stacked experts were called without the numbers of experts")


def ranges_of(names: Iterable[str]) -> str:
    """Numbers of experts, each stack once: "mlp.experts.down_proj[0, 3, 7]"; other names as they are."""
    found: dict[str, list[str]] = {}
    for name in names:
        stack = stack_of(name)
        found.setdefault(stack, []).extend([name[len(stack) + 1 : -1]] if stack != name else [])
    return ", ".join(f"{stack}[{', '.join(numbers)}]" if numbers else stack for stack, numbers in found.items())


@dataclass(frozen=True)
class Experts:
    """The experts of one layer. module: the path of the module that keeps their stacks, or of the list of them."""

    module: str
    count: int
    stacked: bool


def experts_of(model: nn.Module) -> tuple[Experts, ...]:
    """Every mixture of experts in a model, in the order of ``named_modules``; none in a dense model."""
    found = []
    for path, module in model.named_modules():
        if names := stacked_parameters(module):
            found.append(Experts(path, getattr(module, names[0]).shape[0], stacked=True))
        elif isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts" and len(module) > 1:
            found.append(Experts(path, len(module), stacked=False))
    return tuple(found)


@torch.no_grad()
def expert_tokens(model: Any, documents: Iterable[Tensor]) -> dict[str, tuple[int, ...]]:
    """How many tokens of all documents each expert is given, by the path of its mixture; one pass over them.

    documents: token ids, one 1-D int64 tensor each. Empty for a dense model, which is not run.
    """
    mixtures = experts_of(model)
    counts = {each.module: torch.zeros(each.count, dtype=torch.int64) for each in mixtures}

    def stack(path: str, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts[path] += routed(chosen_of(arguments, named), len(counts[path])).sum(0).cpu()

    def one(path: str, expert: int, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts[path][expert] += rows_of(arguments, named).shape[0]

    with ExitStack() as hooks:
        for each in mixtures:
            module = model.get_submodule(each.module)
            seeing = (
                [(module, partial(stack, each.module))]
                if each.stacked
                else [(part, partial(one, each.module, number)) for number, part in enumerate(module)]
            )
            for part, see in seeing:
                hooks.callback(part.register_forward_pre_hook(see, with_kwargs=True).remove)
        for ids in documents if mixtures else ():
            model(input_ids=ids[None].to(model.device), use_cache=False)
    return {path: tuple(found.tolist()) for path, found in counts.items()}


def routed(chosen_NK: Tensor, experts: int) -> Tensor:
    """Whether each token is routed to each expert, bool [N, E]; numbers of E and more stand for no expert."""
    hits_NE = torch.zeros(len(chosen_NK), experts + 1, dtype=torch.bool, device=chosen_NK.device)
    return hits_NE.scatter_(1, chosen_NK.long().clamp(max=experts), True)[:, :experts]


def rows_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The first floating tensor of a call as rows [N, H]. Raises TypeError where there is none."""
    for each in (*arguments, *named.values()):
        if isinstance(each, Tensor) and each.is_floating_point():
            return each.reshape(-1, each.shape[-1])
    raise TypeError("an expert was called without a floating tensor")


def fingerprints(x_NH: Tensor) -> Tensor:
    """A number for every row, int64 [N], equal for rows of the same bytes and next to surely only for them."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    codes_NH = x_NH.detach().contiguous().view(kinds[x_NH.element_size()]).long()
    # Odd multipliers modulo 2^64: sums do not depend on their order, as those of floats would.
    weights_H = torch.arange(1, x_NH.shape[-1] + 1, device=x_NH.device) * 0x9E3779B97F4A7C1 | 1
    sums_N: Tensor = (codes_NH * weights_H).sum(-1)
    return sums_N


def _rows(chosen_NK: Tensor, expert: int) -> Tensor:
    """The tokens [n] that are routed to an expert."""
    return torch.nonzero((chosen_NK == expert).any(-1))[:, 0]


def _between(module: Any, x_nH: Tensor, expert: int) -> Tensor:
    """What the second matrix of an expert reads: the gated or activated output of the first."""
    first = ExpertMatrix(module, "gate_up_proj" if module.has_gate else "up_proj", expert)
    inner = functional.linear(x_nH, first.weight, first.bias)
    found: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return found
