"""The faults that must never become a pass and the tests that inject them: none is without one, and none is gone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).parents[1]
ROWS: list[dict[str, Any]] = yaml.safe_load((TESTS / "contracts" / "faults.yaml").read_text(encoding="utf-8"))
OUTCOMES = {"error", "fail", "inconclusive", "resumed", "harmless"}


def test_every_fault_has_its_row_and_every_row_its_outcome() -> None:
    assert [row["row"] for row in ROWS] == list(range(1, 69))
    assert {row["expected"] for row in ROWS} == OUTCOMES
    assert all(row["fault"].strip() for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row {row['row']}")
def test_the_tests_of_a_fault_exist(row: dict[str, Any]) -> None:
    assert row["tests"], f"row {row['row']} has no test: {row['fault']}"
    assert [name for name in row["tests"] if not exists(name)] == []


def test_a_name_that_is_no_test_is_found_out() -> None:
    assert exists("contracts/test_fault_matrix::test_a_name_that_is_no_test_is_found_out")
    for name in ("contracts/test_fault_matrix::exists", "contracts/test_nowhere::test_x", "test_judge::test_x", "x"):
        assert not exists(name)


def exists(name: str) -> bool:
    """Whether pytest would collect a test of this name: FILE::NAME or FILE::CLASS::NAME, below the folder of tests."""
    file, _, test = name.partition("::")
    path = TESTS / f"{file}.py"
    return path.is_file() and test in collected(path)


@cache
def collected(path: Path) -> frozenset[str]:
    """The tests of a file, as its source names them."""
    return frozenset(find_tests(ast.parse(path.read_text(encoding="utf-8")).body))


def find_tests(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from find_tests(node.body, f"{prefix}{node.name}::")
