"""Limits of memory that libraries do not survive, in processes of their own: named before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are read on Linux only")

HARNESS = Path(__file__).parents[2]
LIST = ["list", "ship"]
JUDGE = ["judge", "nothing", "--gate", "ship"]
CHECK = ["check", "nothing.yaml"]


def run(arguments: list[str], megabytes: int, limit: str = "RLIMIT_AS") -> tuple[int, str]:
    """The exit code and output of the command line under a limit, with as many threads as OpenBLAS likes."""

    def confine() -> None:
        import resource

        resource.setrlimit(getattr(resource, limit), (megabytes * 10**6,) * 2)

    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments], env=kept | {"PYTHONPATH": str(HARNESS)}, check=False,
        preexec_fn=confine, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("megabytes", [60, 120, 165, 170, 180, 200, 240, 260])
@pytest.mark.parametrize("arguments", [LIST, JUDGE, CHECK], ids=lambda found: found[0])
def test_too_little_to_load_numpy_is_a_lack_of_resources(arguments: list[str], megabytes: int) -> None:
    code, said = run(arguments, megabytes)
    assert code == 2
    assert f"limited to {megabytes * 10**6 // 2**20} MiB, expected at least" in said
    assert "class of failure: resources" in said
    assert len(said.splitlines()) == 2


def test_a_check_needs_more_than_a_list_of_names() -> None:
    code, said = run(CHECK, 1000)
    assert (code, "expected at least 1200 MiB" in said) == (2, True)
    assert run(LIST, 1000)[0] == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["check", "--help"]], ids=" ".join)
def test_help_needs_no_library(arguments: list[str]) -> None:
    assert run(arguments, 120)[0] == 0


def test_one_thread_suffices_where_one_for_each_core_does_not() -> None:
    code, said = run(LIST, 290)
    assert code == 0, said


def test_the_limit_of_data_counts_too() -> None:
    code, said = run(LIST, 100, "RLIMIT_DATA")
    assert code == 2
    assert "the data of this process is limited to 95 MiB" in said
