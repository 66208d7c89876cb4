"""Every file operation of a small check fails once, and the process dies at every one: no wrong pass, no lost work."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.check import check
from harness.errors import HarnessError
from harness.tables.store import StoreReader
from harness.terminal import Terminal
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: v
reference: {model: ./model}
variant: {compress: [{backend: round_to_nearest, bits: 8}]}
suites: [./one.yaml, ./two.yaml]
gates: [./gate.yaml]
outputs: [junit, report_html]
"""
BY_PATH = ("open", "mkdir", "unlink", "replace", "listdir")
BY_DESCRIPTOR = ("write", "pwrite", "fsync", "ftruncate")
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EACCES": errno.EACCES, "killed": None}


class KilledError(KeyboardInterrupt):
    """The process is dead: nothing it does reaches the disk any more."""


class Disk:
    """The file operations below ``root``, of which the ``fatal``-th fails with ``error`` or ends the process (None).

    last: the operation that failed, and its path below ``root``. withdrawn: whether the earlier result was gone.
    """

    def __init__(self, root: Path, fatal: int, error: int | None) -> None:
        self.root, self.fatal, self.error, self.calls = str(root), fatal, error, 0
        self.last, self.withdrawn = "", False

    @contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in BY_PATH:
                patch.setattr(os, name, self._wrap(name, getattr(os, name), self._path))
            for name in BY_DESCRIPTOR:
                patch.setattr(os, name, self._wrap(name, getattr(os, name), self._descriptor))
            for module in (io, builtins):
                patch.setattr(module, "open", self._wrap("read", io.open, self._path))
            yield

    def _wrap(self, name: str, operation: Callable[..., Any], where: Callable[..., str]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            path = where(*given, **named)
            # To make a folder that is there already fails in any case, and nobody minds.
            if not path.startswith(self.root) or (name == "mkdir" and os.path.isdir(path)):
                return operation(*given, **named)
            self.calls += 1
            if self.calls <= self.fatal:
                self.last = f"{name} {path.removeprefix(self.root)}"
                self.withdrawn |= self.last == "unlink /v/run.json"
            if self.calls == self.fatal and name == "write":  # half of the bytes reach the disk
                operation(given[0], bytes(given[1])[: len(given[1]) // 2])
            if self.error is None and 0 < self.fatal <= self.calls:
                raise KilledError
            if self.error is not None and self.calls == self.fatal:
                raise OSError(self.error, os.strerror(self.error), path)
            return operation(*given, **named)

        return call

    def _path(self, path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> str:
        if isinstance(path, int):
            return ""
        return os.path.join(self._descriptor(dir_fd) if dir_fd is not None else "", os.fspath(path))

    def _descriptor(self, descriptor: int, *_: Any) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return ""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    save(tiny_llama(), folder / "model")
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text("measures: [memory]\n")
    (folder / "gate.yaml").write_text("rules: [{rule: at_most, metric: memory.bits_per_weight, limit: 99, why: any}]\n")
    (folder / "v.yaml").write_text(VARIANT)
    return folder


def run(desk: Path, out: Path, fatal: int = 0, error: int | None = None) -> tuple[int | None, str, Disk]:
    """Exit code (None: killed), what was said, and the disk."""
    said, disk = io.StringIO(), Disk(out, fatal, error)
    code: int | None = None
    with disk.installed():
        try:
            code = check([desk / "v.yaml"], out, Terminal(Console(file=said, width=2000)))
        except KilledError:
            pass
        except HarnessError as failed:
            code = 2
            said.write(str(failed))
    return code, said.getvalue(), disk


def result(out: Path) -> dict[str, Any]:
    """run.json without what depends on the clock, and every table."""
    folder = out / "v"
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    content.pop("clock")
    reader = StoreReader(folder / "tables", content["data_key"])
    tables = {(s, t): reader.read(s, t) for s in reader.suites() for t in reader.tables(s)}
    content["tables"] = {key: table.to_csv() for key, table in tables.items() if table is not None}
    return content | {"outputs": [(folder / name).exists() for name in ("junit.xml", "report.html")]}


def committed(out: Path) -> dict[str, int]:
    """The part files of units that were committed: a file that is written again has another inode."""
    journal = out / "v" / "tables" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
    files = [part["file"] for line in lines if line.endswith(b"\n") for part in json.loads(line)["entry"]["parts"]]
    return {file: (journal.parent / file).stat().st_ino for file in files}


def check_fault(desk: Path, out: Path, fatal: int, name: str, expected: dict[str, Any]) -> None:
    file = out / "v" / "run.json"
    before = file.read_bytes() if file.exists() else None
    code, said, disk = run(desk, out, fatal, ERRORS[name])
    where = f"{name} at operation {fatal}, {disk.last}: {said}"
    if code == 0:
        # A check can do without the variances of an earlier run, by which it says more before it starts; and rows of an
        # earlier run that cannot be read are computed again.
        assert disk.last.split()[0] in {"open", "read"}, where
        assert not disk.withdrawn or "is computed again" in said, where
        assert result(out) == expected, where
        return
    assert code == (None if name == "killed" else 2), where
    assert "May ship" not in said, where
    assert name == "killed" or os.strerror(ERRORS[name] or 0) in said, where
    if file.exists() and file.read_bytes() != before:
        run_json = json.loads(file.read_text())
        assert run_json["exit_code"] == 2 or (name == "killed" and result(out)["outputs"] == [True, True]), where
    kept = committed(out)
    assert run(desk, out)[0] == 0, where
    assert result(out) == expected, where
    assert committed(out).items() >= kept.items(), where
    assert not list(out.rglob("*.tmp")), where


@pytest.fixture(scope="module")
def undisturbed(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int, int]:
    """The result, and the numbers of file operations of a first check and of one over it."""
    out = tmp_path_factory.mktemp("undisturbed")
    code, said, first = run(desk, out)
    assert code == 0, said
    expected = result(out)
    code, _, again = run(desk, out)
    assert (code, result(out)) == (0, expected)
    return expected, first.calls, again.calls


@pytest.mark.parametrize("name", list(ERRORS))
def test_some_operations(desk: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], int, int], name: str) -> None:
    expected, first, _ = undisturbed
    assert first >= 60
    step = list(ERRORS).index(name)
    for fatal in (2 + step, first // 2 + step, first - 3 + step):
        check_fault(desk, tmp_path / str(fatal), fatal, name, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ERRORS))
@pytest.mark.parametrize("over", ["nothing", "an earlier result"])
def test_every_operation(
    desk: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], int, int], name: str, over: str
) -> None:
    expected, first, again = undisturbed
    for fatal in range(1, (first if over == "nothing" else again) + 1):
        out = tmp_path / str(fatal)
        if over != "nothing":
            assert run(desk, out)[0] == 0
        check_fault(desk, out, fatal, name, expected)
