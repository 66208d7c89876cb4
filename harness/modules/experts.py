"""Mixtures of experts: their weights as matrices, however a class stores them, and the tokens routed to each expert.

    as modules   mlp.experts.3.down_proj           ordinary linear layers in a list named ``experts``
    stacked      mlp.experts.down_proj [E, O, I]   one parameter for all experts, as transformers builds them;
                 mlp.experts.down_proj[3]          the name used here for the matrix of one expert

A stacked parameter is one entry in lists of formats (all its experts have the same format); its matrices are
quantized, calibrated and clipped individually.

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

READING_HIDDEN_STATES = ("gate_up_proj", "up_proj")
"""Stacked parameters whose matrices read the hidden states."""
STACKED = (*READING_HIDDEN_STATES, "down_proj")
"""Stacked parameters whose inputs are known."""
_MATRIX = re.compile(r"(?P<module>.+)\.(?P<parameter>[^.\[]+)\[(?P<expert>\d+)\]")

Tap = Callable[[Tensor], None]


class ExpertMatrix(nn.Linear):
    """One expert's matrix of a stacked parameter, presented as a linear layer; its weight is a view of the stack.

    It is never called: the experts module computes with the stack. Writing to its weight writes to the stack.
    """

    def __init__(self, owner: Any, parameter: str, expert: int) -> None:
        nn.Module.__init__(self)
        # In a tuple, or PyTorch would register the owner as a submodule.
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
        """The parameter [E, O, I] (or [E, I, O]) that holds the weight."""
        parameter: nn.Parameter = getattr(self.owner, self.parameter)
        return parameter


def stacked_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of ``module``'s own stacked parameters: three dimensions, the first of which is its experts."""
    experts = getattr(module, "num_experts", None)
    return tuple(
        name
        for name, tensor in module._parameters.items()
        if tensor is not None and tensor.dim() == 3 and tensor.shape[0] == experts and tensor.is_floating_point()
    )


