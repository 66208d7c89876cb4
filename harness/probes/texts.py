"""The probe ``texts``: scores documents on each side with its own tokenizer, over the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.data.aligned_windows import Reading, Stretch, TokenizedSide, Window, readings, windows
from harness.data.duplicates import find_first_copies, normalize_space
from harness.probes import Context, Probe

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.documents import RawDocument
    from harness.lockstep.decoder import Decoder
    from harness.models.loaded import LoadedModel
    from harness.records import DocumentsSpec

UNIT_DOCUMENTS = 32
"""Number of documents committed together."""
LOSSY = "tokenizer does not give the text back"
"""Part of the reason of documents that must not be scored, for readers; measures go by the column ``lossy``."""
Nlls = dict[bytes, "np.ndarray"]


class Texts(Probe):
    """Log-likelihood of each document on both sides, each with its own tokenizer, over exactly the same bytes.

    Documents are cut where both tokenizers have a token boundary, and what one side cannot score is excluded on the
    other. A tokenizer without BOS gets none. Writes one row to the table ``texts`` per window of text.
    """

    runs = "alone"
    reads = "texts"

    def observe(self, context: Context) -> None:
        """Commit one unit per batch of documents. Raises ModelError if memory runs out."""
        texts, spec = context.texts, context.spec
        if spec is None:
            return
        parts = [texts[at : at + UNIT_DOCUMENTS] for at in range(0, len(texts), UNIT_DOCUMENTS)]
        clusters = find_first_copies([(normalize_space(document.text),) for document in texts])
        scorers = [_TextScorer(loaded, spec) for loaded in (context.reference, *context.variants)]
        for number, part in enumerate(parts):
            context.progress.step("texts", number, len(parts))
            unit = f"texts/{number}"
            waiting = [(s, sink) for s, sink in zip(scorers[1:], context.sinks, strict=True) if not sink.done(unit)]
            if waiting:
                found = _observe(scorers[0], [scorer for scorer, _ in waiting], part, spec.packed)
                for (_, sink), rows in zip(waiting, found, strict=True):
                    first = number * UNIT_DOCUMENTS
                    frames = {
                        "texts": _frame(part, rows, first),
                        "documents": _documents(part, rows, first, clusters),
                    }
                    sink.commit(unit, frames)
        context.progress.step("texts", len(parts), len(parts))


class _TextScorer:
    """One side: tokenizes texts and scores them."""

    def __init__(self, loaded: LoadedModel, spec: DocumentsSpec) -> None:
        self._loaded = loaded
        self._decoder: Decoder | None = None
        bos = loaded.tokenizer.bos_token_id
        opening = (bos,) if spec.bos and isinstance(bos, int) else ()
        positions = loaded.language_model.positions
        most = spec.context if positions is None else min(spec.context, positions)
        self.reader = TokenizedSide(loaded.tokenizer, opening, most)

    def readings(self, documents: Sequence[RawDocument]) -> list[Reading]:
        return list(readings([document.text for document in documents], self.reader.tokenizer))

    def nlls(self, stretches: Sequence[Stretch]) -> Nlls:
        """Log-likelihoods of every id but the first, keyed by the ids; each repeated window is computed once."""
        from harness.lockstep.likelihoods import compute_nlls, prepare_decoder

        once = {stretch.ids.tobytes(): stretch.ids for stretch in stretches}
        if not once:
            return {}
        if self._decoder is None:
            self._decoder = prepare_decoder(self._loaded.name, self._loaded.language_model, next(iter(once.values())))
        return dict(zip(once, compute_nlls(self._decoder, list(once.values())), strict=True))


_Row = tuple[list[Window], tuple[Reading, Reading], list[tuple[float, float]]]
"""One document: its windows, its tokens on both sides, and both likelihoods of every window."""


def _observe(
    reference: _TextScorer, variants: Sequence[_TextScorer], documents: Sequence[RawDocument], whole: bool
) -> list[list[_Row]]:
    """Rows of every document for every variant; the reference computes each window once for all of them."""
    read = reference.readings(documents)
    planned: list[list[tuple[list[Window], tuple[Reading, Reading]]]] = []
    for variant in variants:
        both, readers = zip(read, variant.readings(documents), strict=True), (reference.reader, variant.reader)
        planned.append(
            [
                ([] if pair[0].lossy or pair[1].lossy else windows(raw.text, pair, readers, whole), pair)
                for raw, pair in zip(documents, both, strict=True)
            ]
        )
    known = reference.nlls([window.sides[0] for plan in planned for found, _ in plan for window in found])
    rows: list[list[_Row]] = []
    for variant, plan in zip(variants, planned, strict=True):
        own = variant.nlls([window.sides[1] for found, _ in plan for window in found])
        rows.append(
            [(found, pair, [(_sum(known, w.sides[0]), _sum(own, w.sides[1])) for w in found]) for found, pair in plan]
        )
    return rows


def _sum(nlls: Nlls, stretch: Stretch) -> float:
    """Negative log-likelihood of the scored ids, in nats."""
    return float(nlls[stretch.ids.tobytes()][stretch.first - 1 :].sum())


def _explain_skip(row: _Row) -> str:
    found, (one, two), _ = row
    lossy = [side for side, reading in (("reference", one), ("variant", two)) if reading.lossy]
    if lossy:
        return f"the {lossy[0]}'s {LOSSY}"
    return "" if found else "it has no common token boundary of both sides within their context"


def _frame(documents: Sequence[RawDocument], rows: Sequence[_Row], first: int) -> pd.DataFrame:
    """The table ``texts``; a document that cannot be scored has one row with the reason."""
    import pandas as pd

    found = []
    for index, (raw, row) in enumerate(zip(documents, rows, strict=True), start=first):
        size, reason, lossy = len(raw.text.encode()), _explain_skip(row), any(reading.lossy for reading in row[1])
        for number, window in enumerate(row[0] or [None]):
            stretches = window.sides if window else ()
            scored = [len(stretch.ids) - stretch.first for stretch in stretches] or [0, 0]
            nlls = row[2][number] if window else (0.0, 0.0)
            # The bytes of the whole document stand in its first row alone, so that they add up.
            total = 0 if number else size
            found.append((index, number, total, window.size if window else 0, *scored, *nlls, lossy, reason))
    columns = ["document", "window", "total_bytes", "bytes", "reference_tokens", "variant_tokens"]
    columns += ["reference_nll", "variant_nll", "lossy", "skipped"]
    whole = dict.fromkeys(columns[2:6], "int64") | {"document": "int32", "window": "int32"}
    return pd.DataFrame(found, columns=columns).astype(whole)


def _documents(
    documents: Sequence[RawDocument], rows: Sequence[_Row], first: int, clusters: Sequence[int]
) -> pd.DataFrame:
    """The table ``documents``, in the tokens of the reference. clusters: of all documents of the suite."""
    import pandas as pd

    found = []
    for index, (raw, row) in enumerate(zip(documents, rows, strict=True), start=first):
        scored = sum(len(window.sides[0].ids) - window.sides[0].first for window in row[0])
        cut = bool(row[0]) and row[0][-1].end < len(raw.text)
        total = len(row[1][0].ids)
        found.append((index, raw.id, raw.kind, scored, total, cut, _explain_skip(row), raw.language, clusters[index]))
    columns = ["document", "id", "kind", "tokens", "total_tokens", "cut", "skipped", "language", "cluster"]
    frame = pd.DataFrame(found, columns=columns)
    whole = dict.fromkeys(("document", "cluster"), "int32") | dict.fromkeys(("tokens", "total_tokens"), "int64")
    return frame.astype(whole | {"cut": "bool"})
