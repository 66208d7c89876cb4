"""Extra ids: logits that only one side has, such as vocabulary padding or an added token that no text contains.

If two sides differ in the number of logits, the common ids are compared. That is the whole comparison only if the
others carry no probability, which the shared pass measures (table ``extra_ids``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel


def count_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of ids of a tokenizer: one more than the largest."""
    return 1 + max([*tokenizer.get_vocab().values(), *tokenizer.all_special_ids], default=-1)


def check_rows(source: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise ModelError if a token of the tokenizer has no row in the embedding of ``rows`` rows: its first use would
    fail."""
    without = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items() if token_id >= rows)
    if without:
        token_id, token = without[0]
        more = f" and {len(without) - 1} more tokens" if len(without) > 1 else ""
        raise ModelError(
            f"{source}: its tokenizer has the token {token!r} with the id {token_id}{more}, but the embedding has rows "
            f"for the ids 0 to {rows - 1} only; take the token out of tokenizer.json and tokenizer_config.json, or "
            "resize the embedding (resize_token_embeddings) and save the model again"
        )


def count_common_logits(widths: tuple[int, int], tokenizers: Sequence[PreTrainedTokenizerBase]) -> int | None:
    """Number of logits to compare on both sides: the ids of both tokenizers, if one side has more logits.

    None if both sides have the same number (then all are compared), and if ids of both tokenizers have no logits on one
    side (then nothing can be compared token by token, see ``explain_mismatch``).
    """
    if widths[0] == widths[1]:
        return None
    common = min(count_token_ids(tokenizer) for tokenizer in tokenizers)
    return common if common <= min(widths) else None


def explain_mismatch(reference: LoadedModel, variant: LoadedModel) -> str:
    """Why the logits of a pair cannot be compared token by token; empty if they can."""
    widths = reference.language_model.vocabulary, variant.language_model.vocabulary
    tokenizers = reference.tokenizer, variant.tokenizer
    if widths[0] == widths[1] or count_common_logits(widths, tokenizers) is not None:
        return ""
    return explain_width_difference(widths, tokenizers)


def explain_width_difference(widths: tuple[int, int], tokenizers: Sequence[PreTrainedTokenizerBase]) -> str:
    """The reason, in words, for vocabularies that differ by more than extra ids."""
    largest = min(count_token_ids(tokenizer) for tokenizer in tokenizers) - 1
    return (
        f"the variant has {widths[1]} logits per token, the reference {widths[0]}, and they differ by more than "
        f"padding: tokens have ids up to {largest}"
    )
