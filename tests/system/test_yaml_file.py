"""Strict YAML: what values become, where they are, and everything that is refused."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import PlanError, Problem
from harness.system.yaml_file import MAX_BYTES, YamlFile, parse_yaml, read_description, read_yaml
from harness.system.yaml_values import describe, format_path


def good(text: str) -> YamlFile:
    problems: list[Problem] = []
    parsed = parse_yaml(text.encode(), "f.yaml", problems)
    assert not problems
    assert parsed is not None
    return parsed


def bad(text: str | bytes) -> list[Problem]:
    problems: list[Problem] = []
    parse_yaml(text if isinstance(text, bytes) else text.encode(), "f.yaml", problems)
    assert problems
    assert all(problem.file == "f.yaml" for problem in problems)
    return problems


def only(text: str | bytes) -> Problem:
    problems = bad(text)
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e-2", 0.01),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("+3", 3),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-11-22", "2026-11-22"),
        ("1e", "1e"),
        ("0b1", "0b1"),
        ("nan", "nan"),
        ('"1e-2"', "1e-2"),
        ("'true'", "true"),
        ('""', ""),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = good(f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_sequences_are_tuples_at_every_depth() -> None:
    assert good("a: [1, [2, []], {b: [3]}]").data == {"a": (1, (2, ()), {"b": (3,)})}
    assert good("- 1\n- [2]\n").data == (1, (2,))


def test_every_value_knows_its_line() -> None:
    rules = "rules:\n  - rule: a\n    limit:\n      0.5\n  - {rule: b,\n     limit: 1}\n"
    parsed = good("# comment\nname: x\n" + rules)
    assert parsed.line(("name",)) == 2
    assert parsed.line(("rules",)) == 3
    assert parsed.line(("rules", 0)) == 4
    assert parsed.line(("rules", 0, "limit")) == 5  # the line of the key, where a reader looks
    assert parsed.line(("rules", 1)) == 7
    assert parsed.line(("rules", 1, "limit")) == 8
    assert parsed.line(("rules", 1, "missing", "deeper")) == 7
    assert parsed.line(()) == 2


def test_duplicate_key_names_both_lines() -> None:
    problem = only("rules:\n- margin: 0.02\n  why: x\n  margin: 100\n")
    assert problem.line == 4
    assert problem.key == "rules[0].margin"
    assert "line 2" in problem.found
    assert only('a: 1\n"a": 2\n').line == 2


@pytest.mark.parametrize(
    ("text", "line", "fragment"),
    [
        ("a: &x 1\n", 1, "anchor &x"),
        ("b: 1\na: *x\n", 2, "alias *x"),
        ("b: 1\n<<: {c: 2}\n", 2, "merge key"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "!!python/object/apply:os.system"),
        ("a: !!str 1\n", 1, "!!str"),
        ("a: !include other.yaml\n", 1, "!include"),
        ("a: ! x\n", 1, "tag !"),
        ("a: 1\nb: .nan\n", 2, ".nan"),
        ("a: -.inf\n", 1, "-.inf"),
        ("a: 1e999\n", 1, "1e999"),
        (f"a: {'9' * 5000}\n", 1, "999"),
        ("a: 9007199254740993\n", 1, "9007199254740993"),
        ("1: x\n", 1, "1 (a number)"),
        ("a: 1\ntrue: x\n", 2, "truth value"),
        ("~: x\n", 1, "nothing"),
        ("? [a, {b: c}]\n: 1\n", 1, "a list or a mapping"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("%YAML 1.1\n---\na: 1\n", 1, "% directive"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, "% directive"),
        ('a: "\\0"\n', 1, "U+0000"),
        ('a: "\\e[31m"\n', 1, "U+001B"),
        ('a: "\\uD800"\n', 1, "U+D800"),
        ('a: "\\uFEFF"\n', 1, "U+FEFF"),
        ("a: 1\nb: [1, 2\n", 3, "broken YAML"),
        ("a: 1\nb: 'open\n", 3, "line 2"),
        ("a: b: c\n", 1, "broken YAML"),
        ('a: "\\UFFFFFFFF"\n', 1, "broken YAML"),
        ("a:\n\t- b\n", 2, "broken YAML"),
        ("", 1, "empty"),
        ("# nothing here\n\n", 1, "empty"),
    ],
)
def test_refused_with_its_line(text: str, line: int, fragment: str) -> None:
    problem = only(text)
    assert problem.line == line
    assert fragment in str(problem)


@pytest.mark.parametrize(
    ("content", "line", "fragment"),
    [
        (b"\xef\xbb\xbfa: 1", 1, "byte order mark"),
        ("a: 1\nb: \u00e9".encode("latin-1"), 2, "0xe9"),
        ("a: 1".encode("utf-16"), 1, "not UTF-8"),
        (b"a: 1\nb: \x00", 2, "U+0000"),
        (b"\x7fELF\x02\x01\x01", 1, "U+007F"),
        (b"a: 1\r\nb: \xed\xa0\x80", 2, "not UTF-8"),
        ("a: x\u2028y".encode(), 1, "U+2028"),
        (b"a: " + b"x" * MAX_BYTES, None, "1 MB"),
    ],
)
def test_bytes_that_are_no_text(content: bytes, line: int | None, fragment: str) -> None:
    problem = only(content)
    assert problem.line == line
    assert fragment in str(problem)


def test_all_mistakes_are_named_and_the_content_stays_usable() -> None:
    problems: list[Problem] = []
    parsed = parse_yaml(b"a: .nan\nb: !x 1\na: 2\nc: [*q]\nd: &r 5\nname: kept\n", "f.yaml", problems)
    assert [problem.line for problem in problems] == [1, 2, 3, 4, 5]
    assert parsed is not None
    assert parsed.data["name"] == "kept"


@pytest.mark.parametrize("opening", ["[", "{", "{a: ", "- ", "? ", "[? "])
def test_deep_nesting_is_refused_without_recursion(opening: str) -> None:
    assert "deeper than 32" in bad(opening * 5000)[-1].found


def test_thirty_two_levels_are_enough_and_allowed() -> None:
    tree: object = good("[" * 32 + "]" * 32).data
    for _ in range(31):
        assert isinstance(tree, tuple)
        (tree,) = tree
    assert tree == ()


def test_alias_bomb_is_refused_at_its_first_anchor_and_expands_nothing() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    problems = bad(bomb)
    assert "anchor &a" in problems[0].found
    assert len(problems) <= 51


def test_one_mistake_on_every_line_stops_early() -> None:
    problems = bad("a: 1\n" * 100_000)
    assert len(problems) == 51
    assert "rest was not read" in problems[-1].expected


def test_missing_files_folders_and_nul_names(tmp_path: Path) -> None:
    for path, fragment in [
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "not a file"),
        (Path("a\0b.yaml"), "no such file"),
        (tmp_path / ("x" * 300), "no such file"),
    ]:
        problems: list[Problem] = []
        assert read_yaml(path, problems) is None
        assert fragment in problems[0].found


def test_reading_uses_the_shown_name(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: .inf")
    problems: list[Problem] = []
    read_yaml(path, problems, "gates/x.yaml")
    assert str(problems[0]).startswith("gates/x.yaml:1: a: found .inf")


def test_description(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# why\ndescription: a quick look\nrules: []\n")
    assert read_description(path) == "a quick look"
    path.write_text("a: 1\n")
    assert read_description(path) == ""
    path.write_text("a: [1\n")
    with pytest.raises(PlanError, match=r"x\.yaml:2: found broken YAML"):
        read_description(path)


def test_values_in_words() -> None:
    assert describe("1e-2") == "'1e-2' (text)"
    assert describe("x" * 100).endswith("…' (text)")
    assert describe(True) == "true (a truth value)"
    assert describe({"a": 1}) == "a mapping with 'a'"
    assert format_path(("rules", 0, "margin")) == "rules[0].margin"


@given(st.text(max_size=200) | st.text("[]{}:,-?&*!|>'\"%#\n a0.e", max_size=60))
def test_any_text_loads_or_is_refused(text: str) -> None:
    problems: list[Problem] = []
    parsed = parse_yaml(text.encode("utf-8", "surrogatepass"), "f.yaml", problems)
    if not problems:
        assert parsed is not None
        json.dumps(parsed.data, allow_nan=False).encode()


@given(st.binary(max_size=100))
def test_any_bytes_load_or_are_refused(content: bytes) -> None:
    problems: list[Problem] = []
    assert parse_yaml(content, "f.yaml", problems) is not None or problems


_NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10)
_KEYS = st.from_regex("[a-z]{1,5}", fullmatch=True)
_TREES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner),
    max_leaves=20,
)


def _tuples(tree: object) -> object:
    if isinstance(tree, list):
        return tuple(_tuples(each) for each in tree)
    return {key: _tuples(each) for key, each in tree.items()} if isinstance(tree, dict) else tree


@given(_TREES)
def test_json_is_yaml_and_comes_back_unchanged(tree: object) -> None:
    """An independent writer (json) and this reader agree."""
    parsed = good(json.dumps(tree))
    assert parsed.data == _tuples(tree)
    assert not isinstance(parsed.data, float) or math.isfinite(parsed.data)


def _plain_numbers(tree: object) -> bool:
    """Whether some text is a number to YAML 1.2 (0E0), but not to PyYAML's YAML 1.1, which writes it without quotes."""
    if isinstance(tree, str):
        return bool(re.fullmatch(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|0o[0-7]+", tree))
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return any(_plain_numbers(each) for each in inner)


@given(_TREES.filter(lambda tree: not _plain_numbers(tree)))
def test_block_style_of_pyyaml_comes_back_unchanged(tree: object) -> None:
    written = yaml.safe_dump(tree, default_flow_style=False)
    if "..." not in written:  # PyYAML ends top-level scalars with a document end marker
        assert good(written).data == _tuples(tree)


def _calls_to_read(line: str, lines: int) -> int:
    """How many functions are called while so many lines are read: a cost that no machine and no load changes."""
    content = "".join(line.format(number) for number in range(lines)).encode()
    problems: list[Problem] = []
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        parse_yaml(content, "f.yaml", problems)
    finally:
        sys.setprofile(None)
    assert not problems
    return calls


@pytest.mark.parametrize("line", ["key{}: some value\n", "- {{x: {}, y: [1, 2, 3]}}\n"], ids=["keys", "lists"])
def test_the_cost_of_reading_grows_with_the_length_of_the_file(line: str) -> None:
    assert _calls_to_read(line, 2_000) < 2.2 * _calls_to_read(line, 1_000)
