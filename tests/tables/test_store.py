"""Tables on disk: whole units or none, whatever happens to the process or to the files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import TableError
from harness.tables.store import Store, StoreReader

UNITS = 5


class Killed(BaseException):
    """The process is dead: no clean-up that touches the disk can happen any more."""


class Disk:
    """The file operations of the store, of which the ``fatal``-th kills the process (0: none does)."""

    NAMES = ("write", "fsync", "replace", "unlink", "ftruncate")

    def __init__(self, fatal: int, kill: Callable[[], None]) -> None:
        self.fatal, self.kill, self.calls = fatal, kill, 0

    def patch(self, put: Callable[[object, str, object], None]) -> None:
        """Wrap os.write and its like with ``put(module, name, function)``."""
        for name in self.NAMES:
            put(os, name, self._wrap(getattr(os, name), torn=name == "write"))

    def _wrap(self, operation: Callable[..., Any], torn: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.fatal and torn:  # half of the bytes reach the disk
                operation(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            if 0 < self.fatal <= self.calls:
                self.kill()
            return operation(*arguments)

        return call


def work(folder: Path, units: int = UNITS) -> None:
    """A small run: rows of every unit, and a running sum over the units as a snapshot."""
    with Store(folder, "key") as store:
        sink = store.sink("core")
        running = sink.read("sums")
        total = 0.0 if running is None else float(running["total"].iloc[0])
        for unit in range(units):
            if sink.done(f"pass/{unit}"):
                continue
            values = np.random.default_rng(unit).normal(size=3)
            total += float(values.sum())
            rows = pd.DataFrame({"unit": np.full(3, unit, np.int32), "x": values, "s": ["a", "", "b"]})
            lists = pd.DataFrame({"l": [[0.5] * (unit % 2)]})
            sums = pd.DataFrame({"total": [total]})
            sink.commit(f"pass/{unit}", {"tokens": rows, "lists": lists}, {"sums": sums})


def dies(folder: Path, fatal: int, units: int = UNITS) -> int | None:
    """Do the small run in a world that ends at one file operation; how many there were, None if it died."""

    def kill() -> None:
        raise Killed

    disk = Disk(fatal, kill)
    with pytest.MonkeyPatch.context() as patch:
        disk.patch(patch.setattr)
        try:
            work(folder, units)
        except Killed:
            return None
    return disk.calls


def content(folder: Path) -> dict[str, bytes]:
    """Every table of the suite, as bytes."""
    reader = StoreReader(folder, "key")
    frames = {table: reader.read("core", table) for table in reader.tables("core")}
    return {name: b"" if frame is None else frame.to_csv().encode() for name, frame in frames.items()}


def small(values: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"x": np.array(values, np.int64)})


def test_a_process_that_dies_at_any_file_operation_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    calls = dies(tmp_path / "undisturbed", 0, units=3)
    assert calls is not None
    assert calls >= 40
    expected = content(tmp_path / "undisturbed")
    for fatal in range(1, calls + 1):
        folder = tmp_path / str(fatal)
        assert dies(folder, fatal, units=3) is None
        work(folder, units=3)
        assert content(folder) == expected, f"died at operation {fatal}"
        assert not list(folder.rglob("*.tmp"))
        assert len(list((folder / "core").glob("*.sums.*"))) == 1


def test_a_process_that_dies_again_and_again_gets_there(tmp_path: Path) -> None:
    work(tmp_path / "undisturbed")
    deaths = 0
    while dies(tmp_path / "dying", 35) is None:
        deaths += 1
        assert deaths < 20
    assert deaths >= 2
    assert content(tmp_path / "dying") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("fatal", [2, 27, 40])
def test_a_real_process_that_really_dies_resumes(tmp_path: Path, fatal: int) -> None:
    code = (
        "import importlib.util, os, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('t', sys.argv[1])\n"
        "t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)\n"
        "t.Disk(int(sys.argv[3]), lambda: os._exit(9)).patch(setattr)\n"
        "t.work(pathlib.Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, __file__, str(tmp_path / "dying"), str(fatal)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == 9, died.stderr
    work(tmp_path / "dying")
    work(tmp_path / "undisturbed")
    assert content(tmp_path / "dying") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
def test_a_refusing_disk_is_an_error_and_costs_only_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    with Store(tmp_path, "key") as store:
        sink = store.sink("core")
        sink.commit("a/1", {"t": small([1])}, {"s": small([1])})

        real, calls = getattr(os, operation), 0

        def full(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        refused = 0
        for at in range(1, 12):
            calls = 0
            monkeypatch.setattr(os, operation, full)
            try:
                sink.commit(f"b/{at}", {"t": small([at])}, {"s": small([at])})
            except TableError as error:
                refused += "No space left" in str(error) and str(tmp_path) in str(error)
            assert sink.done(f"b/{at}") == (calls < at)
            monkeypatch.undo()
            sink.commit(f"c/{at}", {"t": small([at])}, {"s": small([at])})
        assert refused >= 2
        read = store.read("core", "t")
        assert read is not None
        assert len(read) == len(store.units("core"))
    with Store(tmp_path, "key") as again:
        assert again.dropped == ()
        read_again = again.read("core", "t")
        assert read_again is not None
        pd.testing.assert_frame_equal(read_again, read)


def filled(folder: Path, units: int = 4, snapshot: bool = False) -> None:
    with Store(folder, "key") as store:
        for unit in range(1, units + 1):
            snapshots = {"s": small([unit])} if snapshot else {}
            store.sink("core").commit(f"u/{unit}", {"t": small([unit] * 3)}, snapshots)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_changed_byte_in_a_part_drops_that_unit_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    filled(folder)
    path = folder / "core" / "2.t.parquet"
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(TableError, match=r"2\.t\.parquet"):
        StoreReader(folder).read("core", "t")
    with Store(folder, "key") as store:
        assert [(d.suite, d.unit) for d in store.dropped] == [("core", "u/2")]
        assert "checksum" in store.dropped[0].reason
        assert len(store.messages) == 1
        assert "core u/2 is computed again" in store.messages[0]
        sink = store.sink("core")
        assert [sink.done(f"u/{u}") for u in (1, 2, 3, 4)] == [True, False, True, True]
        sink.commit("u/2", {"t": small([2] * 3)})
        read = store.read("core", "t")
        assert read is not None
        assert read["x"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_a_missing_or_cut_part_drops_its_unit(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "core" / "1.t.parquet").unlink()
    cut = tmp_path / "core" / "4.t.parquet"
    cut.write_bytes(cut.read_bytes()[:-1])
    with Store(tmp_path, "key") as store:
        assert [d.unit for d in store.dropped] == ["u/1", "u/4"]
    with Store(tmp_path, "key") as store:
        assert store.dropped == ()
        assert not cut.exists()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_changed_byte_in_the_journal_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    filled(folder)
    path = folder / "journal.jsonl"
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with pytest.raises(TableError):
        StoreReader(folder)
    with Store(folder, "key") as store:
        assert store.cleared or store.dropped
        sink = store.sink("core")
        for unit in (1, 2, 3, 4):
            if not sink.done(f"u/{unit}"):
                sink.commit(f"u/{unit}", {"t": small([unit] * 3)})
        read = store.read("core", "t")
        assert read is not None
        assert read["x"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("keep", [0, 1, -1, -20])
def test_a_torn_last_line_is_one_unit_lost(tmp_path: Path, keep: int) -> None:
    filled(tmp_path)
    path = tmp_path / "journal.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + last[:keep])
    with Store(tmp_path, "key") as store:
        assert len(store.dropped) == (1 if keep else 0)
        assert store.units("core") == ("u/1", "u/2", "u/3")
        assert not (tmp_path / "core" / "4.t.parquet").exists()
        store.sink("core").commit("u/4", {"t": small([4])})
    assert StoreReader(tmp_path, "key").units("core") == ("u/1", "u/2", "u/3", "u/4")


def test_a_snapshot_falls_with_every_unit_that_went_into_it(tmp_path: Path) -> None:
    filled(tmp_path, snapshot=True)
    with Store(tmp_path, "key") as store:
        store.sink("core").commit("other", {"o": small([7])})
    path = tmp_path / "core" / "2.t.parquet"
    path.write_bytes(b"damaged")
    with Store(tmp_path, "key") as store:
        assert [d.unit for d in store.dropped] == ["u/1", "u/2", "u/3", "u/4"]
        assert store.units("core") == ("other",)
        assert store.read("core", "s") is None


def test_a_damaged_snapshot_drops_the_units_it_sums(tmp_path: Path) -> None:
    filled(tmp_path, snapshot=True)
    (path,) = (tmp_path / "core").glob("*.s.parquet")
    path.write_bytes(b"damaged")
    with Store(tmp_path, "key") as store:
        assert len(store.dropped) == 4
        assert store.units("core") == ()


def test_a_torn_line_leaves_the_snapshot_before_it(tmp_path: Path) -> None:
    filled(tmp_path, units=2, snapshot=True)
    journal = tmp_path / "journal.jsonl"
    before, (snapshot,) = journal.read_bytes(), (tmp_path / "core").glob("*.s.parquet")
    kept = snapshot.read_bytes()
    with Store(tmp_path, "key") as store:
        store.sink("core").commit("u/3", {"t": small([3])}, {"s": small([3])})
    journal.write_bytes(before + journal.read_bytes()[len(before) :][:-5])
    snapshot.write_bytes(kept)  # died before the older snapshot was deleted
    with Store(tmp_path, "key") as store:
        assert len(store.dropped) == 1
        read = store.read("core", "s")
        assert read is not None
        assert read["x"].tolist() == [2]


def test_tables_of_another_data_key_are_cleared_and_said_so(tmp_path: Path) -> None:
    filled(tmp_path)
    stranger = tmp_path / "core" / "notes.txt"
    stranger.write_text("not ours")
    with pytest.raises(TableError, match="key"):
        StoreReader(tmp_path, "other")
    with Store(tmp_path, "other") as store:
        assert "key" in store.cleared
        assert "cleared" in store.messages[0]
        assert store.units("core") == ()
        assert store.read("core", "t") is None
    assert not list(tmp_path.rglob("*.parquet"))
    assert stranger.read_text() == "not ours"


def test_a_part_of_another_run_is_not_used(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    with Store(tmp_path / "b", "key") as store:
        store.sink("core").commit("u/1", {"t": small([99] * 3)})
    foreign = (tmp_path / "b" / "core" / "1.t.parquet").read_bytes()
    (tmp_path / "a" / "core" / "1.t.parquet").write_bytes(foreign)
    with Store(tmp_path / "a", "key") as store:
        assert [d.unit for d in store.dropped] == ["u/1"]


def test_the_lock_names_the_holder_and_goes_with_it(tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom harness.tables.store import Store\nStore(pathlib.Path(sys.argv[1]), 'key')"
    with Store(tmp_path, "key"):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert f"TableError: {tmp_path}: in use by process {os.getpid()};" in other.stderr
        with pytest.raises(TableError, match=str(os.getpid())):
            Store(tmp_path, "key")
        assert StoreReader(tmp_path, "key").suites() == ()
    Store(tmp_path, "key").close()


def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, "key")
    store.close()
    with pytest.raises(TableError, match="closed"):
        store.sink("core").commit("u", {"t": small([1])})


def test_a_unit_is_committed_once(tmp_path: Path) -> None:
    with Store(tmp_path, "key") as store:
        store.sink("core").commit("u", {"t": small([1])})
        with pytest.raises(TableError, match="already"):
            store.sink("core").commit("u", {"t": small([1])})
        assert not store.sink("more").done("u")


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8, 13)))
def test_rows_are_read_in_the_order_of_unit_names(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    with Store(tmp_path_factory.mktemp("order"), "key") as store:
        for unit in order:
            store.sink("core").commit(f"pass/{unit}", {"t": small([unit])})
        read = store.read("core", "t")
    assert read is not None
    assert read["x"].tolist() == [8, 9, 10, 11, 12]


def test_types_survive(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "i": np.array([1, 2], np.int32),
            "f": np.array([np.nan, np.inf], np.float32),
            "maybe": pd.array([None, 4], dtype="Int32"),
            "flag": pd.array([None, True], dtype="boolean"),
            "s": ["", "ü<script>"],
        }
    )
    with Store(tmp_path, "key") as store:
        store.sink("core").commit("1", {"t": frame})
        store.sink("core").commit("2", {"t": frame.iloc[:0], "empty": frame.iloc[:0]})
        read = store.read("core", "t")
        assert read is not None
        pd.testing.assert_frame_equal(read, frame)
        assert np.isinf(read["f"].iloc[1])
        some = store.read("core", "t", ("s", "i"))
        assert some is not None
        assert list(some.columns) == ["s", "i"]
        with pytest.raises(TableError, match="no column q"):
            store.read("core", "t", ("q",))
        assert store.read("core", "nothing") is None
        assert store.read("nobody", "t") is None
        empty = store.read("core", "empty")
        assert empty is not None
        assert len(empty) == 0


@pytest.mark.parametrize("name", ["../out", ".", "..", "/abs", "a/b", "ü", "CON", "a\x00b", "%2E"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inside"
    with Store(folder, "key") as store:
        store.sink(name).commit("u", {name: small([1])})
        assert store.suites() == (name,)
        assert store.read(name, name) is not None
    assert {p.name for p in tmp_path.iterdir()} == {"inside"}
    assert len(list(folder.glob("*/*.parquet"))) == 1


def test_a_folder_without_tables_is_an_error_to_readers(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"journal\.jsonl"):
        StoreReader(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    filled(tmp_path)
    for line in (tmp_path / "journal.jsonl").read_text().splitlines():
        json.loads(line)
    for path in (tmp_path / "core").iterdir():
        assert path.read_bytes()[:4] == b"PAR1"


def test_another_store_adopts_what_snapshots_have_left(tmp_path: Path) -> None:
    filled(tmp_path / "one", snapshot=True)
    one = StoreReader(tmp_path / "one")
    with Store(tmp_path / "other", "another key") as other:
        for unit in one.units("core"):
            other.adopt(one, "core", unit)
        assert other.units("core") == one.units("core")
        for table in ("t", "s"):
            left, right = other.read("core", table), one.read("core", table)
            assert left is not None
            assert right is not None
            pd.testing.assert_frame_equal(left, right)
        assert not list((tmp_path / "other" / "core").glob("1.s.parquet"))
        with pytest.raises(TableError, match="is already committed"):
            other.adopt(one, "core", one.units("core")[0])
    (tmp_path / "one" / "core" / "2.t.parquet").write_bytes(b"damaged")
    with Store(tmp_path / "third", "key") as third, pytest.raises(TableError, match=r"2\.t\.parquet"):
        third.adopt(StoreReader(tmp_path / "one"), "core", one.units("core")[1])
