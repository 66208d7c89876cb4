"""Refuses models that look ahead: a change of the last token may not move the logits before it.

An encoder, such as a masked language model, loads as a language model without a word, and then predicts tokens that it
has seen.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import weakref
from contextlib import suppress

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models.language_model import LanguageModel
from harness.system.foreign import guard

TOKENS = 3
"""Length of the two texts: the fewer tokens, the more an encoder makes of each."""
DERIVATIVE = 1e-6
"""Share of the derivative of its own logits up to which a token's derivative of others counts as zero. A mask makes it
exactly zero; a convolution that is computed by a Fourier transform makes it as small as rounding."""


def check_causal(model: LanguageModel, source: str, quantized: bool = False) -> None:
    """Raise ModelError if every logit before the last token follows from that token, too.

    The derivative of a logit by the embedding of a later token is zero in a causal model, in any dtype, and no rounding
    hides one that is not. Where there is none to be had (no modules, kernels without derivatives, a quantized model,
    whose rounding has none) the logits of two texts are compared that differ in their last token, see
    `_find_moved_share`. A model that cannot be called is left to the pass, which says so.
    """
    derived = None if quantized else _find_derived_share(model)
    share = _find_moved_share(model, quantized) if derived is None else derived
    if share > 0:
        raise ModelError(
            f"{source}: a change of the last of {TOKENS} tokens moves the logits before it, by {_format(share)} of "
            "what it moves its own, so every token sees those after it; expected a causal language model: this one is "
            "an encoder (a masked language model, say), or its config.json lacks is_decoder: true"
        )


def _format(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.1e}"


def _find_logits(model: LanguageModel, texts_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of some texts; an exit or a panic of the model is an ordinary exception here."""
    with guard("looking whether a model is causal"):
        return model.logits(texts_BT.to(model.device))


def _find_derived_share(model: LanguageModel) -> float | None:
    """The least derivative of earlier logits by the last token, as a share of that of its own; 0 if one of them is
    zero, None if it cannot be computed.
    """
    if model.modules is None:
        return None
    embedding, embedded = model.modules.get_input_embeddings(), []

    def follow(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # Some models change their embeddings in place.

    hook = embedding.register_forward_hook(follow)
    try:
        with torch.enable_grad():
            own, *earlier = _differentiate(model, embedded)
    except Exception:  # noqa: BLE001 - as below
        return None
    finally:
        hook.remove()
        calls, held = len(embedded), [weakref.ref(each) for each in embedded]
        embedded.clear()
        # Some models keep a state of their last call, which then holds no derivatives.
        if any(each() is not None for each in held):
            with suppress(Exception), torch.no_grad():
                _find_logits(model, _make_texts(model.token_ids))
    if calls > 1 or not all(map(math.isfinite, (own, *earlier))) or not own > 0:
        return None
    share = min(earlier) / own
    return share if share > DERIVATIVE else 0.0


def _differentiate(model: LanguageModel, embedded: list[Tensor]) -> list[float]:
    """Norms of the derivatives of the logits of a token, each with a weight of its own, by the last embedding: of the
    last token, then of those before it. Each in a row of its own with the same text, so that one call gives all."""
    logits_BTV = _find_logits(model, _make_texts(model.token_ids)[:1].expand(TOKENS, -1)).float()
    weights_V = torch.linspace(-1, 1, logits_BTV.shape[-1], device=logits_BTV.device)
    rows_B, tokens_B = torch.arange(TOKENS), torch.arange(TOKENS) - 1
    total = (logits_BTV[rows_B, tokens_B] * weights_V).sum()
    (found_BTD,) = torch.autograd.grad(total, embedded[0], allow_unused=True)
    if found_BTD is None:
        return [0.0] * TOKENS
    return [float(size) for size in found_BTD[:, -1].double().norm(dim=-1)]


def _find_moved_share(model: LanguageModel, quantized: bool) -> float:
    """How much a change of the last token moves earlier logits, as a share of what it moves its own; 0 for rounding.

    Two texts that differ in their last token, and the first of them again, run in one batch. In a causal model only
    rounding moves earlier logits: equal inputs may be computed in other shapes (a mixture of experts) or on other
    grids. It costs less than half the digits of the dtype, so what moves by more than √ε of what the last logits move,
    and by ten times what the same text moves by itself, has seen the last token. A quantized model counts as one in
    bfloat16.
    """
    try:
        with torch.no_grad():
            logits_3TV = _find_logits(model, _make_texts(model.token_ids))
    except Exception:  # noqa: BLE001 - kernels of libraries raise anything, and the pass explains what
        return 0.0
    moved_T, by_itself_T = (_measure_movement(logits_3TV[0], logits_3TV[other]) for other in (1, 2))
    dtype = torch.bfloat16 if quantized else logits_3TV.dtype
    most_T = (torch.finfo(dtype).eps ** 0.5 * moved_T[-1]).maximum(10 * by_itself_T)
    return float(moved_T[:-1].min() / moved_T[-1]) if bool((moved_T[:-1] > most_T[:-1]).all()) else 0.0


def _make_texts(count: int) -> Tensor:
    """Token ids [3, T] from the middle of a vocabulary, away from special tokens; the last text is the first again."""
    first, second, last, other = (count * part // 8 for part in (2, 3, 4, 5))
    return torch.tensor([[first, second, last], [first, second, other], [first, second, last]])


def _measure_movement(one_TV: Tensor, other_TV: Tensor) -> Tensor:
    """Root mean square over V of the difference of two texts, [T]; logits that are not finite count as unmoved."""
    difference_TV = (other_TV.double() - one_TV.double()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return difference_TV.square().mean(-1).sqrt()
