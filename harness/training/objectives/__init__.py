"""Objectives of distillation: one file is one term of the loss; its fields are its YAML settings.

    texts, or what teacher and student write ─▶ Batch ┐
    student ─▶ Outputs ─────────────────────────────────────┼▶ losses ─▶ sum by weight
    teacher ─▶ Outputs ─────────────────────────────────────┘

Losses are functions of tensors (``_rows``, ``_terms``, ``_relations``) and know nothing of training.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.training.objectives._base import Generating, Objective
from harness.training.objectives.feature import Feature
from harness.training.objectives.logit import Logit
from harness.training.objectives.on_policy import OnPolicy
from harness.training.objectives.preference import Preference
from harness.training.objectives.sequence import Sequence
from harness.training.objectives.traces import Traces

AnyObjective = Annotated[Logit | Sequence | Feature | Preference | Traces | OnPolicy, Field(discriminator="objective")]
"""An entry of ``objectives``: the key ``objective`` says which."""

__all__ = [
    "AnyObjective",
    "Feature",
    "Generating",
    "Logit",
    "Objective",
    "OnPolicy",
    "Preference",
    "Sequence",
    "Traces",
]
