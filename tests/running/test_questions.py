"""Training questions of tasks: what is asked, what ends an answer, and which answers the task counts as right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import DataError
from harness.running.questions import read_questions

SUMS: dict[str, Any] = {
    "task": "sums",
    "dataset_path": "json",
    "output_type": "generate_until",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "Sum: {{ask}} =",
    "doc_to_target": "{{right}}",
    "generation_kwargs": {"until": ["\n", "."], "do_sample": False, "max_gen_toks": 7},
    "filter_list": [
        {"name": "last", "filter": [{"function": "regex", "regex_pattern": r"(\d+)\s*$"}, {"function": "take_first"}]},
        {"name": "any", "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def write(folder: Path, **changes: Any) -> Path:
    for split, first in (("train", 0), ("test", 50)):
        rows = [{"ask": f"{number} + 1", "right": str(number + 1)} for number in range(first, first + 5)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}}
    content = {key: value for key, value in {**SUMS, "dataset_kwargs": files, **changes}.items() if value is not None}
    (folder / "sums.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_questions_are_those_of_the_training_split(tmp_path: Path) -> None:
    found = read_questions("sums", [str(write(tmp_path))], 3)
    assert [each.prompt for each in found.questions] == ["Sum: 0 + 1 =", "Sum: 1 + 1 =", "Sum: 2 + 1 ="]
    assert (found.split, found.until, found.new_tokens) == ("train", ("\n", "."), 7)


def test_the_first_filter_and_the_metric_decide(tmp_path: Path) -> None:
    first, second = read_questions("sums", [str(write(tmp_path))], 2).questions
    assert first.accepts(" 1")
    assert first.accepts(" 0 and 1 are 1")
    assert not first.accepts(" 1 or 2")
    assert not first.accepts("")
    assert second.accepts("2")
    assert not second.accepts("1")


def test_an_answer_ends_where_the_task_says(tmp_path: Path) -> None:
    found = read_questions("sums", [str(write(tmp_path))], 1)
    assert found.cut(" 4. And\nmore") == " 4"
    assert found.cut(" 4") == " 4"
    assert found.is_complete(" 4\n")
    assert not found.is_complete(" 4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output_type": "multiple_choice", "doc_to_choice": ["1", "2"], "doc_to_target": 0}, "no checker of written"),
        ({"training_split": None}, "no training_split, and the questions of its other splits judge models"),
    ],
)
def test_tasks_that_cannot_teach_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_questions("sums", [str(write(tmp_path, **changes))], 3)


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no task is called 'summs'; did you mean sums"):
        read_questions("summs", [str(write(tmp_path))], 3)
