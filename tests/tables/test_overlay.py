"""Units on top of the tables of a run read like committed ones, and nothing of the run changes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from harness.errors import TableError
from harness.tables.overlay import Overlay, read_version
from harness.tables.store import Store


def rows(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"a": list(values), "b": [str(value) for value in values], "c": [[value] for value in values]})


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    with Store(tmp_path, "key") as store:
        for number in range(3):
            store.commit("s", f"pass/{number}", {"t": rows(number), "sums": rows(10 * number)}, {})
    return tmp_path


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_committed_on_top_reads_as_if_it_were_stored_and_can_be_stored_by_another(tables: Path) -> None:
    before = list_files(tables)
    overlay = Overlay(tables, "key")
    sink = overlay.sink("s")
    assert not sink.done("pass/sums")
    sink.commit("pass/sums", {"more": rows(7)}, {"sums": rows(30)})
    sink.commit("pass/10", {"t": rows(10)})
    assert sink.done("pass/sums")
    assert sink.done("pass/1")
    assert list_files(tables) == before
    with Store(tables, "key") as store:
        for (suite, unit), files in overlay.added.items():
            store.commit_files(suite, unit, files)
        for name in ("t", "sums", "more"):
            stored, here = store.read("s", name), sink.read(name)
            assert stored is not None
            assert here is not None
            pd.testing.assert_frame_equal(here, stored)
        assert sink.read("sums", ("b",))["b"].tolist() == ["30"]  # type: ignore[index]
        assert overlay.read("s", "t")["a"].tolist() == [0, 1, 2, 10]  # type: ignore[index]
        assert [len(part) for part in sink.read_parts("sums")] == [1]


def test_the_version_of_tables_changes_with_every_unit(tables: Path, tmp_path: Path) -> None:
    first = read_version(tables)
    with Store(tables, "key") as store:
        store.commit("s", "pass/3", {"t": rows(3)}, {})
    assert read_version(tables) != first
    with pytest.raises(TableError, match="could not be read"):
        read_version(tmp_path / "nowhere")
