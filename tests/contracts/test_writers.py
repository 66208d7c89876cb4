"""What every writer keeps: bytes that are looked at, and text that stays text, whatever a run names.

The golden files are made anew with:  UPDATE_GOLDEN=1 pytest tests/contracts/test_writers.py -k golden
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.plugins import load, names
from harness.records import Failure, Fault
from harness.report.display import clean
from harness.report.worst import list_worst
from harness.writers import Writer
from tests.helpers.hostile import HOSTILE, PLAIN, rename_everything, small

GOLDEN = Path(__file__).parents[1] / "golden" / "writers"
LOGGING = frozenset({"mlflow", "wandb"})
"""Writers of a library of their own: see their tests."""
KINDS = [kind for kind in names(Writer) if kind not in LOGGING]


def written(kind: str, folder: Path, text: str) -> bytes:
    """What a writer makes of a run in which every text is ``text``."""
    return load(Writer, kind)().write(rename_everything(text), small().tables, folder).read_bytes()


# What a reader of each format sees: its structure, without any text, and its texts


Seen = tuple[list[str], list[str]]


def walk(value: Any) -> Iterable[tuple[str, str]]:
    """(structure, text) of JSON or YAML."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"{key}.{path}", text) for path, text in walk(item))
    elif isinstance(value, list):
        for item in value:
            yield from ((f"[].{path}", text) for path, text in walk(item))
    else:
        yield type(value).__name__, str(value)


def see_json(content: bytes) -> Seen:
    pairs = list(walk(json.loads(content)))
    return [path for path, _ in pairs], [text for _, text in pairs]


def see_flat(content: bytes) -> Seen:
    found = json.loads(content)
    return [type(value).__name__ for value in found.values()], list(found)


def see_xml(content: bytes) -> Seen:
    elements = list(ElementTree.fromstring(content).iter())  # noqa: S314 - written by this program a moment ago
    texts = [text for each in elements for text in (*each.attrib.values(), each.text or "")]
    return [f"{each.tag} {sorted(each.attrib)}" for each in elements], texts


def see_csv(content: bytes) -> Seen:
    rows = list(csv.reader(io.StringIO(content.decode())))
    for cell in (cell for row in rows for cell in row):
        assert re.fullmatch(r"-?\d.*", cell) or not cell.lstrip().startswith(tuple("=+-@\t\r＝＋－＠")), cell
    return [str(len(row)) for row in rows], [cell for row in rows for cell in row]


def see_parquet(content: bytes) -> Seen:
    from pyarrow import parquet

    rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    return [str(sorted(row)) for row in rows], [str(value) for row in rows for value in row.values()]


def see_commands(content: bytes) -> Seen:
    """As GitHub's runner reads them: "::command key=value,…::data", one a line."""
    structure, texts = [], []
    for line in content.decode().split("\n")[:-1]:
        match = re.fullmatch(r"::(error|warning) (.*?)::(.*)", line)
        assert match, line
        properties = dict(part.split("=", 1) for part in match[2].split(","))
        assert properties["line"].isdecimal()
        structure.append(f"{match[1]} {list(properties)}")
        texts += [unescape(each) for each in (*properties.values(), match[3])]
    return structure, texts


def unescape(text: str) -> str:
    for code, character in {"%3A": ":", "%2C": ",", "%0D": "\r", "%0A": "\n", "%25": "%"}.items():
        text = text.replace(code, character)
    return text


ALLOWED = re.compile(r"</?(code|details)>|<summary>\d+ [a-z ]+</summary>|<!-- lm-shipcheck: [A-Za-z0-9._-]* -->")


def see_markdown(content: bytes) -> Seen:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    structure, texts = [], []
    for block in parser.parse(content.decode()):
        for token in block.children or [block]:
            if token.type in {"html_inline", "html_block"}:
                assert not re.sub(ALLOWED, "", token.content).strip()
            if token.type != "text":
                structure.append(token.type)
        texts.append("".join(token.content for token in block.children or () if token.type == "text"))
    return structure, [text.replace("\u200b", "") for text in texts]


def see_card(content: bytes) -> Seen:
    _, front, body = content.decode().split("---\n", 2)
    structure, texts = see_markdown(body.encode())
    pairs = list(walk(yaml.safe_load(front)))
    return structure + [path for path, _ in pairs], texts + [text for _, text in pairs]


