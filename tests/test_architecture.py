"""The tail stays short: no long file, no long function, no wide signature, no room that outgrows a glance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "harness"
SOURCES = sorted(HARNESS.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS, MOST_FILES = 400, 60, 10, 21
STAGES = frozenset(
    {
        "__init__",
        "__main__",
        "check",
        "cli",
        "errors",
        "judge",
        "plan",
        "plugins",
        "progress",
        "run",
        "terminal",
        "write",
    }
)
"""Modules that stand beside the rooms: the stages of the flow, and what every room needs."""
NOT_MIRRORED = frozenset({"bench", "contracts", "endtoend", "fuzz", "golden", "helpers"})
"""Folders of tests that are about no single room."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def parameters(function: Function) -> int:
    return len(function.args.posonlyargs) + len(function.args.args) + len(function.args.kwonlyargs)


def too_long(path: Path) -> list[str]:
    """What of a file is longer or wider than it may be, with its place."""
    lines = path.read_text().count("\n")
    faults = [f"{path}: {lines} lines"] if lines > LONGEST_FILE else []
    for function in functions(path):
        where = f"{path}:{function.lineno} {function.name}"
        if length(function) > LONGEST_FUNCTION:
            faults.append(f"{where}: {length(function)} lines")
        if parameters(function) > MOST_PARAMETERS:
            faults.append(f"{where}: {parameters(function)} parameters")
    return faults


def test_files_functions_and_signatures_stay_short() -> None:
    assert [fault for path in SOURCES for fault in too_long(path)] == []


def test_functions_of_tests_stay_short() -> None:
    long = [
        f"{relative(path)} {each.name}" for path in TESTS for each in functions(path) if length(each) > LONGEST_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("\n" * 401, "401 lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f: 61 lines"),
        (f"def f({', '.join(f'p{n}' for n in range(11))}): ...\n", "f: 11 parameters"),
    ],
)
def test_what_is_too_long_is_named(tmp_path: Path, source: str, fault: str) -> None:
    path = tmp_path / "long.py"
    path.write_text(source)
    (found,) = too_long(path)
    assert found.endswith(fault)


def test_only_the_stages_of_the_flow_stand_beside_the_rooms() -> None:
    assert {path.stem for path in HARNESS.glob("*.py")} <= STAGES


def test_no_room_outgrows_a_glance() -> None:
    folders = {path.parent for path in SOURCES} - {HARNESS}
    counts = {relative(folder): len(list(folder.glob("*.py"))) for folder in sorted(folders)}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_tests_mirror_the_rooms() -> None:
    rooms = {folder.relative_to(HARNESS).as_posix() for folder in {path.parent for path in SOURCES} - {HARNESS}}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in TESTS} - {"."}
    assert {folder for folder in folders if folder.partition("/")[0] not in NOT_MIRRORED} <= rooms


def test_every_module_says_what_it_is() -> None:
    assert [relative(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []
