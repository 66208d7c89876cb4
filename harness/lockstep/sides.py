"""Whether the sides of a pass can be compared token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.errors import ModelError
from harness.models.vocabulary import count_common_logits, explain_width_difference
from harness.records import Note

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.data.encoding import EncodedDocument
    from harness.lockstep.decoder import Decoder
    from harness.models.loaded import LoadedModel


def check_ids(sides: Sequence[Decoder], documents: Sequence[EncodedDocument]) -> None:
    """Raise ModelError for token ids that a side does not know."""
    for side in sides:
        known = side.language_model.token_ids
        for document in documents:
            if len(document.ids) and not 0 <= document.ids.min() <= document.ids.max() < known:
                raise ModelError(
                    f"{side.name}: document {document.id} has token ids up to {document.ids.max()}, expected 0 "
                    f"to {known - 1}; tokenizer and model do not belong together"
                )


def check_logits(logits_TV: Sequence[Tensor], sides: Sequence[Decoder]) -> torch.dtype:
    """The logit dtype of both sides. Raises ModelError if they differ."""
    reference = logits_TV[0]
    for side, logits in zip(sides[1:], logits_TV[1:], strict=True):
        if logits.dtype != reference.dtype:
            raise ModelError(
                f"{side.name}: found logits of {logits.dtype}, expected {reference.dtype} as in {sides[0].name}, or "
                "precision would count as degradation: set reference.dtype and variant.dtype alike"
            )
    return reference.dtype


def count_compared(
    logits_TV: Sequence[Tensor], sides: Sequence[Decoder], loaded: Sequence[LoadedModel], index: int
) -> int | None:
    """Number of logits of a variant to compare (None: all). If the widths differ, broadcasting would be wrong."""
    widths = logits_TV[0].shape[-1], logits_TV[index].shape[-1]
    if widths[0] == widths[1]:
        return None
    tokenizers = loaded[0].tokenizer, loaded[index].tokenizer
    if (kept := count_common_logits(widths, tokenizers)) is None:
        raise ModelError(
            f"{sides[index].name}: {explain_width_difference(widths, tokenizers)}; different vocabularies cannot be "
            "compared token by token"
        )
    return kept


def note_extra_logits(reference_TV: Tensor, variant_TV: Tensor, kept: int | None, name: str) -> Iterator[Note]:
    """How many logits a side has that are not compared; nothing if all are."""
    if kept is not None:
        rows = [logits.shape[-1] - kept for logits in (reference_TV, variant_TV)]
        text = (
            f"{name}: {kept} logits per token are compared, one per id of both tokenizers; {rows[1]} extra ids of the "
            f"variant and {rows[0]} of the reference are left out"
        )
        yield Note(topic="vocabulary", text=text)
