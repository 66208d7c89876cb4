"""Exact-match rate of a model on task items, from one teacher-forced pass.

A greedy decoder writes the target if and only if every target token is the likeliest one after the right prefix, so
one pass over prompt and target is equivalent to generation, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch import Tensor

from harness.pocket.tasks import TASKS, task_items

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def exact_rate(logits: Logits, tokenizer: Tokenizer, task: str, count: int, seed: int = 0, batch: int = 32) -> float:
    """The share of `count` items of a task whose target is written exactly; every vocabulary entry competes."""
    items = task_items(task, count, seed)
    space = "" if task.startswith("pocket_sums") else " "
    prompts = [tokenizer.encode(str(item["prompt"])).ids for item in items]
    targets = [tokenizer.encode(space + str(item["target"]), add_special_tokens=False).ids for item in items]
    right = 0
    for start in range(0, count, batch):
        rows = list(zip(prompts[start : start + batch], targets[start : start + batch], strict=True))
        longest = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.tensor(
            [[*prompt, *target] + [0] * (longest - len(prompt) - len(target)) for prompt, target in rows]
        )
        likeliest = logits(ids).argmax(-1)
        for row, (prompt, target) in enumerate(rows):
            right += likeliest[row, len(prompt) - 1 : len(prompt) + len(target) - 1].tolist() == target
    return right / count


def exact_rates(logits: Logits, tokenizer: Tokenizer, count: int, seed: int = 0) -> dict[str, float]:
    """`exact_rate` of every task that has a target."""
    tasks = [task for task in TASKS if task != "pocket_prose"]
    return {task: exact_rate(logits, tokenizer, task, count, seed) for task in tasks}
