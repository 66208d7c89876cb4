"""A run.json of any content: refused with exit code 2, or judged and shown by exactly the numbers that it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.records import Run
from harness.records.patterns import matches
from harness.write import encode, read_run
from harness.writers.junit import Junit
from harness.writers.report_html import ReportHtml
from tests.fuzz.budget import Ended, attempt, budget, command
from tests.fuzz.edits import Edit, byte_edits, edit_bytes, edit_tree, kept, tree_edits
from tests.helpers.made_run import Made, make_run

GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.05, why: w}
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: w}
  - {rule: at_least, metric: divergence.top1_agreement, limit: 0.9, why: w}
  - {rule: not_worse, metric: "tasks.*", margin: 0.2, why: w}
"""
OUTPUTS = "measurements", "verdicts", "notes", "skipped", "slices", "stops", "artifact", "clock", "asked", "name"
"""Parts of run.json that fuzzers edit more often than the long lists of modules and declared metrics."""


@pytest.fixture(scope="module")
def example() -> Made:
    """A short run, with one of everything."""
    made = make_run("pass", documents=20, length=20, layers=1, items=40)
    short = made.run.model_copy(update={"metrics": made.run.metrics[:12]})
    return Made(short, made.tables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "gate.yaml").write_text(GATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def check(data: bytes, folder: Path, example: Made) -> Ended:
    """Read, judge, encode and show it."""
    (folder / "run.json").write_bytes(data)
    judged = command("judge", ".", "--gate", "./gate.yaml")
    run = attempt(lambda: read_run(folder))
    if isinstance(run, HarnessError):
        assert judged.code == 2
        assert "run.json" in judged.err
        return judged
    content = json.loads(data)
    if content["schema_version"] == 2:
        assert holds(json.loads(encode(run)), content), "nothing of the file is ignored"
    if judged.code == 0:
        check_pass(content["measurements"])
    show(run, folder, example)
    return judged


def show(run: Run, folder: Path, example: Made) -> None:
    for writer in (ReportHtml(), Junit()):
        (folder / writer.file_name).unlink(missing_ok=True)
        written = attempt(lambda writer=writer: writer.write(run, example.tables, folder))  # type: ignore[misc]
        if not isinstance(written, HarnessError):
            assert 0 < (folder / writer.file_name).stat().st_size < 5_000_000
    if (page := folder / "report.html").exists():
        assert "<script>alert(1)" not in page.read_text()


def holds(found: Any, given: Any) -> bool:
    """Whether everything that is in ``given`` is in ``found``, which may have more keys."""
    if isinstance(given, dict):
        return isinstance(found, dict) and all(key in found and holds(found[key], given[key]) for key in given)
    if isinstance(given, list):
        return isinstance(found, list) and len(found) == len(given) and all(map(holds, found, given))
    return bool(found == given)


def check_pass(measurements: list[Mapping[str, Any]]) -> None:
    """What GATE says, computed once more from the text of the file."""
    for pattern in ("divergence.kl_mean", "perplexity.ratio", "divergence.top1_agreement", "tasks.*"):
        found = [m for m in measurements if matches(pattern, m["name"])]
        assert found
        for m in found:
            assert m.get("non_finite") is None
            assert not m.get("not_judged")
            assert m["n"] > 0
            is_upper, neutral = m["better"] == "lower", m.get("neutral", 0.0)
            number, low, high = m.get("change"), m.get("low"), m.get("high")
            if pattern in ("divergence.kl_mean", "divergence.top1_agreement"):
                limit = 0.05 if is_upper else 0.9
                if m.get("variant") is not None:
                    number, low, high = m["variant"], m.get("variant_low"), m.get("variant_high")
            else:
                margin = 0.02 if pattern == "perplexity.ratio" else 0.2
                limit = neutral + margin if is_upper else neutral - margin
            assert number is not None
            assert math.isfinite(number)
            if m["basis"] == "counted" and m.get("low") == m.get("high") == m.get("change"):
                assert number <= limit if is_upper else number >= limit
            else:
                assert low is not None
                assert high is not None
                assert low < high
                assert high < limit if is_upper else low > limit


def test_the_example_passes(folder: Path, example: Made) -> None:
    assert check(encode(example.run), folder, example).code == 0


@pytest.mark.parametrize(("name", "edits"), kept("run").items(), ids=kept("run"))
def test_kept_edits(name: str, edits: list[Edit], folder: Path, example: Made) -> None:
    check(json.dumps(edit_tree(json.loads(encode(example.run)), edits)).encode(), folder, example)


@given(draw=st.data())
@budget(60)
def test_any_tree(folder: Path, example: Made, draw: st.DataObject) -> None:
    content = json.loads(encode(example.run))
    if draw.draw(st.integers(0, 4)):
        part = draw.draw(st.sampled_from([key for key in OUTPUTS if content.get(key)]))
        edits = draw.draw(tree_edits({part: content[part]}))
    else:
        edits = draw.draw(tree_edits(content))
    check(json.dumps(edit_tree(content, edits)).encode(), folder, example)


@given(draw=st.data())
@budget(100)
def test_any_bytes(folder: Path, example: Made, draw: st.DataObject) -> None:
    data = encode(example.run)
    check(edit_bytes(data, draw.draw(byte_edits(data))), folder, example)


@pytest.mark.parametrize("data", [b"", b"[" * 200_000, b'{"a":' * 50_000, b"\xff\xfe", b"1" * 100_000, b'{"x":1e999}'])
def test_other_files(data: bytes, folder: Path, example: Made) -> None:
    assert check(data, folder, example).code == 2
