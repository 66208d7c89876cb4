"""Which variants go through the reference together: those that can share its pass, as many as memory holds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.forecast.cost import Memory, memory
from harness.forecast.machine import total_memory
from harness.planning.specs import Plan


def group_plans(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Group plans that can share one reference pass: same reference, same suites, same place where they run.

    In order of first appearance.

    Settings of measures may differ, because every variant is measured by its own plan.
    """
    groups: dict[str, list[Plan]] = {}
    for plan in plans:
        suites = [suite.model_dump(mode="json", exclude={"measures"}) for suite in plan.suites]
        place = plan.run and plan.run.model_dump(mode="json")
        shared = json.dumps([plan.reference.model_dump(mode="json"), suites, place], sort_keys=True)
        groups.setdefault(shared, []).append(plan)
    return list(groups.values())


def split_to_fit(group: Sequence[Plan], memory_limit: float | None = None) -> list[list[Plan]]:
    """The plans of one group in the passes in which they fit the memory of this machine, in order.

    memory_limit: bytes of another machine, on which they will run.

    Every pass takes as many as fit beside the reference; one that does not fit by itself has a pass of its own, as has
    the whole group where sizes or memory are not known, or the models are on a GPU.
    """
    total = total_memory() if memory_limit is None else memory_limit
    if total is None or group[0].reference.device != "cpu":
        return [list(group)]
    passes: list[list[Plan]] = []
    for plan in group:
        if passes and need_together([*passes[-1], plan]) <= total:
            passes[-1].append(plan)
        else:
            passes.append([plan])
    return passes


def describe_passes(passes: Sequence[Sequence[Plan]]) -> str:
    """Why a group is checked in several passes; empty for one."""
    if len(passes) < 2:
        return ""
    total = total_memory() or 0
    sizes = ", ".join(str(len(each)) for each in passes[:-1]) + f" and {len(passes[-1])}"
    return (
        f"the reference and {sum(map(len, passes))} variants need "
        f"{need_together([plan for each in passes for plan in each]) / 1e9:.1f} GB together, and this machine has "
        f"{total / 1e9:.1f} GB: {len(passes)} passes of {sizes} variants, each with the reference again; the numbers "
        "are the same"
    )


def need_together(plans: Sequence[Plan]) -> float:
    """Bytes of the reference, all variants, and what works on one of them at a time; unknown sizes count as none."""
    known = [need for need in map(memory, plans) if isinstance(need, Memory)]
    if not known:
        return 0.0
    working = max(need.total - need.reference - need.variant for need in known)
    return known[0].reference + sum(need.variant for need in known) + working
