"""The probe ``training``: how the steps of a variant were trained, and what of it the evaluation documents repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.probes import Context, Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.data.encoding import EncodedDocument
    from harness.data.training import Trained
    from harness.records.training import Fitted

COLUMNS = ("part", "fit", "at", "name", "value", "other")
Row = tuple[str, str, int, str, float, float]


class Training(Probe):
    """Writes what trainings left, and compares every evaluation document with the training texts.

    Rows (part, fit, at, name, value, other) of the table ``training``; fit: number and name of the step. Part
    ``curve``: a series after ``at`` optimizer steps. Part ``memory``: bytes as measured, and as forecast. Part ``fit``:
    how many steps there were, which was kept, documents and tokens. Part ``overlap``: of the token windows of the
    document ``at``, how many occur in the training texts, and how many there are. For a variant that no step trained:
    part ``none``.
    """

    runs = "alone"

    @property
    def compares_tokens(self) -> bool:
        """Training texts and documents are both encoded by the reference's tokenizer."""
        return False

    @property
    def reads_documents(self) -> bool:
        """Curves need none."""
        return False

    def observe(self, context: Context) -> None:
        """Commit all rows as one unit."""
        import pandas as pd

        for variant, sink in zip(context.variants, context.sinks, strict=True):
            if sink.done(self.kind):
                continue
            trained = variant.training
            rows = [("none", "", 0, "", 0.0, 0.0)] if trained is None else list(_rows(trained, context.documents))
            frame = pd.DataFrame(rows, columns=list(COLUMNS))
            kinds = {"at": "int64", "value": "float64", "other": "float64"}
            sink.commit(self.kind, {"training": frame.astype({"part": "str", "fit": "str", "name": "str"} | kinds)})


def _rows(trained: Trained, documents: Sequence[EncodedDocument]) -> Iterator[Row]:
    for number, fitted in enumerate(trained.fits, 1):
        yield from _describe(f"{number} {fitted.step}", fitted)
    for document in documents:
        if not document.skipped:
            shared, windows = trained.data.seen.count_shared(document.ids)
            yield "overlap", "", document.cluster, "", shared, windows


def _describe(name: str, fitted: Fitted) -> Iterator[Row]:
    for point in fitted.curves:
        yield "curve", name, point.step, point.series, point.value, math.nan
    for memory in fitted.memory:
        forecast = math.nan if memory.forecast is None else memory.forecast
        yield "memory", name, fitted.kept, memory.part, memory.measured, forecast
    for key in ("steps", "kept", "batch", "part", "tokens"):
        yield "fit", name, fitted.kept, key, getattr(fitted, key), math.nan
