"""Tables and their journal, damaged anywhere: refused by a reader; a store computes again what it cannot trust."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError, TableError
from harness.tables.store import Store, StoreReader
from tests.fuzz.budget import attempt, budget
from tests.fuzz.edits import Edit, byte_edits, edit_bytes, edit_tree, kept, tree_edits

UNITS = "pass/1", "pass/2", "pass/10"
JOURNAL = "journal.jsonl"
KEY = "9f" * 8
Content = dict[str, pd.DataFrame | None]


def frames(unit: str) -> dict[str, pd.DataFrame]:
    number = float(unit.partition("/")[2])
    return {"tokens": pd.DataFrame({"x": [number, -number], "word": ["a", unit], "many": [[1, 2], []]})}


def sums(unit: str) -> dict[str, pd.DataFrame]:
    included = UNITS[: UNITS.index(unit) + 1]
    return {"sums": pd.DataFrame({"total": [sum(float(each.partition("/")[2]) for each in included)]})}


def complete(store: Store) -> Content:
    """Commit what is missing, in the order of a run, and read everything."""
    sink = store.sink("core")
    for unit in UNITS:
        if not sink.done(unit):
            sink.commit(unit, frames(unit), sums(unit))
    return {name: store.read("core", name) for name in ("tokens", "sums")}


def same(found: Content, expected: Content) -> bool:
    pairs = [(found[name], expected[name]) for name in expected]
    return all(a is not None and b is not None and a.to_json() == b.to_json() for a, b in pairs)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_disks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "tables"
    with Store(folder, KEY) as store:
        complete(store)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "precious.parquet").write_text("years of work")
    return tmp_path / "tables"


def content_of(finished: Path) -> Content:
    reader = StoreReader(finished, KEY)
    return {name: reader.read("core", name) for name in ("tokens", "sums")}


def check(finished: Path, work: Path, changed: Mapping[str, bytes], believed: bool = False) -> None:
    """believed: every line has a valid checksum, so that what it says of other units or tables has to be believed."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(finished, work)
    for name, data in changed.items():
        (work / name).write_bytes(data)
    expected = content_of(finished)
    found = attempt(lambda: content_of(work))
    if isinstance(found, HarnessError):
        assert isinstance(found, TableError)
        assert str(work) in str(found)
    elif not believed:
        assert same(found, expected) or len(StoreReader(work, KEY).units("core")) < len(UNITS), "damaged rows were read"
    resumed = attempt(lambda: resume(work))
    assert believed or (not isinstance(resumed, HarnessError) and same(resumed, expected))
    assert (work.parent / "precious.parquet").read_text() == "years of work"


def resume(work: Path) -> Content:
    with Store(work, KEY) as store:
        return complete(store)


def lines_of(finished: Path) -> list[Any]:
    return [json.loads(line)["entry"] for line in (finished / JOURNAL).read_bytes().splitlines()]


def encode(entries: list[Any]) -> bytes:
    """A journal all of whose checksums are valid."""
    bodies = [json.dumps(entry, sort_keys=True, separators=(",", ":")) for entry in entries]
    return "".join(f'{{"crc":"{zlib.crc32(body.encode()):08x}","entry":{body}}}\n' for body in bodies).encode()


def test_undamaged_tables_are_read_and_resumed(finished: Path, work: Path) -> None:
    check(finished, work, {})
    assert encode(lines_of(finished)) == (finished / JOURNAL).read_bytes(), "else the fuzzers below say nothing"


@pytest.mark.parametrize("edits", kept("journal").values(), ids=kept("journal"))
def test_kept_edits_of_the_journal(edits: list[Edit], finished: Path, work: Path) -> None:
    check(finished, work, {JOURNAL: encode(edit_tree(lines_of(finished), edits))}, believed=True)


@given(draw=st.data())
@budget(60)
def test_any_journal(finished: Path, work: Path, draw: st.DataObject) -> None:
    data = (finished / JOURNAL).read_bytes()
    check(finished, work, {JOURNAL: edit_bytes(data, draw.draw(byte_edits(data)))})


@given(draw=st.data())
@budget(60)
def test_any_rows(finished: Path, work: Path, draw: st.DataObject) -> None:
    parts = sorted(path.relative_to(finished).as_posix() for path in finished.glob("core/*.parquet"))
    name = draw.draw(st.sampled_from(parts))
    data = (finished / name).read_bytes()
    check(finished, work, {name: edit_bytes(data, draw.draw(byte_edits(data)))})


@given(draw=st.data())
@budget(60)
def test_any_values_under_valid_checksums(finished: Path, work: Path, draw: st.DataObject) -> None:
    entries = lines_of(finished)
    check(finished, work, {JOURNAL: encode(edit_tree(entries, draw.draw(tree_edits(entries))))}, believed=True)


@given(draw=st.data())
@budget(60)
def test_foreign_lines(finished: Path, work: Path, draw: st.DataObject) -> None:
    """Lines of any bytes between those of the store change nothing but what is computed again."""
    lines = (finished / JOURNAL).read_bytes().splitlines(keepends=True)
    foreign = draw.draw(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"[" * 50_000, b"{}", b'{"crc":0,"entry":{}}']))
    )
    at = draw.draw(st.integers(0, len(lines)))
    check(finished, work, {JOURNAL: b"".join([*lines[:at], foreign.replace(b"\n", b"") + b"\n", *lines[at:]])})
