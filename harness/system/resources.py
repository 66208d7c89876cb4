"""Files bundled with the harness, by name: suites, gates, report templates, and documents of the pocket world.

In a source tree the files lie beside the package; an installed wheel contains them under ``_shipped``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError

ResourceKind = Literal["suites", "gates", "reports"]

POCKET_SPLITS: Mapping[str, str] = {
    "pocket-train": "train",
    "pocket-calibration": "calibration",
    "pocket-heldout": "heldout",
}
"""Names of bundled data, and the split of the pocket world that each stands for."""

_PACKAGE = Path(__file__).parents[1]


def folder(kind: ResourceKind) -> Path:
    """The folder of the bundled files of one kind. Raises HarnessError if the installation lacks it."""
    for place in (_PACKAGE / "_shipped" / kind, _PACKAGE.parent / kind):
        if place.is_dir():
            return place
    raise HarnessError(f"the folder {kind}/ of the harness is missing beside {_PACKAGE}: install the harness again")


def bundled_names(kind: ResourceKind, suffix: str = ".yaml") -> tuple[str, ...]:
    """Names, without suffix, of the bundled files of one kind, sorted."""
    return tuple(sorted(path.stem for path in folder(kind).glob(f"*{suffix}") if path.is_file()))


def bundled_file(kind: ResourceKind, name: str) -> Path:
    """The bundled YAML file called ``name``."""
    return folder(kind) / f"{name}.yaml"
