"""In which order the items of a task are drawn, and how many at each stage: a function of their number alone.

The stages are those of the looks at which a run may stop (see ``harness/planning/sampling/looks.py``); whoever computes
one of them draws the same items, and reads no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import DataError
from harness.models.language_model import replace_attribute
from harness.records import ItemsSpec
from harness.statistics import planned_looks


@dataclass(frozen=True)
class Stages:
    """The items of one of lm-eval's tasks that can be drawn.

    available: its data. numbers: their places in it, in the order in which they are drawn. sizes: how many are drawn at
    the end of each stage. passage: the field that several items of one cluster share; None: only equal documents are
    one.
    """

    task: Any
    available: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    sizes: Sequence[int]
    passage: str | None

    @property
    def name(self) -> str:
        """The name of the task."""
        return str(self.task.config.task)

    def draw(self, stage: int) -> Sequence[int]:
        """The places, in the task's data, of the items that a stage adds."""
        return self.numbers[self.sizes[stage - 1] if stage else 0 : self.sizes[stage]]

    @contextmanager
    def restrict(self, stage: int) -> Iterator[None]:
        """Let lm-eval see only the documents of a stage, numbered from 0. Few-shot examples stay those of the task."""
        documents = [dict(self.available[number]) for number in self.draw(stage)]
        source = "test_docs" if self.task.has_test_docs() else "validation_docs"
        with replace_attribute(self.task, source, lambda: documents):
            yield

    def to_table(self) -> pd.DataFrame:
        """Rows of the table ``item_order``, in the order in which items are drawn."""
        stages = [stage for stage in range(len(self.sizes)) for _ in self.draw(stage)]
        return pd.DataFrame({"task": self.name, "doc_id": list(self.numbers), "stage": stages})

    def number_items(self, rows: pd.DataFrame, stage: int) -> pd.DataFrame:
        """Rows of items that lm-eval saw as those of a stage, with their places in the task's data."""
        numbers = self.draw(stage)
        return rows.assign(doc_id=[numbers[document] for document in rows["doc_id"]])

    def label_items(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of items, where those of one passage have one hash (``doc_hash``), by which measures cluster them.

        Raises DataError where the data has no such field.
        """
        if self.passage is None:
            return rows
        numbers = rows["doc_id"].unique().tolist()
        labels = {number: self._hash_field(self.available[number], self.passage) for number in numbers}
        return rows.assign(doc_hash=[labels[number] for number in rows["doc_id"].tolist()])

    def _hash_field(self, document: Mapping[str, Any], field: str) -> str:
        if field not in document:
            raise DataError(
                f"task {self.name}: items names the passage {field!r}, and the data has {', '.join(document)}; "
                "name the field that holds what several items share, or leave passage out"
            )
        return hashlib.sha256(json.dumps(document[field], sort_keys=True, default=repr).encode()).hexdigest()


def plan_stages(task: Any, spec: ItemsSpec) -> Stages:
    """The stages of one of lm-eval's tasks. Raises DataError for a task without documents."""
    available = task.eval_docs
    if not len(available):
        raise DataError(f"task {task.config.task}: found no document, expected at least one")
    order = np.random.default_rng([spec.seed, len(available)]).permutation(len(available))[: spec.max].tolist()
    return Stages(task, available, order, planned_looks(min(spec.min, len(order)), len(order)), spec.passage)
