"""What ships with the harness, by name: suites, gates, reports, and documents of the little world.

In a source tree the files lie beside the package; an installed wheel carries them inside, under ``_shipped``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError

Kind = Literal["suites", "gates", "reports"]

POCKET_SPLITS: Mapping[str, str] = {
    "pocket-train": "train",
    "pocket-calibration": "calibration",
    "pocket-heldout": "heldout",
}
"""Names of shipped documents, and the split of the little world that each stands for."""

_PACKAGE = Path(__file__).parents[1]


def folder(kind: Kind) -> Path:
    """The folder of the shipped files of one kind. Raises HarnessError if the installation lacks it."""
    for place in (_PACKAGE / "_shipped" / kind, _PACKAGE.parent / kind):
        if place.is_dir():
            return place
    raise HarnessError(f"the folder {kind}/ of the harness is missing beside {_PACKAGE}: install the harness again")


def shipped_names(kind: Kind, suffix: str = ".yaml") -> tuple[str, ...]:
    """Names, without suffix, of the shipped files of one kind, sorted."""
    return tuple(sorted(path.stem for path in folder(kind).glob(f"*{suffix}") if path.is_file()))


def shipped_file(kind: Kind, name: str) -> Path:
    """The shipped YAML file called ``name``."""
    return folder(kind) / f"{name}.yaml"
