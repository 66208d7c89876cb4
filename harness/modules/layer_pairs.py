"""Which decoder layer of a variant stands for which of its reference.

Modules are paired by name. If the numbers of decoder layers differ, names say nothing: layer 2 of a model that lost its
layer 1 is layer 3 of the reference. Then only a declared map pairs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from harness.errors import ModelError


@dataclass(frozen=True)
class LayerPairs:
    """Counterparts of the modules of a reference in one variant. Modules outside of decoder layers keep their names.

    layers: name of a decoder layer in the reference to its name in the variant. lone and lone_in_variant: decoder
    layers without a counterpart. reason: why they have none. declared: whether a map in the variant file says so.
    """

    layers: Mapping[str, str] = field(default_factory=dict)
    lone: frozenset[str] = frozenset()
    lone_in_variant: frozenset[str] = frozenset()
    reason: str = ""
    declared: bool = False

    def find_in_variant(self, name: str) -> str | None:
        """Name of the variant's counterpart of a module of the reference; None for one in a lone layer."""
        return _translate(name, self.layers, self.lone)

    def find_in_reference(self, name: str) -> str | None:
        """Name of the reference's counterpart of a module of the variant; None for one in a lone layer."""
        return _translate(name, {other: own for own, other in self.layers.items()}, self.lone_in_variant)


SAME_NAMES = LayerPairs()


def pair_layers(
    reference: nn.Module | None, variant: nn.Module | None, declared: Sequence[int | None] | None = None
) -> LayerPairs:
    """Pair the decoder layers of two models by ``declared``, or by name if both have as many.

    declared: for each layer of the variant the number of the reference's layer that it stands for, None for a layer
    without a counterpart. Raises ModelError for a map that does not fit the two models.
    """
    if reference is None or variant is None:
        return SAME_NAMES
    before, after = list(block_numbers(reference)), list(block_numbers(variant))
    if declared is None:
        if len(before) == len(after):
            return SAME_NAMES
        reason = (
            f"the variant has {len(after)} decoder layers, the reference {len(before)}, so their numbers do not say "
            "which correspond; declare it with layers: in the entry variant of the variant file"
        )
        return LayerPairs({}, frozenset(before), frozenset(after), reason)
    _check_map(declared, len(before), len(after))
    layers = {before[own]: after[place] for place, own in enumerate(declared) if own is not None}
    reason = "no layer of the variant stands for it"
    lone, lone_after = frozenset(before) - layers.keys(), frozenset(after) - set(layers.values())
    return LayerPairs(layers, lone, lone_after, reason, declared=True)


def block_numbers(model: nn.Module) -> dict[str, int]:
    """Name and index of every decoder block, taken from the longest module list that is in no other list."""
    text = text_part(model)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.startswith(text)
    }
    outermost = {name: module for name, module in lists.items() if not any(o in lists for o in list_parents(name))}
    if not outermost:
        return {}
    name = max(outermost, key=lambda name: len(outermost[name]))
    return {f"{name}.{index}": index for index in range(len(outermost[name]))}


def text_part(model: nn.Module) -> str:
    """How the names of the modules begin that read texts: those of the language model in a vision-language model, else
    all (""). Towers may have more and larger layers."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return ""
    decoder = cast(Any, model).get_decoder()
    return next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")


def list_parents(name: str) -> Iterator[str]:
    """Names of the modules around a module, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _check_map(declared: Sequence[int | None], before: int, after: int) -> None:
    if len(declared) != after:
        raise ModelError(
            f"variant.layers: found {len(declared)} entries, expected {after}, one for each decoder layer of the "
            "variant: the number of the reference's layer that it stands for, or null"
        )
    if beyond := [own for own in declared if own is not None and own >= before]:
        raise ModelError(
            f"variant.layers: found layer {beyond[0]}, expected 0 to {before - 1}, the decoder layers of the reference"
        )


def _translate(name: str, layers: Mapping[str, str], lone: frozenset[str]) -> str | None:
    for outer in (name, *list_parents(name)):
        if outer in lone:
            return None
        if outer in layers:
            return layers[outer] + name[len(outer) :]
    return name
