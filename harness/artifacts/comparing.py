"""Compares the outputs of a model and of its artifact, as rows of the table ``artifact``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.artifacts.outputs import DOCUMENT, MODULE, Outputs
from harness.errors import HarnessError
from harness.lockstep.logit_statistics import logit_statistics

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "part": "str", "name": "str", "document": "int32", "position": "int32", "kl": "float64", "max_abs_diff": "float64",
    "error": "float64", "allowed": "float64", "count": "int64", "text": "str",
}  # fmt: skip
EMPTY: dict[str, Any] = {
    "name": "", "document": -1, "position": -1, "kl": 0.0, "max_abs_diff": 0.0, "error": 0.0, "allowed": 0.0,
    "count": 0, "text": "",
}  # fmt: skip
ROUNDING = 1e-6
"""Relative difference expected between float32 products of different shapes."""

Row = dict[str, Any]


class DifferentShapesError(HarnessError):
    """The two sides cannot be compared; the message says how they differ."""


def table(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows, each with ``part`` and some other columns, as the table."""
    import pandas as pd

    return pd.DataFrame([EMPTY | row for row in rows], columns=list(COLUMNS)).astype(COLUMNS)


def token_rows(part: str, documents: Sequence[tuple[int, Tensor]], before: Outputs, after: Outputs) -> Iterator[Row]:
    """A row for every token of every document (index, ids) except its first: KL(before‖after), largest difference.

    Raises DifferentShapesError.
    """
    for number, (index, ids_T) in enumerate(documents):
        old_TV, new_TV = before[f"{DOCUMENT}{number}"], after[f"{DOCUMENT}{number}"]
        if old_TV.shape != new_TV.shape or old_TV.dtype != new_TV.dtype:
            raise DifferentShapesError(
                f"its logits are {new_TV.dtype} for {new_TV.shape[-1]} tokens, those of the model in memory are "
                f"{old_TV.dtype} for {old_TV.shape[-1]}"
            )
        statistics = logit_statistics(old_TV[:-1], new_TV[:-1], ids_T[1:])
        pairs = zip(statistics["kl"].tolist(), statistics["max_abs_diff"].tolist(), strict=True)
        for position, (kl, largest) in enumerate(pairs, start=1):
            yield {"part": part, "document": index, "position": position, "kl": kl, "max_abs_diff": largest}


def module_rows(part: str, before: Outputs, after: Outputs) -> Iterator[Row]:
    """A row for every module: the relative difference of its outputs, ‖before − after‖ / ‖before‖, and the difference
    that rounding may cause. Infinity if one side lacks the module, or its outputs are NaN or of another shape.
    """
    errors: dict[str, tuple[float, float]] = {}
    for key in dict.fromkeys(name for name in (*before, *after) if name.startswith(MODULE)):
        old, new = before.get(key), after.get(key)
        error = torch.inf if old is None or new is None else relative_error(old, new)
        allowed = max(torch.finfo((new if old is None else old).dtype).eps, ROUNDING)  # type: ignore[union-attr]
        name = key.removeprefix(MODULE).partition(":")[0]
        errors[name] = max(errors.get(name, (0.0, 0.0)), (error, allowed))
    for name, (error, allowed) in errors.items():
        yield {"part": part, "name": name, "error": error, "allowed": allowed}


def relative_error(old: Tensor, new: Tensor) -> float:
    """‖old − new‖ / ‖old‖ (Frobenius), 0 for equal bits; infinity if undefined. NaN equals NaN."""
    if old.shape != new.shape:
        return torch.inf
    a, b = old.double(), new.double()
    if bool(((a == b) | (a.isnan() & b.isnan())).all()):
        return 0.0
    difference, size = float((a - b).norm()), float(a.norm())
    error = difference / size if size else torch.inf
    return error if error < torch.inf else torch.inf