def stacks(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Full name, experts module and local name of every stacked parameter, in the order of ``named_modules``."""
    for path, module in model.named_modules():
        for name in stacked_parameters(module):
            yield f"{path}.{name}" if path else name, module, name


def expert_matrices(model: nn.Module) -> Iterator[tuple[str, ExpertMatrix]]:
    """Name and matrix of every expert in the stacks whose orientation and inputs are known."""
    for full, module, name in stacks(model):
        if is_supported(module, name):
            for expert in range(getattr(module, name).shape[0]):
                yield f"{full}[{expert}]", ExpertMatrix(module, name, expert)


def is_supported(module: nn.Module, parameter: str) -> bool:
    """Whether the inputs and the orientation of the matrices of a stack are known."""
    return parameter in STACKED and isinstance(getattr(module, "is_transposed", None), bool)


def stack_name(name: str) -> str:
    """The name of the stack that holds a matrix; any other name is returned unchanged."""
    match = _MATRIX.fullmatch(name)
    return f"{match['module']}.{match['parameter']}" if match else name


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
        if match := _MATRIX.fullmatch(name):
            stacked.setdefault(match["module"], {})[match["parameter"], int(match["expert"])] = tap
        else:
            plain[name] = tap
    return plain, stacked


def feed_taps(
    module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], taps: Mapping[tuple[str, int], Tap]
) -> None:
    """Call each tap, by parameter and expert, with the inputs [n, I] of its matrix in a call of the experts module.

    Experts without a token are skipped. Matrices that read hidden states come before those that read their outputs, so
    that taps are called in the order of the data flow.
    """
    hidden_NH, chosen_NK = parse_call(arguments, named)
    rows = {expert: _rows(chosen_NK, expert) for expert in {expert for _, expert in taps}}
    reached = {expert: hidden_NH[tokens] for expert, tokens in sorted(rows.items()) if len(tokens)}
    for name in READING_HIDDEN_STATES:
        for expert, x_nH in reached.items():
            if tap := taps.get((name, expert)):
                tap(x_nH)
    for expert, x_nH in reached.items():
        if tap := taps.get(("down_proj", expert)):
            tap(_second_input(module, x_nH, expert))


def parse_call(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] and chosen experts [N, K] of a call (hidden states, experts, weights), by position or name.

    An expert index of E or more means no expert. Raises TypeError for a call of another form.
    """
    return input_rows(arguments, named), chosen_experts(arguments, named)


def chosen_experts(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The chosen experts [N, K] in a call of stacked experts. Raises TypeError if there are none."""
    for each in (*arguments, *named.values()):
        if isinstance(each, Tensor) and not each.is_floating_point():
            return each.reshape(-1, each.shape[-1])
    raise TypeError("stacked experts were called without expert indices")


def format_names(names: Iterable[str]) -> str:
    """Names with expert indices grouped by stack: "mlp.experts.down_proj[0, 3, 7]"; other names unchanged."""
    by_stack: dict[str, list[str]] = {}
    for name in names:
        stack = stack_name(name)
        by_stack.setdefault(stack, []).extend([name[len(stack) + 1 : -1]] if stack != name else [])
    return ", ".join(f"{stack}[{', '.join(numbers)}]" if numbers else stack for stack, numbers in by_stack.items())


@dataclass(frozen=True)
class Experts:
    """The experts of one layer. module: path of the module that holds their stacks, or of the list of experts."""

    module: str
    count: int
    stacked: bool


def find_experts(model: nn.Module) -> tuple[Experts, ...]:
    """Every mixture of experts in a model, in the order of ``named_modules``; none in a dense model."""
    mixtures = []
    for path, module in model.named_modules():
        if names := stacked_parameters(module):
            mixtures.append(Experts(path, getattr(module, names[0]).shape[0], stacked=True))
        elif isinstance(module, nn.ModuleList) and path.rpartition(".")[2] == "experts" and len(module) > 1:
            mixtures.append(Experts(path, len(module), stacked=False))
    return tuple(mixtures)


@torch.no_grad()
def count_expert_tokens(model: Any, documents: Iterable[Tensor]) -> dict[str, tuple[int, ...]]:
    """Number of tokens routed to each expert over all documents, by the path of its mixture; one pass over them.

    documents: token ids, one 1-D int64 tensor each. Empty for a dense model, which is not run.
    """
    mixtures = find_experts(model)
    counts = {each.module: torch.zeros(each.count, dtype=torch.int64) for each in mixtures}

    def stack(path: str, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        counts[path] += routed_tokens(arguments, named, len(counts[path])).sum(0).cpu()

    def count_call(
        path: str, expert: int, _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        counts[path][expert] += input_rows(arguments, named).shape[0]

    with ExitStack() as hooks:
        for each in mixtures:
            module = model.get_submodule(each.module)
            seeing = (
                [(module, partial(stack, each.module))]
                if each.stacked
                else [(part, partial(count_call, each.module, number)) for number, part in enumerate(module)]
            )
            for part, see in seeing:
                hooks.callback(part.register_forward_pre_hook(see, with_kwargs=True).remove)
        for ids in documents if mixtures else ():
            model(input_ids=ids[None].to(model.device), use_cache=False)
    return {path: tuple(tokens.tolist()) for path, tokens in counts.items()}


def routed_tokens(arguments: tuple[Any, ...], named: Mapping[str, Any], experts: int) -> Tensor:
    """Whether each token is routed to each expert, bool [N, E], in a call of stacked experts.

    A call of hidden states alone holds one row for each pair of expert and token, [E*N, H], expert by expert, and zeros
    where the token is not routed to the expert (Llama 4). Raises TypeError for a call of another form.
    """
    given = (*arguments, *named.values())
    if len(given) == 1 and isinstance(given[0], Tensor) and given[0].dim() == 2 and len(given[0]) % experts == 0:
        rows_ENH = given[0].reshape(experts, -1, given[0].shape[-1])
        return (rows_ENH != 0).any(-1).T
    return routing_mask(chosen_experts(arguments, named), experts)


def routing_mask(chosen_NK: Tensor, experts: int) -> Tensor:
    """Whether each token is routed to each expert, bool [N, E]; indices of E or more mean no expert."""
    hits_NE = torch.zeros(len(chosen_NK), experts + 1, dtype=torch.bool, device=chosen_NK.device)
    return hits_NE.scatter_(1, chosen_NK.long().clamp(max=experts), True)[:, :experts]


def input_rows(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The first floating-point tensor of a call as rows [N, H]. Raises TypeError if there is none."""
    for each in (*arguments, *named.values()):
        if isinstance(each, Tensor) and each.is_floating_point():
            return each.reshape(-1, each.shape[-1])
    raise TypeError("an expert was called without a floating-point tensor")


def fingerprints(x_NH: Tensor) -> Tensor:
    """A hash of every row, int64 [N]: equal for identical bytes, and almost certainly different otherwise."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    codes_NH = x_NH.detach().contiguous().view(kinds[x_NH.element_size()]).long()
    # Odd multipliers modulo 2^64: unlike float sums, these do not depend on the order of summation.
    weights_H = torch.arange(1, x_NH.shape[-1] + 1, device=x_NH.device) * 0x9E3779B97F4A7C1 | 1
    sums_N: Tensor = (codes_NH * weights_H).sum(-1)
    return sums_N


def _rows(chosen_NK: Tensor, expert: int) -> Tensor:
    """Indices [n] of the tokens routed to an expert."""
    return torch.nonzero((chosen_NK == expert).any(-1))[:, 0]


def _second_input(module: Any, x_nH: Tensor, expert: int) -> Tensor:
    """Input of an expert's second matrix: the gated or activated output of the first."""
    first = ExpertMatrix(module, "gate_up_proj" if module.has_gate else "up_proj", expert)
    inner = functional.linear(x_nH, first.weight, first.bias)
    outputs: Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return outputs