class Html(HTMLParser):
    """Start tags in order, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(key.startswith("on") for key, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def see_html(content: bytes) -> Seen:
    parser = Html()
    parser.feed(content.decode())
    return sorted({tag for tag in parser.tags if tag in {"script", "iframe", "object", "img"}}), parser.texts


SEE: dict[str, Callable[[bytes], Seen]] = {
    "comment_md": see_markdown,
    "github_annotations": see_commands,
    "github_summary": see_markdown,
    "gitlab_code_quality": see_json,
    "junit": see_xml,
    "measurements_csv": see_csv,
    "measurements_parquet": see_parquet,
    "metrics_json": see_flat,
    "model_card": see_card,
    "report_html": see_html,
    "sarif": see_json,
}


def test_every_writer_is_seen() -> None:
    assert set(SEE) == set(KINDS)


@cache
def plain(kind: str, folder: Path) -> Seen:
    return SEE[kind](written(kind, folder, PLAIN))


def check_harmless(kind: str, folder: Path, text: str) -> None:
    content = written(kind, folder, text)
    structure, texts = SEE[kind](content)
    expected, _ = plain(kind, folder)
    if text:  # without a name, some lines are left out
        assert structure == expected
    shown = clean(text, 200)
    if len(text) <= 100 and shown.strip():
        together = "\n".join(texts)
        assert " ".join(shown.split()) in " ".join(together.split()), (kind, shown)
    if kind != "measurements_parquet":
        decoded = content.decode("utf-8")
        assert not re.search(
            "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u202a-\u202e\u2066-\u2069\ufffe\uffff]", decoded
        )
    assert b"hf_aaaaaaaaaaaaaaaa" not in content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text(kind: str, text: str, tmp_path: Path) -> None:
    check_harmless(kind, tmp_path, text)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "report_html"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(
        st.characters(codec=None) | st.sampled_from("=+-@|`*_[]()<>&:%#\n\r\\\"'{}!$~,;"), min_size=1, max_size=40
    )
)
def test_any_name_stays_text(kind: str, tmp_path: Path, text: str) -> None:
    check_harmless(kind, tmp_path, text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_run_stays_bounded(kind: str, tmp_path: Path) -> None:
    run = rename_everything("word " * 1_000)
    run = run.model_copy(update={"verdicts": run.verdicts * 80})
    size = load(Writer, kind)().write(run, small().tables, tmp_path).stat().st_size
    most = {"comment_md": 65_536, "github_summary": 1 << 20, "github_annotations": 200_000}
    assert size < most.get(kind, 20_000_000)


# A run that could not be made


TELLS_FAILURES = {"comment_md", "github_annotations", "github_summary", "gitlab_code_quality", "junit", "sarif"}


def failed(text: str) -> Failure:
    """A failure in which every free text is ``text``, with two faults."""
    faults = tuple(Fault(file=text or "x", line=line, message=text) for line in (3, 7))
    return Failure(
        name=text, failure="model_unsupported", message=text, source=text, faults=faults, harness="0",
        at="2026-11-22T08:00:00+00:00",
    )  # fmt: skip


def seen_failure(kind: str, failure: Failure, folder: Path) -> Seen | None:
    """What a reader sees of a run that could not be made; None where the writer has nothing to say of it."""
    path = load(Writer, kind)().write_failure(failure, folder)
    return SEE[kind](path.read_bytes()) if path else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [text for text in HOSTILE if text], ids=range(len(HOSTILE) - 1))
def test_hostile_names_stay_text_where_there_is_no_run(kind: str, text: str, tmp_path: Path) -> None:
    seen, plain_ = (seen_failure(kind, failed(each), tmp_path) for each in (text, PLAIN))
    assert (seen is None, plain_ is None) == (kind not in TELLS_FAILURES,) * 2
    if seen is None or plain_ is None:
        return
    assert seen[0] == plain_[0]
    shown = clean(text, 200)
    if len(text) <= 100 and shown.strip():
        assert " ".join(shown.split()) in " ".join("\n".join(seen[1]).split())


@pytest.mark.parametrize("kind", sorted(TELLS_FAILURES))
def test_why_there_is_no_run_is_said_with_its_class_and_its_places(kind: str, tmp_path: Path) -> None:
    faults = (
        Fault(file="a.yaml", line=3, message="found no such model"),
        Fault(file="g.yaml", line=7, message="found a typo"),
    )
    failure = failed(PLAIN).model_copy(update={"faults": faults})
    seen = seen_failure(kind, failure, tmp_path / "runs" / "x")
    assert seen is not None
    said = "\n".join(seen[1])
    for part in ("found no such model", "found a typo", "a.yaml", "g.yaml", "failure.json"):
        assert part in said, part
    assert "pass" not in said.lower().replace("passes", "")
    if kind != "gitlab_code_quality":
        assert "model_unsupported" in said or kind == "github_annotations"


# Bytes that were looked at


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"report_html", "measurements_parquet"}])
def test_golden_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = small()
    written = load(Writer, kind)().write(made.run, made.tables, tmp_path / "runs" / made.run.name)
    golden = GOLDEN / written.name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(written.read_bytes())
    assert written.read_bytes() == golden.read_bytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if load(Writer, kind).portable])
def test_a_portable_writer_needs_no_more_than_a_run_and_its_tables(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, found = small(), set()
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for variable in ("GITHUB_ACTIONS", "GITLAB_CI", "USER"):
            monkeypatch.setenv(variable, name)
        found.add(load(Writer, kind)().write(made.run, made.tables, tmp_path / name).read_bytes())
    assert len(found) == 1


# Who has only one of them knows what broke and where to look


@pytest.mark.parametrize(
    "kind", ["comment_md", "github_annotations", "github_summary", "gitlab_code_quality", "junit", "sarif"]
)
def test_one_file_alone_says_what_broke_and_where_to_look(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = small()
    path = load(Writer, kind)().write(made.run, made.tables, tmp_path / "runs" / "x")
    said = "\n".join(SEE[kind](path.read_bytes())[1])
    broken = next(each for each in made.run.verdicts if each.status == "fail")
    assert broken.metric in said
    for part in (
        "1.02",
        "[",
        broken.why,
        "beyond the limit",
        "gates/ship.yaml:3",
        "section cause",
        "runs/x/report.html",
        *list_worst(made.run),
    ):
        assert part in said, part
    assert list_worst(made.run)
