"""Memory and time of steps that train, from the shapes that the reference's config.json tells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from harness.backends._common.training import TrainingBackend
from harness.forecast.model_size import BYTES, ModelSize
from harness.planning.specs import Plan
from harness.training.memory import Shapes, shapes_of

FORWARD_PASSES = 4
"""Of a training step, in forward passes of the reference: one of each model, and a backward pass that costs two."""


def steps_that_train(plan: Plan) -> Iterator[TrainingBackend]:
    """The steps of a plan with training data."""
    if plan.training is not None:
        yield from (step for step in plan.variant.compress if isinstance(step, TrainingBackend))


def training_memory(plan: Plan, reference: ModelSize) -> list[tuple[str, dict[str, int]]]:
    """Bytes of every part of each training, beside the reference itself, by the name of its step."""
    spec = plan.training
    if spec is None:
        return []
    found, width = [], BYTES[plan.variant.dtype or plan.reference.dtype]
    for step in steps_that_train(plan):
        parameters, shapes = step.shrink(reference.parameters, read_shapes(reference.folder))
        parts = step.forecast_memory(parameters, width, shapes)
        if shapes is not None:
            parts["activations"] = shapes.activations(step.batch, spec.tokens) + step.extra_activations(parameters)
        found.append((step.kind, parts))
    return found


def training_tokens(plan: Plan) -> int:
    """Tokens that all trainings of a plan process, texts counted as full."""
    spec = plan.training
    if spec is None:
        return 0
    lengths = [
        spec.documents * spec.epochs if spec.steps is None and spec.epochs else (spec.steps or 0) * step.batch
        for step in steps_that_train(plan)
    ]
    return sum(lengths) * spec.tokens


def read_shapes(folder: Path) -> Shapes | None:
    """The shapes that a model's config.json tells; None where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return shapes_of(SimpleNamespace(**(config | config.get("text_config", {})))) if isinstance(config, dict) else None
