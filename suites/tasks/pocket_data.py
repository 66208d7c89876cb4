"""Data of the pocket tasks for lm-eval: written on the spot, so that no file and no cache can be stale.

lm-eval calls these with the `metadata` and `dataset_kwargs` of the task's YAML as keyword arguments, and adds
`config_source`, the path of that YAML.
"""

from __future__ import annotations

from functools import partial

from harness.pocket.tasks import TaskItems

EXAMPLES = 16


def _dataset(task: str, *, items: int, seed: int, version: float, config_source: str = "") -> dict[str, TaskItems]:
    """The first `items` items of a task as lm-eval's test split, and others for few-shot examples."""
    return {"test": TaskItems(task, items, seed), "examples": TaskItems(task, EXAMPLES, seed + 1)}


facts = partial(_dataset, "pocket_facts")
two_hop = partial(_dataset, "pocket_two_hop")
crowd = partial(_dataset, "pocket_crowd")
recall = partial(_dataset, "pocket_recall")
recall_far = partial(_dataset, "pocket_recall_far")
sums = partial(_dataset, "pocket_sums")
sums4 = partial(_dataset, "pocket_sums4")
requests = partial(_dataset, "pocket_requests")
prose = partial(_dataset, "pocket_prose")
