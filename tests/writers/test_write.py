"""Writing everything, and reading a run back from a folder that others may have touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import plugins
from harness.errors import HarnessError, WriteError
from harness.records import Run
from harness.tables.access import Tables
from harness.write import read_run, write_all, write_report
from harness.writers import Writer
from harness.writers.run_json import encode
from tests.helpers.made_run import Made


def test_writes_every_kind_in_order(made: dict[str, Made], tmp_path: Path) -> None:
    example = made["fail"]
    written = write_all(example.run, example.tables, tmp_path, ["run_json", "report_html"])
    assert written == [tmp_path / "run.json", tmp_path / "report.html"]
    assert read_run(tmp_path) == example.run
    assert "Must not ship" in written[1].read_text(encoding="utf-8")


class Raises(Writer):
    """Fails like a defective plugin."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        raise ZeroDivisionError("inside the plugin")


def test_one_writer_that_fails_stops_no_other_and_leaves_no_stale_report(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("May ship, said the run before")
    real = plugins.load

    def load(base: type[Any], name: str) -> type[Any]:
        if name != "report_html":
            return real(base, name)
        Raises.kind, Raises.file_name = "report_html", "report.html"
        return Raises

    monkeypatch.setattr(plugins, "load", load)
    with pytest.raises(WriteError, match="report_html: ZeroDivisionError: inside the plugin"):
        write_all(made["fail"].run, made["fail"].tables, tmp_path, ["report_html", "run_json"])
    assert read_run(tmp_path).verdict == "fail"
    assert not (tmp_path / "report.html").exists()


def test_the_report_can_be_written_again_without_tables(made: dict[str, Made], tmp_path: Path) -> None:
    path = write_report(made["fail"].run, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "Must not ship" in text
    assert "expected the tables of a run" in text


def cut(text: str) -> bytes:
    return text[: len(text) // 2].encode()


def change(key: str, value: Any) -> Callable[[str], bytes]:
    return lambda text: json.dumps(json.loads(text) | {key: value}).encode()


DAMAGE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "cut": (cut, "damaged"),
    "empty": (lambda text: b"", "damaged"),
    "not text": (lambda text: b"\xff\xfe\x00" + text.encode(), "not UTF-8"),
    "nan": (lambda text: text.replace('"change": ', '"change": NaN, "was": ', 1).encode(), "NaN is not JSON"),
    "too large": (lambda text: text.replace('"threads": 2', '"threads": 1e999').encode(), "run.json"),
    "key twice": (lambda text: text.replace('"name": ', '"name": "", "name": ', 1).encode(), "twice"),
    "list": (lambda text: b"[]", "schema_version"),
    "foreign": (lambda text: b'{"format": 1}', "schema_version"),
    "newer": (change("schema_version", 3), "found schema_version 3, wanted 2"),
    "version is text": (change("schema_version", "1"), "found schema_version '1'"),
    "version is true": (change("schema_version", True), "found schema_version True"),
    "unknown key": (change("vendor", 1), "vendor"),
    "wrong type": (change("exit_code", "0"), "exit_code"),
    "deep": (lambda text: b"[" * 200_000, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("how", list(DAMAGE))
def test_damage_is_named_with_the_file(made: dict[str, Made], tmp_path: Path, how: str) -> None:
    damage, message = DAMAGE[how]
    path = tmp_path / "run.json"
    path.write_bytes(damage(encode(made["pass"].run).decode()))
    with pytest.raises(HarnessError) as raised:
        read_run(tmp_path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_a_folder_without_a_run_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not found; wanted the folder of a finished run"):
        read_run(tmp_path / "nowhere")


def test_the_file_itself_can_be_named(made: dict[str, Made], tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(encode(made["pass"].run))
    assert read_run(path) == made["pass"].run
