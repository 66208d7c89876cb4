"""Foldings: places where a decoder can be rescaled channel by channel without changing its function.

    norm   ─ gain and bias / s ─▶ x / s ─▶ W · s   of every linear layer that reads the norm
    linear ─ its rows / s ──────▶ x / s ─▶ W · s   of the linear layer that reads its output channel by channel
                                                   (values → attention output, up → down through the gate)

No names or architectures are assumed. The data flow is observed on one short document, and every candidate is then
tested: with random positive scales, the block's output must not change beyond rounding. Candidates that fail (a norm
also read by a residual or by a router that is no linear layer, a GELU in between) are rejected. The scale itself is up
to the method: SmoothQuant (arXiv 2211.10438, section 4) and AWQ (arXiv 2306.00978, section 3.2) both fold this way.

Legend: I input channels of the reading layers, O output channels of a linear source.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.modules.decoder_layers import walk_blocks
from harness.modules.linears import Linear, weight_of
from harness.modules.transforms.replay import Replay, first_tensor

TOKENS = 32
"""Length of the document on which foldings are tested."""
RESIDUAL = 1e-4
"""Largest change of a block's output with source and readers scaled, relative to scaling the source alone. Rounding in
float32 leaves about 1e-6, a wrong folding about 1."""

Run = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Folding:
    """A scale s [I] of the inputs of ``readers`` that can be divided out of ``source``.

    source: name of a norm or linear layer. readers: names of the linear layers, in the order of their calls. offset:
    added to the norm's weight to get its gain (1 for Gemma's norms). rows [I], for linear sources: the output channel
    of the source that feeds each input channel of the reader. Channels fed by one row (heads that share their values)
    must have equal scales: see ``pool_shared``.
    """

    source: str
    readers: tuple[str, ...]
    offset: float = 0.0
    rows: Tensor | None = field(default=None, compare=False)

    @property
    def into_norm(self) -> bool:
        """Whether the source is a norm."""
        return self.rows is None

    def pool_shared(self, values_I: Tensor, how: Literal["mean", "amax"]) -> Tensor:
        """``values_I`` with channels that must have equal scales replaced by their mean or maximum."""
        if self.rows is None:
            return values_I
        rows = self.rows.to(values_I.device)
        shared = values_I.new_zeros(int(rows.max()) + 1)
        return shared.scatter_reduce(0, rows, values_I, how, include_self=False)[rows]


@dataclass(frozen=True)
class Foldings:
    """Result of ``find_foldings``. rejected: norms read by linear layers into which nothing can be folded."""

    accepted: tuple[Folding, ...]
    rejected: tuple[str, ...]


@torch.no_grad()
def find_foldings(model: PreTrainedModel, calibration: Sequence[Tensor]) -> Foldings:
    """The foldings inside every decoder block, with full module names, in execution order.

    calibration: token ids, one 1-D int64 tensor per document; the first ``TOKENS`` of the longest are used. Each linear
    layer is a reader of at most one folding. Modules with shared parameters take part in none.
    Raises BackendError if the model has no decoder blocks.
    """
    ids = max(calibration, key=len)[:TOKENS]
    held = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    accepted, rejected = list[Folding](), list[str]()
    # With a single token, attention passes the values to the output projection unchanged.
    for block in walk_blocks(model, [ids, ids[:1]]):
        dtype = torch.promote_types(next(block.module.parameters()).dtype, torch.float32)
        test = _FoldingTest(copy.deepcopy(block.module).to(dtype), Replay(block).calls(dtype))
        for candidates in test.candidates():
            eligible = (each for each in candidates if _has_own_parameters(block.module, each, held))
            holding = next((each for each in eligible if test.preserves_output(each)), None)
            if holding is not None:
                readers = tuple(f"{block.name}.{name}" for name in holding.readers)
                accepted.append(replace(holding, source=f"{block.name}.{holding.source}", readers=readers))
            elif candidates[0].into_norm:
                rejected.append(f"{block.name}.{candidates[0].source}")
    return Foldings(tuple(accepted), tuple(rejected))


@torch.no_grad()
def fold(root: nn.Module, folding: Folding, scale_I: Tensor) -> None:
    """Divide the source by ``scale_I`` and multiply its readers by it, in place.

    Computed in float64 and rounded once to each parameter's dtype. Raises ValueError for a scale that is not positive
    and finite, has the wrong length, or differs between channels that must have equal scales.
    """
    _check(root, folding, scale_I)
    _divide_source(root, folding, scale_I.double())
    for name in folding.readers:
        weight_OI = weight_of(_linear(root, name))
        weight_OI.copy_(weight_OI.double() * scale_I.double())


@dataclass
class _ObservedCalls:
    """What one forward pass of a block showed: the norms' outputs and the linear layers' inputs and outputs."""

    norms: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class _FoldingTest:
    """Tests foldings on a copy of a block, with one short document and one of a single token."""

    def __init__(self, module: nn.Module, calls: Sequence[Run]) -> None:
        self.module = module
        self.run, self._run_token = calls
        self._expected = self.run(module)
        self._random = torch.Generator().manual_seed(0)

    def candidates(self) -> Iterator[list[Folding]]:
        """The candidate foldings for every norm read by linear layers, then for every other linear layer."""
        with _observe_calls(self.module) as seen:
            self.run(self.module)
        with _observe_calls(self.module) as token:
            self._run_token(self.module)
        free = list(seen.inputs)
        for norm, output in seen.norms.items():
            readers = tuple(name for name in free if _same_values(output, seen.inputs[name]))
            free = [name for name in free if name not in readers]
            if readers:
                yield [Folding(norm, readers), Folding(norm, readers, offset=1.0)]
        for reader in free:
            # The later a layer is called, the likelier the reader receives its output.
            earlier = list(seen.inputs)[: list(seen.inputs).index(reader)][::-1]
            if found := [each for source in earlier for each in self._linear_candidates(source, reader, token)]:
                yield found

    def preserves_output(self, folding: Folding) -> bool:
        """Whether scaling the readers undoes the effect of scaling the source on the block's output."""
        readers = [_linear(self.module, name) for name in folding.readers]
        scale_I = folding.pool_shared(self._scale(weight_of(readers[0]).shape[1]), "amax")
        source = self.module.get_submodule(folding.source)
        with _restore_afterwards([source, *readers]):
            _divide_source(self.module, folding, scale_I)
            moved = (self.run(self.module) - self._expected).abs().max()
        with _restore_afterwards([source, *readers]):
            fold(self.module, folding, scale_I)
            left = (self.run(self.module) - self._expected).abs().max()
        return bool(moved > 0) and bool(left <= RESIDUAL * moved)

    def _scale(self, channels: int) -> Tensor:
        """A random scale of powers of two and other numbers, from a quarter to four."""
        logarithm = torch.rand(channels, generator=self._random) * 4 - 2
        whole = torch.rand(channels, generator=self._random) < 0.5
        scale: Tensor = torch.exp2(torch.where(whole, logarithm.round(), logarithm))
        return scale.to(self._expected.device)

    def _linear_candidates(self, source: str, reader: str, token: _ObservedCalls) -> Iterator[Folding]:
        channels = weight_of(_linear(self.module, reader)).shape[1]
        outputs = weight_of(_linear(self.module, source)).shape[0]
        if reader in token.inputs and source in token.outputs:
            rows = _match_values(token.inputs[reader].flatten(), token.outputs[source].flatten())
            if rows is not None:
                yield Folding(source, (reader,), rows=rows)
                return
        if outputs % channels == 0:
            for start in range(outputs - channels, -1, -channels):
                yield Folding(source, (reader,), rows=torch.arange(start, start + channels))


