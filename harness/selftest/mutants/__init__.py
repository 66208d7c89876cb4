"""Known-bad and harmless variants of a model, made on the spot to see what a gate stops.

Each stands for a bug that compression pipelines really have (a scale read for the wrong group, a cache scale off by
two), or for a change that must not matter (weights saved again in other shards). One function is one of them: its name
is the name in the kill table, the first line of its docstring says which bug it is. A new one is a new function in
any file of this folder; nothing is registered when it is imported.

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

Kind = Literal["mutant", "benign", "control"]
InMemory = Callable[["PreTrainedModel"], "Compressed"]
OnDisk = Callable[[Path], None]
PLACES: tuple[Kind, ...] = ("control", "benign", "mutant")


class NotApplicable(HarnessError):  # noqa: N818 - no error of anybody: the model just lacks what would be changed
    """The model has nothing that this variant could change; the message says what is missing."""


@dataclass(frozen=True)
class Variation:
    """One variant of the library.

    kind: ``mutant`` must be stopped; ``benign`` and ``control`` must pass. control: the good variant that a mutant
    was made of (empty: the model itself); what stops that one too is no evidence. equivalent: why no measure can see
    the difference, by construction; such a mutant is shown and not counted.
    """

    name: str
    kind: Kind
    summary: str
    in_memory: InMemory | None = None
    on_disk: OnDisk | None = None
    control: str = ""
    equivalent: str = ""


def mutant(control: str = "", equivalent: str = "") -> Callable[[InMemory], Variation]:
    """Marks a function as a known-bad variant (see ``Variation``)."""
    return lambda make: Variation(
        make.__name__, "mutant", _summary(make), in_memory=make, control=control, equivalent=equivalent
    )


def mutant_files(equivalent: str = "") -> Callable[[OnDisk], Variation]:
    """Marks a function that changes the files of a model as a known-bad variant."""
    return lambda make: Variation(make.__name__, "mutant", _summary(make), on_disk=make, equivalent=equivalent)


def harmless(kind: Literal["benign", "control"] = "benign") -> Callable[[InMemory], Variation]:
    """Marks a function as a change that must pass; ``control``: compression that is good enough to ship."""
    return lambda make: Variation(make.__name__, kind, _summary(make), in_memory=make)


def harmless_files(make: OnDisk) -> Variation:
    """Marks a function that changes the files of a model in a way that must pass."""
    return Variation(make.__name__, "benign", _summary(make), on_disk=make)


@cache
def library() -> dict[str, Variation]:
    """Every variation by name: controls, benign ones, then mutants; within a kind by file, then as written there."""
    found: dict[str, Variation] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
        for value in vars(importlib.import_module(f"{__name__}.{module}")).values():
            if isinstance(value, Variation) and found.setdefault(value.name, value) is not value:
                raise HarnessError(f"harness/mutants/{module}.py: the name {value.name} is taken by another variation")
    return {each.name: each for kind in PLACES for each in found.values() if each.kind == kind}


def _summary(make: Callable[..., object]) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0].strip()
