"""Descriptions of stacked experts: one for a stack, not one for every expert in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.records import ModuleFormat


def merge_stacks(described: Iterable[ModuleFormat]) -> tuple[ModuleFormat, ...]:
    """Merge the formats of a stack's expert matrices into one entry under the name of the stack, in the order of first
    appearance.

    All matrices of a stack have one shape, so their bits per weight are averaged.
    """
    from harness.modules.experts import stack_name

    groups: dict[str, list[ModuleFormat]] = {}
    for each in described:
        groups.setdefault(stack_name(each.module), []).append(each)
    return tuple(group[0] if name == group[0].module else _merge(name, group) for name, group in groups.items())


def _merge(name: str, group: Sequence[ModuleFormat]) -> ModuleFormat:
    first = group[0].format
    methods = sorted({each.format.range_method for each in group})
    ranges = {"ranges": " or ".join(methods), "percentile": None} if len(methods) > 1 else {}
    return group[0].model_copy(
        update={
            "module": name,
            "parameters": sum(each.parameters for each in group),
            "stored_bytes": sum(each.stored_bytes for each in group),
            "bits_per_weight": sum(each.bits_per_weight for each in group) / len(group),
            "format": first.model_copy(
                update={
                    **ranges,
                    "act_order": any(each.format.act_order for each in group),
                    "sparse": any(each.format.sparse for each in group),
                }
            ),
        }
    )
