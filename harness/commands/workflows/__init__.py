"""The pipeline that ``harness init --ci`` writes for a variant file: one template a CI system."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.errors import WriteError
from harness.system.yaml_values import CONTROL

CiSystem = Literal["github", "gitlab"]
PLACES: Mapping[CiSystem, str] = {
    "github": ".github/workflows/model-check.yml",
    "gitlab": ".gitlab-ci.yml",
}
"""Where each system looks for it, in the root of the repository."""


def place_of(system: CiSystem, variant: Path) -> Path:
    """Where the pipeline of a variant file goes: in the root of its repository, or beside it where there is none.

    Raises WriteError for one that exists, which is never overwritten.
    """
    path = _root(variant) / PLACES[system]
    if os.path.lexists(path):
        raise WriteError(f"{path} already exists; move it, or add a job to it that runs: harness check {variant}")
    return path


def write_workflow(system: CiSystem, variant: Path) -> Path:
    """Write the pipeline that checks the variant file; returns its path. Raises WriteError."""
    path = place_of(system, variant)
    text = encode_workflow(system, os.path.relpath(os.path.realpath(variant), _root(variant)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def encode_workflow(system: CiSystem, variant: str) -> str:
    """The pipeline for a variant file by its path in the repository.

    Raises WriteError for a path that the CI system would take for an expression.
    """
    if CONTROL.search(variant) or "${{" in variant or "\n" in variant:
        raise WriteError(f"{variant!r}: a CI system would change this path; give the variant file a plain name")
    # GitLab expands variables in the values of variables.
    value = variant.replace("$", "$$") if system == "gitlab" else variant
    template = (Path(__file__).parent / f"{system}.yml").read_text(encoding="utf-8")
    return template.replace("@VARIANT@", json.dumps(value, ensure_ascii=False))


def _root(variant: Path) -> Path:
    folder = Path(os.path.realpath(variant)).parent
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)
