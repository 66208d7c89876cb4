"""Surveys the modules of a pair before the pass: which can be compared, in which order.

One short document goes through every model. Modules are paired by name, decoder layers by a declared map if there is
one (see ``harness.modules.layer_pairs``); unpaired modules are reported with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.lockstep.decoder import Decoder
from harness.lockstep.hooks import first_input, first_tensor
from harness.lockstep.recording import Idle, InputSite, Layout, ModuleKind, OutputSite
from harness.modules.experts import find_experts, stacked_parameters
from harness.modules.layer_pairs import LayerPairs, block_numbers, list_parents

_EXPERT = re.compile(r"(^|\.)experts\.\d+(\.|$)")
_ROUTED = "an expert sees only the tokens routed to it"
_UNCALLED = "it is never called, because the model multiplies by its weight itself; its weight is compared"
_READING: tuple[ModuleKind, ...] = ("linear", "experts")
"""Kinds of modules whose inputs are observed."""


@dataclass
class _Call:
    """One module in the survey: its input (of linear layers and stacked experts), its output, and fingerprints."""

    kind: ModuleKind
    depth: int
    calls: int
    source: Tensor | None
    output: Tensor | None
    read: tuple[float, float]
    gave: tuple[float, float]


def survey(
    reference: Decoder,
    variants: Sequence[Decoder],
    ids_1T: Tensor,
    vocabulary: int,
    pairs: Sequence[LayerPairs],
    idle: Sequence[Idle] = (),
) -> Layout:
    """Modules of the reference that can be observed, and those without a counterpart in each variant.

    Observed are decoder blocks, their attention and MLP, stacks of experts as one module, and every linear layer except
    the output head and experts that are separate modules, which see only some tokens. pairs: of every variant.
    idle: of the reference, then of every variant.
    """
    every = candidates(reference.modules)
    alone = {name: _ROUTED for name in every if _EXPERT.search(name)}
    alone |= {name: _UNCALLED for name in (idle[0].uncalled if idle else ()) if name in every}
    kinds = {name: kind for name, kind in every.items() if name not in alone}
    trace = _trace(reference, kinds, ids_1T)
    traces = [_trace_variant(variant, kinds, ids_1T, own) for variant, own in zip(variants, pairs, strict=True)]
    rows = ids_1T.numel()
    found = [
        _compare(trace, other, rows, own, alone, _list_extra(reference, variant, own))
        for other, variant, own in zip(traces, variants, pairs, strict=True)
    ]
    unpaired = [reasons for reasons, _ in found]
    usable = {name: call for name, call in trace.items() if not _unusable_reason(call, rows)}
    blocks = {} if reference.modules is None else block_numbers(reference.modules)
    return Layout(
        outputs=tuple(_outputs(usable, traces, kinds, unpaired)),
        inputs=tuple(_inputs(usable, kinds, blocks)),
        vocabulary=vocabulary,
        unpaired=tuple(dict(sorted(missing.items())) for missing in unpaired),
        expected=tuple(expected for _, expected in found),
        experts=tuple(() if side.modules is None else find_experts(side.modules) for side in (reference, *variants)),
        idle=tuple(idle),
        pairs=tuple(pairs),
    )


def _trace_variant(
    variant: Decoder, kinds: Mapping[str, ModuleKind], ids_1T: Tensor, pairs: LayerPairs
) -> dict[str, _Call]:
    """The calls of a variant's modules, under the names of their counterparts in the reference."""
    names = {name: pairs.find_in_variant(name) for name in kinds}
    own = {other: name for name, other in names.items() if other is not None and _has(variant.modules, other)}
    calls = _trace(variant, {other: kinds[name] for other, name in own.items()}, ids_1T)
    return {own[other]: call for other, call in calls.items()}


def _list_extra(reference: Decoder, variant: Decoder, pairs: LayerPairs) -> list[str]:
    """Modules that only the variant has, except for layers that the map declares to have no counterpart."""
    names = {name: pairs.find_in_reference(name) for name in candidates(variant.modules)}
    lone = [name for name, other in names.items() if other is None and not pairs.declared]
    return lone + [name for name, other in names.items() if other is not None and not _has(reference.modules, other)]


