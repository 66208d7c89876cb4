"""The key ``outputs``: which writers make files from the finished run, and every mistake in it with its line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

import pytest

from harness import plugins
from harness.errors import PlanError
from harness.plan import make_plan, resolve_plan
from harness.records import Run
from harness.tables.access import Tables
from harness.writers import Writer

VARIANT = "name: n\nreference: {model: pocket}\nvariant: {}\nsuites: [smoke]\ngates: [smoke]\n"


class Summary(Writer):
    """Writes a few lines."""

    file_name: ClassVar[str] = "Report.HTML"
    style: Literal["short", "long"] = "short"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer above, as if an outside package offered it."""
    points = {"summary": SimpleNamespace(load=lambda: Summary)}
    monkeypatch.setattr(plugins, "_entry_points", lambda family: points if family == "writers" else {})


def asked(folder: Path, outputs: str) -> list[dict[str, object]]:
    """``outputs`` in the record of the plan of a variant file with this line."""
    (folder / "v.yaml").write_text(VARIANT + outputs)
    record: list[dict[str, object]] = resolve_plan(make_plan(folder / "v.yaml"))["outputs"]
    return record


def test_the_report_is_the_default(tmp_path: Path) -> None:
    assert asked(tmp_path, "") == [{"writer": "report_html", "texts": True}]


def test_names_and_settings_are_taken_in_order(tmp_path: Path) -> None:
    outputs = "outputs:\n  - junit\n  - {writer: summary, style: long}\n"
    assert asked(tmp_path, outputs) == [{"writer": "junit"}, {"writer": "summary", "style": "long"}]


@pytest.mark.parametrize(
    ("outputs", "line", "key", "parts"),
    [
        ("outputs: [junt]\n", 6, "outputs[0]", ("'junt'", "one of comment_md", "report_html", "did you mean junit?")),
        ("outputs: []\n", 6, "outputs", ("an empty list", "a list of names of writers, at least one")),
        ("outputs: junit\n", 6, "outputs", ("'junit'", "a list of names of writers")),
        ("outputs: [3]\n", 6, "outputs[0]", ("3", "{writer: name}")),
        ("outputs: [{name: junit}]\n", 6, "outputs[0]", ("no writer",)),
        ("outputs: [junit, junit]\n", 6, "outputs[1]", ("junit, which writes junit.xml as junit does",)),
        ("outputs: [report_html, summary]\n", 6, "outputs[1]", ("summary, which writes Report.HTML as report_html",)),
        ("outputs:\n- {writer: summary, styl: long}\n", 7, "outputs[0].styl", ("'styl'", "did you mean style?")),
        ("outputs:\n- {writer: summary, style: lang}\n", 7, "outputs[0].style", ("lang", "did you mean long?")),
        ("outputs: [run_json]\n", 6, "outputs[0]", ("'run_json'", "one of comment_md, ", "report_html, ")),
        ("output: [junit]\n", 6, "output", ("unknown key 'output'", "did you mean outputs?")),
    ],
)  # fmt: skip
def test_mistakes_name_line_key_and_what_is_close(
    tmp_path: Path, outputs: str, line: int, key: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(PlanError) as caught:
        asked(tmp_path, outputs)
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (line, key)
    for part in parts:
        assert part in str(problem)
