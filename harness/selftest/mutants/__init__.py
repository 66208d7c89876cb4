"""Library of known-bad and harmless variants of a model, generated on demand to test what a gate stops.

Each represents a real bug of compression pipelines (a scale read for the wrong group, a cache scale off by a factor of
two), or a change that must not matter (weights saved again in other shards). Each is one function: its name appears in
the kill table, the first line of its docstring describes the bug. To add one, write a function in any file of this
folder; importing registers nothing.

    changes the model in memory     def f(model: PreTrainedModel) -> Compressed
    changes the files of a folder   def f(folder: Path) -> None
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import HarnessError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.backends import Compressed

VariationKind = Literal["mutant", "benign", "control"]
InMemory = Callable[["PreTrainedModel"], "Compressed"]
OnDisk = Callable[[Path], None]
PLACES: tuple[VariationKind, ...] = ("control", "benign", "mutant")


class NotApplicable(HarnessError):  # noqa: N818 - not an error: the model lacks the part to change
    """The model has nothing that this variation could change; the message says what is missing."""


@dataclass(frozen=True)
class Variation:
    """One variant of the library.

    kind: ``mutant`` must be stopped; ``benign`` and ``control`` must pass. control: the good variant that a mutant is
    derived from (empty: the model itself); rules that stop that one too are no evidence. equivalent: why no measure can
    detect the difference, by construction; such a mutant is listed but not counted.
    """

    name: str
    kind: VariationKind
    summary: str
    in_memory: InMemory | None = None
    on_disk: OnDisk | None = None
    control: str = ""
    equivalent: str = ""


def mutant(control: str = "", equivalent: str = "") -> Callable[[InMemory], Variation]:
    """Mark a function as a known-bad variant (see ``Variation``)."""
    return lambda make: Variation(
        make.__name__, "mutant", _summary(make), in_memory=make, control=control, equivalent=equivalent
    )


def mutant_files(equivalent: str = "") -> Callable[[OnDisk], Variation]:
    """Mark a function that changes the files of a model as a known-bad variant."""
    return lambda make: Variation(make.__name__, "mutant", _summary(make), on_disk=make, equivalent=equivalent)


def harmless(kind: Literal["benign", "control"] = "benign") -> Callable[[InMemory], Variation]:
    """Mark a function as a change that must pass; ``control``: compression that is good enough to ship."""
    return lambda make: Variation(make.__name__, kind, _summary(make), in_memory=make)


def harmless_files(make: OnDisk) -> Variation:
    """Mark a function that changes the files of a model in a way that must pass."""
    return Variation(make.__name__, "benign", _summary(make), on_disk=make)


@cache
def library() -> dict[str, Variation]:
    """Every variation by name: controls, benign ones, then mutants; within a kind by file, then in source order."""
    variations: dict[str, Variation] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
        for value in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if isinstance(value, Variation) and variations.setdefault(value.name, value) is not value:
                raise HarnessError(f"{module}.py: the name {value.name} is taken by another variation")
    return {each.name: each for kind in PLACES for each in variations.values() if each.kind == kind}


def _summary(make: Callable[..., object]) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0].strip()
