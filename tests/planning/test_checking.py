"""Checking a file costs seconds, however many mistakes it holds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.plan import make_plan
from harness.planning.checking import MOST_PROBLEMS

START = "name: odd\nreference: {model: pocket}\nvariant:\n  compress:\n    - {backend: round_to_nearest, bits: 8}\n"
END = "suites: [smoke]\ngates: [smoke]\n"
MISTAKES = {
    "keys": START + END + "".join(f"key{number}: a value that nobody asked for\n" for number in range(20_000)),
    "steps": START + "    - {backend: nosuch, bits: 8}\n" * 20_000 + END,
    "suites": START + "gates: [smoke]\nsuites:\n" + "".join(f"  - no-such-suite-{n}\n" for n in range(30_000)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_large_file_of_mistakes_is_refused_in_seconds(name: str, tmp_path: Path) -> None:
    path = tmp_path / "variant.yaml"
    path.write_text(MISTAKES[name])
    begun = time.process_time()
    with pytest.raises(PlanError) as caught:
        make_plan(path)
    assert time.process_time() - begun < 10
    assert len(caught.value.problems) == MOST_PROBLEMS + 1
    assert f"{MOST_PROBLEMS} mistakes so far" in str(caught.value)


def test_few_mistakes_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "variant.yaml"
    path.write_text(START + END + "".join(f"key{number}: 1\n" for number in range(MOST_PROBLEMS - 1)))
    with pytest.raises(PlanError) as caught:
        make_plan(path)
    assert len(caught.value.problems) == MOST_PROBLEMS - 1
