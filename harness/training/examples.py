"""Examples in batches: their order, which depends on the seed alone, and what a loss function sees of them.

Legend: B examples, T positions, N scored tokens, V logits of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Example:
    """A text to train on. ids: int64 [T]. scored_from: position of the first token that is predicted, at least 1
    (after a prompt, later)."""

    ids: Tensor
    scored_from: int = 1

    @property
    def scored(self) -> int:
        """Number of tokens that are predicted."""
        return max(0, len(self.ids) - self.scored_from)


@dataclass(frozen=True)
class Batch:
    """Examples that go through a model together.

    ids: int64 [B, T], filled with 0 after the end of a text, where a causal model's earlier logits do not see it.
    scored: bool [B, T], the tokens to be predicted (never the first, never filling). places: of the examples in the
    data of the task, for losses that keep something for each. step: the optimizer step, counted from 0. number: of its
    first unit in the order of the training, for losses that draw further texts. held_out: whether it is evaluated.
    """

    ids: Tensor
    scored: Tensor
    places: tuple[int, ...]
    step: int = 0
    number: int = 0
    held_out: bool = False

    @property
    def tokens(self) -> int:
        """Number of scored tokens (N)."""
        return int(self.scored.sum())

    @property
    def targets(self) -> Tensor:
        """Ids [N] of the scored tokens, text by text."""
        return self.ids[self.scored]

    @property
    def rows(self) -> Tensor:
        """Row [N] of each scored token."""
        return self.scored.nonzero()[:, 0]

    def logits(self, model: nn.Module) -> Tensor:
        """Logits [N, V] by which ``model`` predicts the scored tokens, in the order of ``targets``."""
        called: Any = cast(Any, model)(input_ids=self.ids, use_cache=False)
        return self.select(called.logits)

    def select(self, values_BTX: Tensor) -> Tensor:
        """Of values at every position [B, T, X] those [N, X] from which the scored tokens are predicted."""
        return values_BTX[:, :-1][self.scored[:, 1:]]


def make_batch(
    examples: Sequence[Example],
    places: Sequence[int],
    device: torch.device | str = "cpu",
    step: int = 0,
    number: int = 0,
    held_out: bool = False,
) -> Batch:
    """The examples at ``places``; the rest as in ``Batch``."""
    chosen = [examples[place] for place in places]
    longest = max(len(each.ids) for each in chosen)
    ids_BT = torch.zeros(len(chosen), longest, dtype=torch.int64)
    scored_BT = torch.zeros(len(chosen), longest, dtype=torch.bool)
    for row, each in enumerate(chosen):
        ids_BT[row, : len(each.ids)] = each.ids
        scored_BT[row, each.scored_from : len(each.ids)] = True
    return Batch(ids_BT.to(device), scored_BT.to(device), tuple(places), step, number, held_out)


def place_of_step(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of ``count`` units belong to optimizer step ``step``."""
    return places_in_order(step * batch, batch, count, seed)


def places_in_order(first: int, wanted: int, count: int, seed: int) -> list[int]:
    """Which of ``count`` units come at places ``first`` to ``first + wanted - 1`` of the order of a training.

    An endless stream of permutations, each of all units and drawn from the seed and its own number, is cut into
    batches: after k permutations every unit was seen k times, and no earlier step need be replayed to know a later one.
    """
    epochs = range(first // count, (first + wanted - 1) // count + 1)
    orders = {each: np.random.default_rng([seed, each]).permutation(count) for each in epochs}
    return [int(orders[number // count][number % count]) for number in range(first, first + wanted)]


def examples_sha256(examples: Iterable[Example]) -> str:
    """Hash of all ids and scored positions, in order."""
    digest = hashlib.sha256()
    for each in examples:
        digest.update(len(each.ids).to_bytes(8, "little") + each.scored_from.to_bytes(8, "little"))
        digest.update(each.ids.numpy().astype("<i8").tobytes())
    return digest.hexdigest()