def _divide_source(root: nn.Module, folding: Folding, scale_I: Tensor) -> None:
    source = root.get_submodule(folding.source)
    bias = cast("nn.Parameter | None", getattr(source, "bias", None))
    if folding.rows is None:
        weight = cast(nn.Parameter, source.weight)
        scale = scale_I.double().to(weight.device)
        weight.copy_((weight.double() + folding.offset) / scale - folding.offset)
    else:
        weight_OI = weight_of(_linear(root, folding.source))
        scale = torch.ones(weight_OI.shape[0], dtype=torch.float64, device=weight_OI.device)
        scale[folding.rows.to(scale.device)] = scale_I.double().to(scale.device)
        weight_OI.copy_(weight_OI.double() / scale[:, None])
    if bias is not None:
        bias.copy_(bias.double() / scale)


def _check(root: nn.Module, folding: Folding, scale_I: Tensor) -> None:
    for name in folding.readers:
        channels = weight_of(_linear(root, name)).shape[1]
        if scale_I.shape != (channels,):
            raise ValueError(f"{name} has {channels} input channels, the scale has shape {tuple(scale_I.shape)}")
    if not bool(((scale_I > 0) & torch.isfinite(scale_I)).all()):
        raise ValueError(f"the scale between {folding.source} and {folding.readers[0]} is not positive and finite")
    if not torch.equal(folding.pool_shared(scale_I, "amax"), scale_I):
        raise ValueError(f"the scale differs between channels of {folding.readers[0]} that come from one row")


