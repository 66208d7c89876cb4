"""Checks a variant file in a process of its own, once a test session, with pytest-xdist once for all workers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.plan import names_of
from harness.records import Run
from harness.write import read_run


class CheckError(Exception):
    """A variant could not be run or judged."""


WORST_FIRST = (2, 1, 3, 0)
_DONE = pytest.StashKey[dict[Path, tuple[int, str]]]()


def run_of(config: pytest.Config, variant: Path, name: str = "") -> tuple[Run, Path]:
    """The run of a variant file and its folder. name: which of several; empty: the only one.

    Raises CheckError where there is none, or where the runs and the exit code of the check contradict each other.
    """
    path = shorten(variant)
    out = Path(config.getoption("--harness-out"))
    done = config.stash.setdefault(_DONE, {})
    if path not in done:
        with _shared(path) as shared:
            done[path] = _read(shared) or _check(path, out, shared)
    code, said = done[path]
    ended = f"harness check {path} ended with exit code {code}"
    names = sorted(names_of(path))
    if not name and len(names) > 1:
        raise CheckError(f"{path} makes {len(names)} variants; name one of {', '.join(names)}")
    runs = {each: _read_run(out / each) for each in names}
    if (run := runs.get(name or names[0] if names else "")) is None:
        raise CheckError(f"{ended}, and there is no run {name or path}:\n{said}")
    codes = {each: found.exit_code if found else 2 for each, found in runs.items()}
    selected = [each for each, found in runs.items() if found and found.selected == each]
    worst = min((codes[each] for each in selected or codes), key=WORST_FIRST.index)
    if worst != code:
        raise CheckError(f"{ended}, but its runs come to {worst}:\n{said}")
    return run, out / run.name


def _read_run(folder: Path) -> Run | None:
    try:
        return read_run(folder)
    except HarnessError:
        return None


def shorten(path: Path) -> Path:
    """The path relative to the working directory where it lies below it, as messages and run.json name it."""
    full = Path(os.path.abspath(path))
    return full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full


def _check(path: Path, out: Path, shared: Path | None) -> tuple[int, str]:
    # -P: a folder called harness where the tests are started is not the harness.
    command = [sys.executable, "-P", "-m", "harness", "check", str(path), "--out", str(out)]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False
    )
    result = ended.returncode, ended.stdout.decode("utf-8", "replace")
    if shared is not None:
        shared.write_text(json.dumps(result), encoding="utf-8")
    return result


@contextmanager
def _shared(path: Path) -> Iterator[Path | None]:
    """The file with the result that the workers of one session share, held; None where there is one process."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if not session:
        yield None
        return
    name = hashlib.sha256(f"{session}\0{os.path.abspath(path)}".encode()).hexdigest()[:32]
    file = Path(tempfile.gettempdir()) / f"lm-shipcheck-{os.getuid()}-{name}"
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file


def _read(shared: Path | None) -> tuple[int, str] | None:
    if shared is None or not shared.exists():
        return None
    code, said = json.loads(shared.read_text(encoding="utf-8"))
    return code, said
