"""Training batches: documents of a stage, tokenized and concatenated.

Every row starts at the start of a document; a document that does not fit is cut there and opens the next row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from harness.pocket.tokenizer import EOS
from harness.pocket.world import Document, documents

Batch = tuple[Tensor, Tensor, Tensor]  # inputs, targets, weights of the targets

CHUNK = 64
ANSWER_WEIGHT = 4.0


def _weights(document: Document, encoding: Encoding) -> list[float]:
    """The loss weight of every token of a document: 4 for answers, 1 for the rest, 0 for <s>."""
    weights = [0.0]
    for start, end in encoding.offsets[1:]:
        is_answer = any(start < last and first < end for first, last in document.answers)
        weights.append(ANSWER_WEIGHT if is_answer else 1.0)
    return weights


def token_stream(tokenizer: Tokenizer, stage: str, seed: int) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids, <s> to </s>, and loss weights of one training document after another, without end."""
    end = int(tokenizer.token_to_id(EOS) or 0)
    part = 0
    while True:
        chunk = documents("train", CHUNK, seed=seed * 1_000_000 + part, stage=stage)
        encodings = tokenizer.encode_batch([document.text for document in chunk])
        for document, encoding in zip(chunk, encodings, strict=True):
            weights = _weights(document, encoding)
            # The token after the last answer is weighted like it, since it ends the answer.
            last = ANSWER_WEIGHT if weights[-1] > 1.0 else 1.0
            yield [*encoding.ids, end], [*weights, last]
        part += 1


def batches(tokenizer: Tokenizer, stage: str, rows: int, tokens: int, seed: int) -> Iterator[Batch]:
    """Inputs, targets and target weights, each (rows, tokens), without end."""
    stream = token_stream(tokenizer, stage, seed)
    ids, weights = next(stream)
    while True:
        batch = torch.zeros(rows, tokens + 1, dtype=torch.int64)
        weight = torch.zeros(rows, tokens + 1)
        for row in range(rows):
            filled = 0
            while True:
                taken = min(len(ids), tokens + 1 - filled)
                batch[row, filled : filled + taken] = torch.tensor(ids[:taken])
                weight[row, filled : filled + taken] = torch.tensor(weights[:taken])
                if taken < len(ids):
                    break
                filled += taken
                ids, weights = next(stream)
        yield batch[:, :-1], batch[:, 1:], weight[:, 1:]
