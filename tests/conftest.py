"""Shared by all tests: one torch thread (several processes of several threads slow each other down many times)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.helpers.made_run import Made

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

# The same examples on every run: what passed here passes there. For new ones: pytest --hypothesis-profile=default
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real models and texts kept beside the checkout; tests that use them skip where they are absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data beside the checkout (real pretrained models and texts)")
    return folder


@pytest.fixture(scope="session")
def made() -> dict[str, Made]:
    """Made-up runs with their tables, one of each verdict."""
    from tests.helpers.made_run import SCALE, make_run

    return {verdict: make_run(verdict) for verdict in SCALE}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one file."""
    from tests.helpers.browsing import start_browser

    yield from start_browser()
