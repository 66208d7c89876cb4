"""Computes what follows the last attention of a model only where its output is used: feed-forward, and head.

    tokens ─▶ block 0 ─▶ … ─▶ last block: attention ─▶ feed-forward ─▶ head
              every token                 every token  used tokens     used tokens

Of other tokens the last block needs keys and values alone, which are computed before its feed-forward. Feed-forward and
head read each token by itself; the first answers of each task are compared with those of whole passes (``side``).

Legend: B rows, T positions, D hidden size, N used tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import BackendError
from harness.models.language_model import replace_attribute
from harness.modules.decoder_layers import decoder_blocks

MOST_SHARE = 0.5
"""Share of the tokens above which all are computed: picking some of them costs time too."""


class LastFeedForward:
    """The feed-forward of the last block; a model in which none is found computes every token."""

    def __init__(self, model: PreTrainedModel | None) -> None:
        self._module = _find_feed_forward(model) if model is not None else None

    @contextmanager
    def restrict(self, used_N: Tensor) -> Iterator[None]:
        """Compute it only for these places of [B*T]; the others get zeros."""
        if self._module is None:
            yield
            return
        with replace_attribute(self._module, "forward", self._compute_some(self._module.forward, used_N)):
            yield

    def _compute_some(self, forward: Callable[..., Any], used_N: Tensor) -> Callable[..., Any]:
        def compute(states: Tensor, *others: Any, **named: Any) -> Any:
            if others or named or states.dim() != 3 or len(used_N) > MOST_SHARE * states.shape[:2].numel():
                return forward(states, *others, **named)
            found = forward(states.flatten(0, 1)[used_N][None])
            if not isinstance(found, Tensor) or found.shape != (1, len(used_N), states.shape[-1]):
                self._module = None  # more than a state for each token: some routers add their scores
                return forward(states)
            whole = found.new_zeros(states.shape)
            whole.view(-1, states.shape[-1])[used_N] = found[0]
            return whole

        return compute


@contextmanager
def restrict_head(model: PreTrainedModel, used_N: Tensor) -> Iterator[None]:
    """Let the head give logits [1, N, V] of these places of [B*T] alone, if it is a module that the model calls."""
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield
        return
    forward: Callable[..., Any] = head.forward
    with replace_attribute(head, "forward", lambda states: forward(states.flatten(0, 1)[used_N][None])):
        yield


def _find_feed_forward(model: PreTrainedModel) -> nn.Module | None:
    try:
        block = decoder_blocks(model)[1][-1]
    except BackendError:
        return None
    found = getattr(block, "mlp", None)
    return found if isinstance(found, nn.Module) else None