def _linear(root: nn.Module, name: str) -> Linear:
    return cast(Linear, root.get_submodule(name))


def _has_own_parameters(block: nn.Module, folding: Folding, held: Counter[int]) -> bool:
    modules = [block.get_submodule(name) for name in (folding.source, *folding.readers)]
    return all(held[id(parameter)] == 1 for module in modules for parameter in module.parameters())


def _same_values(output: Tensor, given: Tensor) -> bool:
    """Whether two tensors are the same memory, however it is shaped."""
    return output.data_ptr() == given.data_ptr() and output.numel() == given.numel()


def _match_values(values: Tensor, among: Tensor) -> Tensor | None:
    """The index in ``among`` of each of ``values``, None if one of them is missing."""
    ordered, order = among.sort()
    near = torch.searchsorted(ordered, values.contiguous()).clamp(max=len(among) - 1)
    below = (near - 1).clamp(min=0)
    nearer = (ordered[below] - values).abs() < (ordered[near] - values).abs()
    best = torch.where(nearer, below, near)
    close = (ordered[best] - values).abs() <= 1e-6 * values.abs().max()
    return order[best] if bool(close.all()) else None


@contextmanager
def _observe_calls(block: nn.Module) -> Iterator[_ObservedCalls]:
    """Record outputs of norms, and inputs and outputs of linear layers; modules called twice are dropped."""
    seen, calls = _ObservedCalls({}, {}, {}), Counter[str]()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            if isinstance(module, Linear):
                seen.inputs[name], seen.outputs[name] = arguments[0], first_tensor(output)
            elif isinstance(output, Tensor) and output.shape[-1] == cast(Tensor, module.weight).numel():
                seen.norms[name] = output

        return note

    with ExitStack() as stack:
        for name, module in block.named_modules():
            if isinstance(module, Linear) or _may_be_norm(module):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        yield seen
    for name in [name for name, count in calls.items() if count > 1]:
        for noted in (seen.norms, seen.inputs, seen.outputs):
            noted.pop(name, None)


def _may_be_norm(module: nn.Module) -> bool:
    """Whether a module has a one-dimensional weight and at most a bias besides it."""
    own = dict(module.named_parameters())
    return "weight" in own and own["weight"].dim() == 1 and own.keys() <= {"weight", "bias"}


@contextmanager
def _restore_afterwards(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore the values of the modules' parameters on exit."""
    saved = [(parameter, parameter.clone()) for module in modules for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, values in saved:
            parameter.copy_(values)
