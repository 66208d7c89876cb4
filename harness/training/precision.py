"""Parameters in float32 while they are trained: updates far below the spacing of 16-bit floats would be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.errors import BackendError
from harness.numerics.formats import cast

HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def float32_parameters(model: nn.Module) -> Iterator[None]:
    """Hold every 16-bit parameter in float32 inside, and cast it back at the end, whatever happens.

    What was not trained comes back with the same bits. Buffers stay as they are: some are float32 in a 16-bit model.
    """
    halves = [(each, each.dtype) for each in model.parameters() if each.dtype in HALVES]
    for parameter, _ in halves:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = cast(parameter.data, dtype)


def refuse_packed(step: str, model: PreTrainedModel) -> None:
    """Raise BackendError for a model whose weights are codes of a library: they have no gradients."""
    config = getattr(model.config, "quantization_config", None)
    method = getattr(config, "quant_method", None) or (config.get("quant_method") if isinstance(config, dict) else None)
    packed = next((name for name, each in model.named_parameters() if not each.dtype.is_floating_point), None)
    packed = packed or next((name for name, each in model.named_parameters() if each.element_size() < 2), None)
    if config is None and packed is None:
        return
    how = f" by {getattr(method, 'value', method)}" if method else ""
    where = f" ({packed})" if packed else ""
    raise BackendError(
        f"{step}: {type(model).__name__} is packed{how}{where}, and codes cannot be trained; start from the checkpoint "
        "that it was made of"
    )
