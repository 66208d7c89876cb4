"""Mistakes of a file: each with its line and key, and in seconds, however many there are."""

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


DISTILL = """\
name: odd
reference: {model: pocket}
variant:
  compress:
    - backend: distill
      student: {config: STUDENT}
      objectives:
        - {objective: KIND}
        - {objective: logit, alpha: ALPHA}
        - {objective: traces, task: sums, include: [TASKS]}
training: {data: pocket-train, documents: 16, steps: 4}
suites: [smoke]
gates: [smoke]
"""


def write(folder: Path, **words: str) -> Path:
    text, usual = DISTILL, {"STUDENT": "student.json", "KIND": "logit", "ALPHA": "0.5", "TASKS": "tasks"}
    for key, word in (words | {key: word for key, word in usual.items() if key not in words}).items():
        text = text.replace(key, word)
    (folder / "tasks").mkdir()
    (folder / "student.json").write_text("{}")
    path = folder / "variant.yaml"
    path.write_text(text)
    return path


def test_paths_inside_entries_are_relative_to_the_file(tmp_path: Path) -> None:
    (step,) = make_plan(write(tmp_path)).variant.compress
    settings = step.settings()
    assert settings["student"]["config"] == str(tmp_path / "student.json")
    assert settings["objectives"][2]["include"] == [str(tmp_path / "tasks")]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            {"KIND": "logits"},
            "8: variant.compress[0].objectives[0].objective: found 'logits' (text), expected one of 'logit', "
            "'sequence', 'feature', 'preference', 'traces', 'on_policy' (did you mean logit?)",
        ),
        ({"objective: KIND": "alpha: 1"}, "8: variant.compress[0].objectives[0]: found a mapping with 'alpha'"),
        (
            {"ALPHA": "2"},
            "9: variant.compress[0].objectives[1].alpha: found 2 (a number), expected a number of at most",
        ),
        ({"TASKS": "nowhere"}, "10: variant.compress[0].objectives[2].include[0]: found 'nowhere': not found"),
        ({"STUDENT": "nowhere.json"}, "6: variant.compress[0].student.config: found 'nowhere.json': not found"),
    ],
)
def test_mistakes_inside_entries_of_several_kinds_have_their_line(
    words: dict[str, str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(write(tmp_path, **words))
    (line,) = str(caught.value).splitlines()
    assert f"variant.yaml:{problem}" in line
