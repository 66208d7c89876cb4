"""Counts the items of lm-eval tasks, as far as their files tell without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.task_files import TaskFiles, content_of, read_task_files
from harness.errors import DataError
from harness.system.resources import folder

STANDARD: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "arc_challenge": (1172, 4, ("accuracy",)),
    "arc_easy": (2376, 4, ("accuracy",)),
    "gsm8k": (1319, 0, ("exact_match",)),
    "hellaswag": (10042, 4, ("accuracy",)),
    "piqa": (1838, 2, ("accuracy",)),
    "winogrande": (1267, 2, ("accuracy",)),
}
"""Items, choices (0: generated) and metrics of standard tasks, in the split that lm-eval scores."""


RENAMED = {"acc": "accuracy"}


@dataclass(frozen=True)
class TaskSize:
    """One task: its items (None: not known), its choices (None: not known or not fixed, 0: none), and its metrics."""

    name: str
    items: int | None
    choices: int | None
    metrics: tuple[str, ...]


def task_sizes(names: Sequence[str], include: Sequence[str], limit: int | None) -> tuple[TaskSize, ...]:
    """The tasks of these names, in order. include: folders with more task files; limit: items of each at most."""
    try:
        files = read_task_files([Path(each) for each in include] + [folder("suites") / "tasks"])
    except DataError:
        files = TaskFiles(())
    return tuple(_task(name, limit, files) for name in names)


def _task(name: str, limit: int | None, files: TaskFiles) -> TaskSize:
    content = _read_declaration(name, files)
    if content is None:
        items, choices, metrics = STANDARD.get(name, (None, None, ()))
        return TaskSize(name, _apply_limit(items, limit), choices, metrics)
    arguments = content.get("dataset_kwargs")
    given = arguments.get("items") if isinstance(arguments, dict) else None
    choices = None if content.get("output_type") == "multiple_choice" else 0
    listed = content.get("metric_list")
    named = [entry.get("metric") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    metrics = tuple(RENAMED.get(metric, metric) for metric in named if isinstance(metric, str))
    return TaskSize(name, _apply_limit(given if isinstance(given, int) else None, limit), choices, metrics)


def _read_declaration(name: str, files: TaskFiles) -> dict[str, Any] | None:
    try:
        path = files.find(name)
    except DataError:
        return None
    return content_of(path) if path else None


def _apply_limit(items: int | None, limit: int | None) -> int | None:
    return limit if items is None else min(items, limit or items)
