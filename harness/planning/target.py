"""Reads the entry ``target`` of a variant file, and warns about formats without a kernel on that hardware."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.backends import Backend
from harness.backends._common.weights import WeightBackend
from harness.numerics.hardware.fit import Use, explain_missing, kernels_for
from harness.numerics.hardware.profiles import target_names
from harness.planning.checking import Checker
from harness.planning.specs import Plan
from harness.plugins import nearest
from harness.records import Note
from harness.system.yaml_values import describe


def read_target(check: Checker, value: Any) -> str | None:
    """The name of a target; None and a problem for anything else, None if nothing is given."""
    if value is None or (isinstance(value, str) and value in target_names()):
        return value
    close = nearest(value, target_names()) if isinstance(value, str) else ""
    hint = f"did you mean {close}?" if close else ""
    check.problem(("target",), describe(value), f"one of {', '.join(target_names())}", hint)
    return None


def target_notes(plan: Plan) -> list[Note]:
    """A warning for every weight format in the declared steps that no kernel on the target supports.

    Only settings are used, so that the warning comes before a model is loaded. The combined effect of steps on the same
    modules, and the formats of a checkpoint, are known only when the variant has been made.
    """
    if plan.target is None:
        return []
    steps = plan.variant.compress
    inputs_too = any("activations" in step.puts_on_grid for step in steps)
    notes = []
    for use, kind in dict.fromkeys((use, step.kind) for step in steps for use in _uses(step)):
        if not kernels_for(plan.target, use, any_inputs=inputs_too):
            text = f"{plan.target}: {use} (step {kind}) has no kernel: {explain_missing(plan.target, use)}"
            notes.append(Note(topic="hardware", text=text, level="warn"))
    return notes


def _uses(step: Backend) -> Iterator[Use]:
    """The weight formats that the settings of a step name, overrides included."""
    if isinstance(step, WeightBackend):
        for settings in step.variations():
            yield Use.of(settings.number_format())
