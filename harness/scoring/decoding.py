"""Greedy continuations of many prompts: rows that end leave the batch at once, and prompts that wait take their place.

    beginning of a group ─▶ cache of one row ─┐ repeated
    waiting prompts ──────────────────────────┴▶ prefill ─▶ join ─▶ step ─▶ step ─▶ …
                               ▲                                      └─ ended? leave
                               └──────── a quarter of the rows is free ◀──┘

Legend: B rows, S tokens in the cache, T tokens of a call, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.models.language_model import LanguageModel
from harness.scoring.beginnings import Group, group_prompts
from harness.scoring.caches import join, keep_rows, layers_of, make_cache, map_layers
from harness.scoring.last_block import LastFeedForward, restrict_head
from harness.scoring.packing import Tokens
from harness.system.foreign import guard

REFILL_SHARE = 4
"""Waiting prompts are read once one in so many rows is free: reading and joining a few at a time costs more."""
Ended = Callable[[Sequence[int]], bool]
"""Whether a continuation (token ids) is complete."""


@dataclass
class Continuation:
    """What a model wrote after a prompt. finite: no logit was NaN or +infinity."""

    ids: list[int] = field(default_factory=list)
    finite: bool = True


@dataclass
class _Active:
    """The rows of the batch.

    numbers: of their prompts; mask: [B, S], 1 where the cache holds a token of the row; newest: [B], written last.
    """

    numbers: list[int]
    cache: Any
    mask: Tensor
    newest: Tensor


class GreedyDecoder:
    """Writes continuations with one model, whose cache keeps the keys and values of every token."""

    def __init__(self, name: str, language_model: LanguageModel, rows: int) -> None:
        """rows: the most prompts in a batch. The model must have modules."""
        self._name, self._rows, self._device = name, rows, language_model.device
        self._model: Any = language_model.for_transformers()
        self._takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        self._feed_forward = LastFeedForward(self._model)

    @torch.no_grad()
    def write(self, prompts: Sequence[Tokens], longest: int, ended: Ended) -> list[Continuation]:
        """Continue every prompt until ``ended`` says so or it has ``longest`` tokens.

        Raises UnusableCacheError for a model that keeps something else between tokens, and what the model raises.
        """
        written = [Continuation() for _ in prompts]
        waiting = [(group, number) for group in group_prompts(prompts) for number in group.numbers]
        beginning: tuple[Group | None, Any] = None, None
        active: _Active | None = None
        while waiting or active:
            free = self._rows - (len(active.numbers) if active else 0)
            if waiting and (active is None or free * REFILL_SHARE >= self._rows):
                group = waiting[0][0]
                if beginning[0] is not group:
                    beginning = group, self._read_beginning(prompts[group.numbers[0]][: group.shared])
                numbers = [number for own, number in waiting[:free] if own is group]
                waiting = waiting[len(numbers) :]
                read = self._read(numbers, prompts, beginning[1], written)
                active = read if active is None else _join(active, read)
            elif active is not None:
                active = self._step(active, prompts, written)
            active = _drop_ended(active, written, longest, ended)
        return written

    def _read_beginning(self, tokens: Tokens) -> Any:
        """The cache [1, H, S, D] of the first tokens of some prompts; None of no token."""
        if not tokens:
            return None
        return self._call(torch.tensor([tokens], device=self._device), [len(tokens)], None)[1]

    def _read(
        self, numbers: Sequence[int], prompts: Sequence[Tokens], prefix: Any, written: Sequence[Continuation]
    ) -> _Active:
        """Read prompts after the prefix, and write the first token of each."""
        shared = 0 if prefix is None else layers_of(prefix)[0][0].shape[2]
        rest = [prompts[number][shared:] for number in numbers]
        width = max(map(len, rest))
        # Padded on the right no token sees the padding, so that no mask is needed, and the fastest kernels are taken.
        ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rest], device=self._device)
        cache = None if prefix is None else map_layers(prefix, lambda x: x.expand(len(rest), -1, -1, -1))
        logits_BV, cache = self._call(ids_BT, [len(row) for row in rest], cache)
        padding = [width - len(row) for row in rest]
        for layer in cache.layers:
            layer.shift(padding)
        places = torch.arange(shared + width, device=self._device)
        mask_BS = (places >= torch.tensor(padding, device=self._device)[:, None]).long()
        return _Active(list(numbers), cache, mask_BS, _choose(logits_BV, numbers, written))

    def _call(self, ids_BT: Tensor, lengths: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] after the last token of each row, and the cache with the tokens of [B, T] added to it."""
        rows, width = ids_BT.shape
        before = 0 if cache is None else layers_of(cache)[0][0].shape[2]
        positions_BT = torch.arange(before, before + width, device=self._device).expand(rows, -1)
        last_B = torch.tensor([row * width + length - 1 for row, length in enumerate(lengths)], device=self._device)
        with self._feed_forward.restrict(last_B), restrict_head(self._model, last_B):
            logits, cache = self._forward(ids_BT, None, positions_BT, make_cache() if cache is None else cache)
        logits_NV = logits.flatten(0, 1)
        return (logits_NV if len(logits_NV) == rows else logits_NV[last_B]), cache

    def _step(self, active: _Active, prompts: Sequence[Tokens], written: Sequence[Continuation]) -> _Active:
        """Write one more token of every row."""
        mask_BS = torch.nn.functional.pad(active.mask, (0, 1), value=1)
        positions_B1 = mask_BS.sum(dim=1, keepdim=True) - 1
        logits_B1V, cache = self._forward(active.newest[:, None], mask_BS, positions_B1, active.cache)
        return _Active(active.numbers, cache, mask_BS, _choose(logits_B1V[:, -1], active.numbers, written))

    def _forward(self, ids_BT: Tensor, mask_BS: Tensor | None, positions_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """What the model gives as logits, and the cache with the new tokens."""
        named = {"position_ids": positions_BT} if self._takes_positions else {}
        with guard(f"{self._name}: its generation"):
            output = self._model(
                input_ids=ids_BT, attention_mask=mask_BS, past_key_values=cache, use_cache=True, **named
            )
        layers_of(output.past_key_values)
        return output.logits, output.past_key_values


def _choose(logits_BV: Tensor, numbers: Sequence[int], written: Sequence[Continuation]) -> Tensor:
    """The most likely token [B] of each row, also noted in its continuation."""
    newest_B = logits_BV.argmax(dim=-1)
    highest_B = logits_BV.gather(-1, newest_B[:, None])[:, 0]  # NaN counts as the highest.
    broken_B = torch.isnan(highest_B) | torch.isposinf(highest_B)
    for number, token, broken in zip(numbers, newest_B.tolist(), broken_B.tolist(), strict=True):
        written[number].ids.append(token)
        written[number].finite &= not broken
    return newest_B


def _join(one: _Active, other: _Active) -> _Active:
    width = max(one.mask.shape[1], other.mask.shape[1])
    masks = [torch.nn.functional.pad(each.mask, (width - each.mask.shape[1], 0)) for each in (one, other)]
    return _Active(
        [*one.numbers, *other.numbers],
        join(one.cache, other.cache),
        torch.cat(masks),
        torch.cat([one.newest, other.newest]),
    )


def _drop_ended(active: _Active | None, written: Sequence[Continuation], longest: int, ended: Ended) -> _Active | None:
    """The rows that go on, without the columns that are padding in all of them; None if there are none."""
    if active is None:
        return None
    going = [
        row
        for row, each in enumerate(written[number] for number in active.numbers)
        if each.finite and len(each.ids) < longest and not ended(each.ids)
    ]
    if len(going) == len(active.numbers):
        return active
    if not going:
        return None
    # The last rows take the places of those that ended, so that few are copied.
    stays, last = set(going), [row for row in going if row >= len(going)]
    rows = [row if row in stays else last.pop() for row in range(len(going))]
    mask_BS = active.mask[rows]
    first = int(mask_BS.any(dim=0).int().argmax())
    keep_rows(active.cache, rows, first)
    return _Active([active.numbers[row] for row in rows], active.cache, mask_BS[:, first:], active.newest[rows])