def _compare(
    trace: Mapping[str, _Call],
    other: Mapping[str, _Call],
    rows: int,
    pairs: LayerPairs,
    alone: Mapping[str, str],
    extra: Sequence[str],
) -> tuple[dict[str, str], frozenset[str]]:
    """Why modules cannot be compared, by name, and those of them that say nothing about the variant."""
    reasons, expected = _unpaired(trace, other, rows)
    lone = {name for name in trace if pairs.find_in_variant(name) is None}
    reasons |= dict.fromkeys(lone, pairs.reason)
    reasons |= {name: pairs.reason if name in lone else "only the variant has it" for name in extra} | dict(alone)
    return reasons, frozenset(expected | alone.keys() | (lone if pairs.declared else set()))


def candidates(model: Any) -> dict[str, ModuleKind]:
    """Name and kind of every module worth watching, in the order of ``named_modules``, without the head.

    None for a model whose engine gives no access to modules.
    """
    if model is None:
        return {}
    head = model.get_output_embeddings()
    kinds: dict[str, ModuleKind] = {}
    blocks = block_numbers(model)
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        inside_linear = any(kinds.get(outer) == "linear" for outer in list_parents(name))
        if module is head or inside_linear:
            continue
        if name in blocks:
            kinds[name] = "block"
        elif is_linear(module):
            kinds[name] = "linear"
        elif stacked_parameters(module):
            kinds[name] = "experts"
        elif parent in blocks and (kind := _kind_of_part(name.rpartition(".")[2], type(module).__name__)) is not None:
            kinds[name] = kind
    return kinds


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, quantized or not: quantized classes keep the two size attributes."""
    sizes = [("in_features", "out_features"), ("infeatures", "outfeatures"), ("nx", "nf")]
    return any(
        isinstance(getattr(module, a, None), int) and isinstance(getattr(module, b, None), int) for a, b in sizes
    )


def _kind_of_part(name: str, cls: str) -> ModuleKind | None:
    words = f"{name} {cls}".lower()
    if "norm" in words:
        return None
    if "attn" in words or "attention" in words:
        return "attention"
    return "mlp" if any(word in words for word in ("mlp", "ffn", "feed_forward", "feedforward", "moe")) else None


def _has(model: nn.Module | None, name: str) -> bool:
    if model is None:
        return False
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _trace(decoder: Decoder, kinds: Mapping[str, ModuleKind], ids_1T: Tensor) -> dict[str, _Call]:
    """Run the model once and record input and output of every named module."""
    if not kinds:
        return {}
    calls: dict[str, _Call] = {}
    read: dict[str, tuple[Tensor | None, tuple[float, float]]] = {}

    def record_input(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        source = first_input(arguments, named) if kinds[name] in _READING else None
        read[name] = source, _fingerprint(source)

    def record_output(name: str, output: object) -> None:
        tensor = first_tensor(output)
        depth, earlier = (calls[name].depth, calls[name].calls) if name in calls else (len(calls), 0)
        source, fingerprint = read[name]
        calls[name] = _Call(kinds[name], depth, earlier + 1, source, tensor, fingerprint, _fingerprint(tensor))

    with ExitStack() as stack:
        for name in kinds:
            module = decoder.modules.get_submodule(name)
            pre = module.register_forward_pre_hook(lambda _m, a, k, n=name: record_input(n, a, k), with_kwargs=True)
            post = module.register_forward_hook(lambda _m, _a, output, n=name: record_output(n, output))
            stack.callback(pre.remove)
            stack.callback(post.remove)
        decoder.states(ids_1T.to(decoder.device), None)
    return calls


def _fingerprint(tensor: Tensor | None) -> tuple[float, float]:
    """Two numbers that change when the values do; NaN counts as a value."""
    if tensor is None or not tensor.numel():
        return 0.0, 0.0
    values = tensor.detach().double().nan_to_num(nan=3.0, posinf=5.0, neginf=7.0)
    return float(values.sum()), float(values.square().sum())


def _unusable_reason(call: _Call, rows: int) -> str:
    """Why the values of a module cannot be arranged as one row per token ("" if they can)."""
    values = {"output": call.output} | ({"input": call.source} if call.kind in _READING else {})
    for what, tensor in values.items():
        if tensor is None:
            return f"its {what} is not a tensor"
        shape = tuple(tensor.shape)
        if shape[:-1] not in ((rows,), (1, rows), (1, 1, rows)) or not tensor.is_floating_point():
            return f"its {what} of shape {shape} does not have one row per token"
    return ""


def _unpaired(
    reference: Mapping[str, _Call], variant: Mapping[str, _Call], rows: int
) -> tuple[dict[str, str], set[str]]:
    """The reason for every module that cannot be compared, and those for which it is the same on both sides."""
    reasons: dict[str, str] = {}
    alike: set[str] = set()
    for name, call in reference.items():
        other = variant.get(name)
        if reason := _unusable_reason(call, rows):
            reasons[name] = reason
            alike |= {name} if other is not None and _unusable_reason(other, rows) == reason else set()
        elif other is None:
            reasons[name] = "only the reference runs it"
        elif reason := _unusable_reason(other, rows):
            reasons[name] = f"in the variant, {reason}"
        elif _widths(call) != _widths(other):
            reasons[name] = f"widths (in, out) are {_widths(call)} in the reference, {_widths(other)} in the variant"
        elif call.calls != other.calls:
            reasons[name] = f"it runs {call.calls} times in the reference, {other.calls} times in the variant"
    return reasons, alike


def _widths(call: _Call) -> tuple[int, int]:
    source, output = call.source, call.output
    return (0 if source is None else source.shape[-1], 0 if output is None else output.shape[-1])


def _outputs(
    usable: Mapping[str, _Call],
    traces: Sequence[Mapping[str, _Call]],
    kinds: Mapping[str, ModuleKind],
    unpaired: Sequence[Mapping[str, str]],
) -> Iterator[OutputSite]:
    earlier: dict[object, list[str]] = {}
    for depth, name in enumerate(sorted(usable, key=lambda name: usable[name].depth)):
        call = usable[name]
        alike = earlier.setdefault(_memory_layout(call.output), [])
        watched = [o for o in alike if not any(o in missing and name not in missing for missing in unpaired)]
        same = next((o for o in watched if all(_is_same_tensor(trace, o, name) for trace in (usable, *traces))), None)
        volatile = _fingerprint(call.output) != call.gave
        yield OutputSite(name, kinds[name], depth, _widths(call)[1], volatile, same)
        if same is None:
            alike.append(name)


def _is_same_tensor(trace: Mapping[str, _Call], first: str, second: str) -> bool:
    """Whether two modules returned the same tensor, not modified in between."""
    if first not in trace or second not in trace:
        return False
    a, b = trace[first], trace[second]
    return a.gave == b.gave and a.calls == b.calls == 1 and _memory_layout(a.output) == _memory_layout(b.output)


def _inputs(
    usable: Mapping[str, _Call], kinds: Mapping[str, ModuleKind], blocks: Mapping[str, int]
) -> Iterator[InputSite]:
    """Distinct inputs of linear layers and expert stacks: q, k and v projections read one tensor, and the first of them
    represents all."""
    seen: set[object] = set()
    for name in sorted(usable, key=lambda name: usable[name].depth):
        call = usable[name]
        key = (_memory_layout(call.source), call.read)
        if kinds[name] not in _READING or (key in seen and call.calls == 1):
            continue
        seen.add(key)
        layer = next((blocks[outer] for outer in list_parents(name) if outer in blocks), -1)
        yield InputSite(name, layer, _widths(call)[0])


def _memory_layout(tensor: Tensor | None) -> object:
    """Memory layout of a tensor: equal for two live tensors only if they are the same."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.numel(), tensor.shape[-1], tensor.is_contiguous(), tensor.dtype
