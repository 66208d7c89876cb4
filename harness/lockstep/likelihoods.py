"""Token likelihoods of a single model on documents, without a second side.

Legend: N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.encoding import EncodedDocument
from harness.errors import ModelError, is_out_of_memory
from harness.lockstep.batches import Batch, plan_batches
from harness.lockstep.decoder import VERIFIED_TOKENS, Decoder
from harness.lockstep.driver import CHUNK_VALUES, CPU_TOKENS, GPU_TOKENS
from harness.models.language_model import LanguageModel

Floats = NDArray[np.float64]


def compute_nlls(decoder: Decoder, documents: Sequence[NDArray[np.int64]]) -> list[Floats]:
    """Negative log-likelihoods in nats of every id but the first of each document, in order.

    documents: ids, at least two each. The decoder must be prepared. Raises ModelError where memory runs out on one
    document alone.
    """
    nothing = np.zeros(0, dtype=np.float32)
    encoded = [
        EncodedDocument(index, str(index), "", ids, nothing, len(ids), False, "") for index, ids in enumerate(documents)
    ]
    tokens = CPU_TOKENS if decoder.device.type == "cpu" else GPU_TOKENS
    likelihoods: dict[int, Floats] = {}
    with torch.no_grad():
        for batch in plan_batches(encoded, tokens):
            likelihoods |= _compute_batch(decoder, batch)
    return [likelihoods[index] for index in range(len(documents))]


def prepare_decoder(name: str, model: LanguageModel, ids: NDArray[np.int64]) -> Decoder:
    """The model in halves, tried on the beginning of one document."""
    decoder = Decoder(name, model)
    with torch.no_grad():
        decoder.prepare(torch.from_numpy(ids[:VERIFIED_TOKENS])[None].to(decoder.device))
    return decoder


def _compute_batch(decoder: Decoder, batch: Batch) -> dict[int, Floats]:
    """Likelihoods by document index. If memory runs out, the batch is run in halves."""
    try:
        nll = _run(decoder, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch.documents) == 1:
            raise ModelError(
                f"{decoder.name}: memory ran out on a document of {batch.width} tokens alone ({error}); set "
                "documents.context lower or use a larger machine; what was measured before is kept"
            ) from error
        middle = len(batch.documents) // 2
        halves = [Batch(batch.index, part) for part in (batch.documents[:middle], batch.documents[middle:])]
        return _compute_batch(decoder, halves[0]) | _compute_batch(decoder, halves[1])
    cuts = np.cumsum([length - 1 for length in batch.lengths])[:-1]
    return {document.index: part for document, part in zip(batch.documents, np.split(nll, cuts), strict=True)}


def _run(decoder: Decoder, batch: Batch) -> Floats:
    states_ND, targets_N = decoder.scored_states(batch), batch.index_scored(decoder.device)[1]
    parts: list[Tensor] = []
    rows = 16
    while len(targets_N):
        logits_NV = decoder.logits(states_ND[:rows]).double()
        picked_N = logits_NV.gather(-1, targets_N[:rows, None].to(logits_NV.device))[:, 0]
        parts.append((logits_NV.logsumexp(-1) - picked_N).cpu())
        states_ND, targets_N = states_ND[rows:], targets_N[rows:]
        # Float64 needs twice the memory of the values in the shared pass.
        rows = max(16, CHUNK_VALUES // 2 // logits_NV.shape[-1])
    likelihoods: Floats = torch.cat(parts).numpy()
    return likelihoods
