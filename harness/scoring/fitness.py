"""Which models give a token sequence the same answer whatever else is computed in the same call.

What is declared of a model is looked up here, before anything is scored. What is not declared shows in the first
sequences of each task, which are scored both ways (``agreement``).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from harness.numerics.named_formats import WHOLE_TENSOR_SCALES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.loaded import LoadedModel
    from harness.records import NumberFormat

MASKED_ATTENTION = ("eager", "sdpa")
"""Attention implementations that take a mask of their own for each query."""
PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers in which a token depends on nothing but the tokens that it sees."""
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
"""Where configurations declare how many tokens a layer sees."""


def explain_dependence(loaded: LoadedModel) -> str:
    """Why a model must be given one sequence per row, in lm-eval's batches; empty: nothing that is declared says so."""
    model = loaded.language_model.modules
    if model is None:
        return "its engine computes whole texts and keeps its cache to itself"
    if loaded.identity.cache is not None:
        return "its simulated KV cache quantizes tokens by their place in the row"
    for module in loaded.identity.modules:
        if module.activations is not None and (reason := _explain_rounding(module.activations)):
            return f"it rounds the inputs of {module.module} {reason}"
    return _explain_architecture(model)


def find_window(model: PreTrainedModel) -> int | None:
    """The fewest tokens that a layer sees; None: every layer sees all."""
    config = model.config.get_text_config()
    declared = [getattr(config, name, None) for name in WINDOWS]
    return min((window for window in declared if isinstance(window, int) and window > 0), default=None)


def _explain_rounding(inputs: NumberFormat) -> str:
    if inputs.outliers is not None:
        return "except for columns that are chosen over all tokens of a call"
    if inputs.dynamic and (inputs.granularity == "tensor" or inputs.scales in WHOLE_TENSOR_SCALES):
        return "with a scale that all tokens of a call share"
    return ""


def _explain_architecture(model: PreTrainedModel) -> str:
    attention = model.config._attn_implementation
    if attention not in MASKED_ATTENTION:
        return f"its attention ({attention}) takes no mask that says which tokens each token sees"
    if getattr(model, "_is_stateful", False):
        return f"{type(model).__name__} is recurrent: it reads the tokens of a row one after the other"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - PLAIN_LAYERS
    if kinds:
        return f"it has layers of the kind {min(kinds)}, which may read the tokens of a row one after the other"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes the position of a token from its place in the row"
    return ""
