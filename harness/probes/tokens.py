"""The probe ``tokens``: statistics of both models' logits at every scored token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.lockstep.recording import PassContext, Recorder
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.lockstep.batches import Batch


class Tokens(Probe):
    """Statistics of both models' predictions at every scored token: likelihoods, top-1, entropy, divergences.

    Writes one row to the table ``tokens`` per id of a document except its first. If the sides have different numbers of
    logits, the statistics are those of the common ids, except for top-1, which is that of all ids of a side; the table
    ``extra_ids`` then has one row per document: the probability that each side gives to its other ids, the largest at
    any token and the mean.
    """

    runs = "shared_pass"

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of logit statistics."""
        return _TokenRecorder(context)


class _TokenRecorder(Recorder):
    reads_logits = True

    def __init__(self, context: PassContext) -> None:
        self._kernel = context.kernels.logits
        self._variants = context.variants

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._found: list[list[dict[str, Tensor]]] = [[] for _ in range(self._variants)]
        self._extra: list[dict[str, list[Tensor]]] = [{} for _ in range(self._variants)]

    def logits(self, variant: int, reference_NV: Tensor, variant_NV: Tensor, targets_N: Tensor) -> None:
        from harness.lockstep.logit_statistics import logit_statistics

        self._found[variant].append(logit_statistics(reference_NV, variant_NV, targets_N, self._kernel))

    def extra_logits(
        self, variant: int, kept: int, reference_NV: Tensor, variant_NV: Tensor, targets_N: Tensor
    ) -> None:
        from harness.lockstep.logit_statistics import extra_statistics

        statistics = self._found[variant][-1]
        for side, all_NV in (("reference", reference_NV), ("variant", variant_NV)):
            nll, top1 = statistics[f"{side}_nll"], statistics[f"{side}_top1"]
            extra_NE, common_NV = all_NV[:, kept:], all_NV[:, :kept]
            mass, statistics[f"{side}_top1"] = extra_statistics(extra_NE, common_NV, targets_N, nll, top1)
            self._extra[variant].setdefault(side, []).append(mass)

    def rows(self, variant: int) -> Mapping[str, pd.DataFrame]:
        import numpy as np
        import pandas as pd
        import torch

        documents, lengths = self._batch.documents, np.array(self._batch.lengths)
        columns: dict[str, object] = {
            "document": np.repeat([d.index for d in documents], lengths - 1).astype(np.int32),
            "position": np.concatenate([np.arange(1, length) for length in lengths]).astype(np.int32),
            "target": np.concatenate([d.ids[1:] for d in documents]).astype(np.int32),
            "bytes": np.concatenate([d.bytes[1:] for d in documents]).astype(np.float32),
        }
        chunks = self._found[variant]
        for name in chunks[0]:
            column = torch.cat([chunk[name] for chunk in chunks])
            columns[name] = (column.float() if column.is_floating_point() else column).cpu().numpy()
        frames = {"tokens": pd.DataFrame(columns)}
        if extra := self._extra[variant]:
            ends = np.cumsum(lengths - 1)[:-1]
            parts = {side: np.split(torch.cat(masses).cpu().numpy(), ends) for side, masses in extra.items()}
            shares = {f"{side}_largest": [part.max() for part in own] for side, own in parts.items()}
            shares |= {f"{side}_mean": [part.mean() for part in own] for side, own in parts.items()}
            index = np.array([document.index for document in documents], dtype=np.int32)
            frames["extra_ids"] = pd.DataFrame({"document": index} | shares)
        return frames
