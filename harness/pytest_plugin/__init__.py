"""Pytest plugin: ``pytest variants/`` checks every ``*.variant.yaml``, one test a rule; a fixture for own tests.

Pytest imports it in every project of an environment, so it imports nothing until there is a variant file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.records import Run

SUFFIX = ".variant.yaml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the run folders are."""
    group = parser.getgroup("lm-shipcheck")
    group.addoption("--harness-out", default="runs", metavar="FOLDER", help="folder of the run folders (default: runs)")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect ``*.variant.yaml``."""
    if not file_path.name.endswith(SUFFIX):
        return None
    from harness.pytest_plugin.items import VariantFile

    collector: pytest.Collector = VariantFile.from_parent(parent, path=file_path)
    return collector


@pytest.fixture(scope="session")
def check(request: pytest.FixtureRequest) -> Callable[..., Run]:
    """``check(variant)`` checks a variant file, once a session, and returns its run as in run.json.

    Of a file with a matrix, ``check(variant, name)`` returns the run of that name. Relative paths start at the working
    directory. Raises CheckError, with what was printed, where there is no run.
    """
    from harness.pytest_plugin.checking import run_of

    def check_variant(variant: str | Path, name: str = "") -> Run:
        return run_of(request.config, Path(variant), name)[0]

    return check_variant
