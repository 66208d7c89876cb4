"""Log-likelihoods of token sequences by a model that reads packed rows.

Legend: B rows, T positions of the longest, N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.lockstep.decoder import VERIFIED_TOKENS, Decoder
from harness.scoring.last_block import LastFeedForward
from harness.scoring.packing import Row, Scored, batch_rows, pack
from harness.system.foreign import guard

CPU_TOKENS, GPU_TOKENS = 1024, 8192
"""Positions computed in one call. On a CPU, larger calls gain nothing and need more memory."""
HEAD_ROWS = 128
"""Tokens whose logits are in memory at a time."""


class Likelihood(NamedTuple):
    """Sum of the log-probabilities of the scored tokens in nats, and whether each is the most likely token."""

    total: float
    greedy: bool


class PackedLikelihoods:
    """A model that is given trees of tokens, each token with a mask of what it sees."""

    def __init__(self, decoder: Decoder) -> None:
        """The model must have modules."""
        self._decoder = decoder
        self._model: Any = decoder.modules
        self._feed_forward = LastFeedForward(decoder.modules)
        self._prepared = False
        self.dtype = torch.float32
        """Dtype of the log-probabilities of the newest batch."""

    @torch.no_grad()
    def score(
        self, sequences: Sequence[Scored], limit: int, softmax_dtype: torch.dtype | None = None
    ) -> Iterator[dict[int, Likelihood]]:
        """The likelihoods of all sequences by their numbers, batch by batch.

        limit: the most tokens that the model may read at once; no continuation may be longer. Log-probabilities are
        summed in the dtype of the softmax (None: that of the logits). Raises what the model raises.
        """
        if not self._prepared:
            first = sequences[0].inputs(limit)[:VERIFIED_TOKENS]
            self._decoder.prepare(torch.tensor([first], device=self._decoder.device))
            self._prepared = True
        tokens = CPU_TOKENS if self._decoder.device.type == "cpu" else GPU_TOKENS
        for rows in batch_rows(pack(sequences, limit), tokens):
            yield dict(self._score_batch(rows, sequences, softmax_dtype))

    def _score_batch(
        self, rows: Sequence[Row], sequences: Sequence[Scored], dtype: torch.dtype | None
    ) -> Iterator[tuple[int, Likelihood]]:
        width = max(len(row.ids) for row in rows)
        nodes = {
            number: [at * width + node for node in own]
            for at, row in enumerate(rows)
            for number, own in row.nodes.items()
        }
        used = sorted({node for own in nodes.values() for node in own})
        with self._feed_forward.restrict(torch.tensor(used, device=self._decoder.device)):
            states = self._states(rows, width)
        chunk: list[tuple[int, list[int]]] = []
        kept: set[int] = set()
        for number, own in nodes.items():
            if chunk and len(kept.union(own)) > HEAD_ROWS:
                yield from self._score_chunk(states, chunk, sequences, dtype)
                chunk, kept = [], set()
            chunk.append((number, own))
            kept.update(own)
        yield from self._score_chunk(states, chunk, sequences, dtype)

    def _score_chunk(
        self,
        states: Tensor,
        chunk: Sequence[tuple[int, list[int]]],
        sequences: Sequence[Scored],
        dtype: torch.dtype | None,
    ) -> Iterator[tuple[int, Likelihood]]:
        """Likelihoods of a few sequences, each from the states at its nodes."""
        kept = sorted({node for _, nodes in chunk for node in nodes})
        rows = {node: row for row, node in enumerate(kept)}
        with guard(f"{self._decoder.name}: its forward pass"):
            logits_NV = self._decoder.logits(states[torch.tensor(kept, device=states.device)])
        logp_NV = torch.log_softmax(logits_NV, dim=-1, dtype=dtype)
        self.dtype = logp_NV.dtype
        best = logp_NV.argmax(dim=-1).tolist()
        for number, nodes in chunk:
            wanted = sequences[number].continuation
            at = [rows[node] for node in nodes]
            total = float(logp_NV[at, list(wanted)].sum())
            yield number, Likelihood(total, all(best[row] == token for row, token in zip(at, wanted, strict=True)))

    def _states(self, rows: Sequence[Row], width: int) -> Tensor:
        """Last hidden states [B*T, D] of rows, padded on the right."""
        device = self._decoder.device
        ids_BT = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows], device=device)
        if all(row.is_path for row in rows):
            # No token sees the padding that follows it, and kernels that know of no mask are faster.
            with guard(f"{self._decoder.name}: its forward pass"):
                return self._decoder.states(ids_BT, None)
        positions_BT = torch.tensor([[*row.positions, *[0] * (width - len(row.ids))] for row in rows], device=device)
        # Padding ends where it begins, so that it sees itself and is seen by nothing else.
        ends_BT = torch.tensor([[*row.ends, *range(len(row.ids) + 1, width + 1)] for row in rows], device=device)
        places = torch.arange(width, device=device)
        sees_BTT = (places <= places[:, None]) & (places[:, None] < ends_BT[:, None, :])
        with guard(f"{self._decoder.name}: its forward pass"):
            return self._decoder.states(ids_BT, self._mask(sees_BTT[:, None]), positions_BT)

    def _mask(self, sees_B1TT: Tensor) -> Tensor:
        """The mask as the model's attention takes it: added to the scores, or true where a token is seen."""
        if self._model.config._attn_implementation != "eager":
            return sees_B1TT
        dtype: torch.dtype = self._model.dtype
        return torch.zeros(sees_B1TT.shape, dtype=dtype, device=sees_B1TT.device).masked_fill(
            ~sees_B1TT, torch.finfo(dtype).min
        )
