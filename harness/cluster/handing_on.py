"""Variants that take documents to make, by calibration or training, are made once and handed on.

The worker that describes a variant leaves it in the run folder, as it is in memory, with its hash; workers that open it
later take it from there. The head has the hash from the first and compares it with what the others say they read. Where
the folder is not shared, a worker makes the variant itself, and the hashes of its weights must be the same.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.planning.specs import Plan
from harness.system.files import write_atomic

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

MADE = "made.pt"


def takes_documents(plan: Plan) -> bool:
    """Whether making the variant of a plan takes a pass over documents, or a training."""
    return any(step.calibrates or step.trains for step in plan.variant.compress)


def leave_made(variant: LoadedModel, folder: Path) -> str:
    """Leave a variant in its run folder for others; returns its SHA-256, empty if it cannot be written as it is."""
    import torch

    buffer = io.BytesIO()
    try:
        torch.save(variant, buffer)
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError):
        discard_made(folder)  # Of a library whose modules hold what no file can: every worker makes it.
        return ""
    data = buffer.getvalue()
    write_atomic(folder / MADE, data)
    return hashlib.sha256(data).hexdigest()


def find_made(plans: Sequence[Plan], folders: Sequence[Path]) -> dict[str, tuple[LoadedModel, str]]:
    """The variants that others have left, by name, with the SHA-256 of what was read."""
    import torch

    found = {}
    for plan, folder in zip(plans, folders, strict=True):
        if takes_documents(plan) and (path := folder / MADE).is_file():
            data = path.read_bytes()
            # Written by a worker of this check, whose hash the head knows: no file of others.
            model = torch.load(io.BytesIO(data), weights_only=False, map_location=plan.reference.device)
            found[plan.name] = model, hashlib.sha256(data).hexdigest()
    return found


def discard_made(folder: Path) -> None:
    """Delete what ``leave_made`` left."""
    with suppress(OSError):
        (folder / MADE).unlink(missing_ok=True)
