"""Refuses models that look ahead: a change of the last token may not move the logits before it.

An encoder, such as a masked language model, loads as a language model without a word, and then predicts tokens that it
has seen.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import ModelError
from harness.models.language_model import LanguageModel
from harness.system.foreign import guard

TOKENS = 3
"""Length of the two texts: the fewer tokens, the more an encoder makes of each."""


def check_causal(model: LanguageModel, source: str, quantized: bool = False) -> None:
    """Run two texts that differ in their last token, and the first of them again, in one batch; raise ModelError if
    all earlier logits move.

    In a causal model only rounding moves them: equal inputs may be computed in other shapes (a mixture of experts) or
    on other grids. It costs less than half the digits of the dtype, so what moves by more than √ε of what the last
    logits move, and by ten times what the same text moves by itself, has seen the last token. A quantized model counts
    as one in bfloat16. A model that cannot be called is left to the pass, which says so.
    """
    ids_3T = _make_texts(model.token_ids).to(model.device)
    try:
        with torch.no_grad(), guard(f"{source}: looking whether it is causal"):
            logits_3TV = model.logits(ids_3T)
    except Exception:  # noqa: BLE001 - kernels of libraries raise anything, and the pass explains what
        return
    moved_T, by_itself_T = (_measure_movement(logits_3TV[0], logits_3TV[other]) for other in (1, 2))
    dtype = torch.bfloat16 if quantized else logits_3TV.dtype
    most_T = (torch.finfo(dtype).eps ** 0.5 * moved_T[-1]).maximum(10 * by_itself_T)
    if bool((moved_T[:-1] > most_T[:-1]).all()):
        share = float(moved_T[:-1].min() / moved_T[-1])
        raise ModelError(
            f"{source}: a change of the last of {TOKENS} tokens moves the logits before it, by {share:.1%} of what it "
            "moves its own, so every token sees those after it; expected a causal language model: this one is an "
            "encoder (a masked language model, say), or its config.json lacks is_decoder: true"
        )


def _make_texts(count: int) -> Tensor:
    """Token ids [3, T] from the middle of a vocabulary, away from special tokens; the last text is the first again."""
    first, second, last, other = (count * part // 8 for part in (2, 3, 4, 5))
    return torch.tensor([[first, second, last], [first, second, other], [first, second, last]])


def _measure_movement(one_TV: Tensor, other_TV: Tensor) -> Tensor:
    """Root mean square over V of the difference of two texts, [T]; logits that are not finite count as unmoved."""
    difference_TV = (other_TV.double() - one_TV.double()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return difference_TV.square().mean(-1).sqrt()
