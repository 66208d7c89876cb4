"""The probe ``calibration_data``: compares the evaluation documents with the variant's calibration documents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from harness.lockstep.recording import REFERENCE, PassContext, Recorder, Tap, check_rows
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.data.calibration import Calibrated
    from harness.data.encoding import EncodedDocument
    from harness.lockstep.batches import Batch

    Row = tuple[str, int, str, int, int, int]


class CalibrationData(Probe):
    """Compares every evaluation document with the calibration documents: text, tokens, activation ranges.

    Writes rows (part, document, module, token, count, total) to the table ``calibration_data``: part ``overlap``: how
    many of a document's token windows occur in the calibration documents; ``evaluation`` and ``calibration``: how often
    a token occurs in a document; ``range``: how many inputs of a module lie outside the range of the variant's own
    module on the calibration documents. For a variant without calibration: part ``none``.
    """

    runs = "shared_pass"
    needs = ("hooks",)
    calibration_ranges = True

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of the variants' module inputs."""
        return _CalibrationRecorder(context)


class _CalibrationRecorder(Recorder):
    """Counts per document; the reference is not observed."""

    def __init__(self, context: PassContext) -> None:
        self._fitted = context.calibrations
        self._layout = context.layout

    def inputs(self, side: int) -> Mapping[str, Tap]:
        fitted = None if side == REFERENCE else self._fitted[side]
        if fitted is None:
            return {}
        unpaired, ranges = self._layout.unpaired[side], fitted.ranges
        names = [site.module for site in self._layout.inputs if site.module not in unpaired]
        own = {name: self._layout.find_in_variant(side, name) for name in names}
        return {
            name: partial(self._add, side, name, *ranges[other])
            for name, other in own.items()
            if other is not None and other in ranges
        }

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._outside: dict[tuple[int, str], Tensor] = {}
        self._total: dict[tuple[int, str], int] = {}

    def _add(self, side: int, module: str, low: float, high: float, input_NH: Tensor) -> None:
        check_rows(module, input_NH, self._batch)
        found_N = count_outside(input_NH, low, high)
        earlier = self._outside.get((side, module))
        self._outside[side, module] = found_N if earlier is None else earlier + found_N
        self._total[side, module] = self._total.get((side, module), 0) + input_NH.shape[-1]

    def rows(self, variant: int) -> Mapping[str, pd.DataFrame]:
        import pandas as pd

        fitted = self._fitted[variant]
        documents = self._batch.documents
        found: list[Row] = []
        if fitted is None:
            found = [("none", document.cluster, "", -1, 0, 0) for document in documents]
        else:
            for document in documents:
                shared, windows = fitted.data.seen.count_shared(document.ids)
                found.append(("overlap", document.cluster, "", -1, shared, windows))
            found += _tokens("evaluation", documents, fitted)
            if self._batch.index == 0:
                found += _tokens("calibration", fitted.data.documents, fitted)
            found += self._ranges(variant)
        frame = pd.DataFrame(found, columns=["part", "document", "module", "token", "count", "total"])
        kinds = {"document": "int32", "token": "int32", "count": "int64", "total": "int64"}
        return {"calibration_data": frame.astype({"part": "str", "module": "str"} | kinds)}

    def _ranges(self, variant: int) -> list[Row]:
        """Rows of the modules that ran, of all documents of the batch."""
        own = {module: outside for (side, module), outside in self._outside.items() if side == variant}
        rows: list[Row] = []
        for module, outside_N in own.items():
            outside_BT = outside_N.view(len(self._batch.documents), self._batch.width)
            is_token = self._batch.is_token(outside_BT.device)
            counts = (outside_BT * is_token).sum(1).tolist()
            width = self._total[variant, module]
            for document, length, count in zip(self._batch.documents, self._batch.lengths, counts, strict=True):
                rows.append(("range", document.cluster, module, -1, int(count), length * width))
        return rows


def count_outside(values_NH: Tensor, low: float, high: float) -> Tensor:
    """How many values of each row are not in [low, high], int64 [N]; NaN is in no range.

    Rows whose minimum and maximum lie inside, which is nearly all, are not examined further.
    """
    import torch

    least_N, most_N = values_NH.aminmax(dim=-1)
    counts_N = torch.zeros(len(values_NH), dtype=torch.int64, device=values_NH.device)
    beyond = ~((least_N >= low) & (most_N <= high))
    rows = values_NH[beyond]
    counts_N[beyond] = (~((rows >= low) & (rows <= high))).sum(-1)
    return counts_N


def _tokens(part: str, documents: tuple[EncodedDocument, ...], fitted: Calibrated) -> list[Row]:
    """How often each token, except special ones, occurs in each document."""
    import numpy as np

    rows: list[Row] = []
    for document in documents:
        # A variant was fitted to every copy; on the other side copies are one cluster.
        label = document.index if part == "calibration" else document.cluster
        tokens, counts = np.unique(fitted.data.seen.content_ids(document.ids), return_counts=True)
        pairs = zip(tokens.tolist(), counts.tolist(), strict=True)
        rows += [(part, label, "", token, count, len(document.ids)) for token, count in pairs]
    return rows
