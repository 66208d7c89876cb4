"""Determines whether a library's linear layer multiplies floats or low-precision codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_GEMMS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear"})
_ROWS = 32
"""Rows of the test input: the integer kernels of some devices need more than 16."""


class _FloatProductDetector(TorchDispatchMode):
    """Records whether any matrix product has two floating-point factors of 16 bits or more."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.floats = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator. The inside of a library's own operator is not visible."""
        name: str = cast(Any, func).name().partition(".")[0]
        factors = [each for each in args if isinstance(each, Tensor) and each.dim() > 1]
        wide = [each for each in factors if each.is_floating_point() and each.element_size() > 1]
        self.floats |= name in _GEMMS and len(wide) >= 2
        return func(*args, **(kwargs or {}))


def multiplies_floats(module: nn.Module) -> bool:
    """Whether a layer with ``in_features`` inputs multiplies floats by floats, tested on small inputs without outliers.

    Inputs are below 0.05, so that no column counts as an outlier kept in full precision. Operators of a library are not
    inspected: they are assumed to be integer products.
    """
    inputs = int(cast(Any, module).in_features)
    floats = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.element_size() > 1]
    dtype = floats[0].dtype if floats else getattr(module, "compute_dtype", None) or torch.float32
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    x_NI = (torch.arange(_ROWS * inputs, device=device).reshape(_ROWS, inputs).sin() / 20).to(dtype)
    with torch.no_grad(), _FloatProductDetector() as watch:
        module(x_NI)
    return bool(watch.floats)
