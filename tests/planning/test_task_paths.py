"""The user's own lm-eval task files are named by path, and their mistakes are mistakes of the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.measures import Measure
from harness.plan import load_suite, make_plan
from tests.planning.test_own_data import VARIANT, planned

TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: ./items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROWS = [{"question": f"Is {n} odd?", "choices": ["no", "yes"], "label": n % 2} for n in range(40)]
WITH_TASK = VARIANT.replace("suites:", "tasks: [./tasks/mine.yaml]\nsuites:")


def write_task(folder: Path, text: str = TASK, rows: str = "\n".join(map(json.dumps, ROWS))) -> Path:
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / "items.jsonl").write_text(rows)
    (folder / "tasks" / "mine.yaml").write_text(text)
    return folder / "tasks" / "mine.yaml"


def mistakes(folder: Path, variant: str = WITH_TASK) -> list[str]:
    with pytest.raises(PlanError) as caught:
        planned(folder, variant)
    return [str(each).replace(f"{folder}/", "") for each in caught.value.problems]


def the_tasks(measures: tuple[Measure, ...]) -> Measure:
    return next(each for each in measures if each.kind == "tasks")


def test_a_path_in_the_variant_file_becomes_the_task_that_the_file_declares(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    for tasks in ("[./tasks/mine.yaml]", "{tasks: [tasks/mine.yaml, pocket_sums], limit: 5}"):
        found = the_tasks(planned(tmp_path, WITH_TASK.replace("[./tasks/mine.yaml]", tasks)).suites[0].measures)
        assert found.settings()["tasks"][0] == "mine"
        assert found.settings()["include"] == [str(path)]
        assert found.task_sizes()[0].metrics == ("accuracy",)


def test_a_path_in_a_suite_is_relative_to_the_suite(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    (tmp_path / "tasks" / "suite.yaml").write_text("measures: [{measure: tasks, tasks: [./mine.yaml]}]\n")
    found = the_tasks(load_suite("tasks/suite.yaml", tmp_path).measures)
    assert (found.settings()["tasks"], found.settings()["include"]) == (["mine"], [str(path)])
    write_task(tmp_path, TASK.replace("question}}", "questoin}}"))
    with pytest.raises(PlanError, match=r"mine\.yaml:6: doc_to_text: found a template that does not render"):
        load_suite("tasks/suite.yaml", tmp_path)


def test_tasks_of_an_included_folder_are_opened_too(tmp_path: Path) -> None:
    write_task(tmp_path, TASK.replace("doc_to_target: label", "doc_to_target: lable"))
    tasks = "{tasks: [mine], include: [./tasks]}"
    assert mistakes(tmp_path, WITH_TASK.replace("[./tasks/mine.yaml]", tasks)) == [
        "tasks/mine.yaml:8: doc_to_target: found 'lable', which is no field of the row; did you mean label? "
        "(row 1 of the data), expected what the rows hold, as lm-eval reads it"
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("task: mine", "task: [", "tasks/mine.yaml:3: found what is no task file (expected ',' or ']'"),
        (TASK, "- task", "tasks/mine.yaml:1: found what is no task file (expected a mapping at the top level)"),
        ("task: mine\n", "", "variant.yaml:5: tasks[0]: found './tasks/mine.yaml', which declares no name (task: …)"),
        ("task: mine", "group: mine", "variant.yaml:5: tasks[0]: found './tasks/mine.yaml', which declares a group"),
        ("dataset_path: json\n", "", "tasks/mine.yaml:1: dataset_path: found no dataset_path, expected json, csv"),
        ("./items.jsonl", "./item.jsonl", "tasks/mine.yaml:3: dataset_kwargs.data_files: found './item.jsonl': no"),
        ("test_split: test", "test_split: tset",
         "tasks/mine.yaml:4: test_split: found 'tset', expected a split that dataset_kwargs.data_files names: test"),
        ("test_split: test\n", "", "tasks/mine.yaml:1: test_split: found no test_split, expected the split that is"),
        ("multiple_choice", "multiplechoice",
         "tasks/mine.yaml:5: output_type: found 'multiplechoice', expected one of generate_until, loglikelihood, "
         "loglikelihood_rolling, multiple_choice (did you mean multiple_choice?)"),
        ("{{question}}", "{{questoin}}",
         "tasks/mine.yaml:6: doc_to_text: found a template that does not render: 'questoin' is undefined; the fields "
         "are question, choices, label (row 1 of the data)"),
        ("{{question}}", "{{question", "tasks/mine.yaml:6: doc_to_text: found a template that is not Jinja: "),
        ("{{question}}", "{{question + 1}}", "doc_to_text: found a template that does not render: TypeError: "),
        ("doc_to_choice: choices", "doc_to_choice: question",
         "tasks/mine.yaml:7: doc_to_choice: found 'Is 0 odd?', which is no list of choices (row 1"),
        ("doc_to_choice: choices", 'doc_to_choice: "{{choices[0]}}"', "doc_to_choice: found 'no', which is no list"),
        ("doc_to_choice: choices", "doc_to_choice: [only]",
         "tasks/mine.yaml:8: doc_to_target: found position 1 of 1 choices, which count from 0 (row 2 of the data)"),
        ("doc_to_target: label", 'doc_to_target: "{{label + 1}}"', "doc_to_target: found position 2 of 2 choices"),
        ("doc_to_target: label", "doc_to_target: question",
         "doc_to_target: found 'Is 0 odd?', which is none of the choices ['no', 'yes'] (row 1"),
        ("doc_to_target: label", "process_docs: !function mod.gone", "process_docs: found !function mod.gone, and no"),
        ("doc_to_target: label", "process_docs: !function own.fixx",
         "tasks/mine.yaml:8: process_docs: found the function fixx, which own.py does not define, expected one that it "
         "defines (did you mean fix?)"),
        ("doc_to_target: label", "process_docs: !function bad.fix", "tasks/bad.py:1: found no Python: "),
        ("task: mine", "include: gone.yaml\ntask: mine", "tasks/mine.yaml:1: include: found 'gone.yaml': no such file"),
        ("task: mine", "include: mine.yaml\ntask: mine", "tasks/mine.yaml:1: include: found 'mine.yaml', which incl"),
    ],
)  # fmt: skip
def test_mistakes_of_a_task_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TASK
    write_task(tmp_path, TASK.replace(old, new))
    (tmp_path / "tasks" / "own.py").write_text("raise SystemExit\ndef fix(docs): ...\n")
    (tmp_path / "tasks" / "bad.py").write_text("def fix(:\n")
    found = mistakes(tmp_path)
    assert any(said in line for line in found), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "found no document in the data files, expected at least one"),
        ('{"question": ', "items.jsonl:1: not JSON"),
        ("7\n", "items.jsonl:1: int, not a JSON object"),
    ],
)
def test_data_that_cannot_be_read(tmp_path: Path, rows: str, said: str) -> None:
    write_task(tmp_path, rows=rows)
    (found,) = mistakes(tmp_path)
    assert found.startswith("tasks/mine.yaml:3: dataset_kwargs.data_files: ")
    assert said in found


def test_a_path_that_does_not_exist_names_the_nearest(tmp_path: Path) -> None:
    write_task(tmp_path)
    assert mistakes(tmp_path, WITH_TASK.replace("mine.yaml", "mien.yaml")) == [
        f"variant.yaml:5: tasks[0]: found './tasks/mien.yaml': no such file ({tmp_path}/tasks/mien.yaml)".replace(
            f"{tmp_path}/", ""
        )
        + ", expected an lm-eval task file (did you mean mine.yaml?)"
    ]


def test_a_mistake_in_an_included_file_is_shown_there(tmp_path: Path) -> None:
    head, tail = TASK.split("output_type", 1)
    write_task(tmp_path, f"{head}include: base.yaml\n")
    (tmp_path / "tasks" / "base.yaml").write_text(f"output_type{tail}".replace("{{question}}", "{{query}}"))
    (found,) = mistakes(tmp_path)
    assert found.startswith("tasks/base.yaml:2: doc_to_text: found a template that does not render: 'query'")


def test_functions_of_a_task_are_not_run(tmp_path: Path) -> None:
    """The rows are what a function makes of them, so templates are left to the run."""
    text = TASK.replace("doc_to_target: label", "doc_to_target: gold\nprocess_docs: !function own.fix")
    write_task(tmp_path, text)
    (tmp_path / "tasks" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef fix(docs): ...\n")
    planned(tmp_path, WITH_TASK)
    write_task(tmp_path, TASK.replace("doc_to_choice: choices", "doc_to_choice: !function own.fix"))
    planned(tmp_path, WITH_TASK)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("json", json.dumps(ROWS)),
        ("csv", "question,choices,label\nIs 1 odd?,x,1\n"),
        ("text", "one line\n"),
    ],
)
def test_other_formats_are_read_as_they_are(tmp_path: Path, kind: str, rows: str) -> None:
    text = TASK.replace("path: json", f"path: {kind}").replace("doc_to_choice: choices", "doc_to_choice: ['no', 'yes']")
    if kind == "text":
        text = text.replace("{{question}}", "{{text}}").replace("doc_to_target: label", "doc_to_target: 0")
    write_task(tmp_path, text, rows)
    planned(tmp_path, WITH_TASK)
    write_task(tmp_path, text.replace("Q: {{", "Q: {{no_"), rows)
    assert "does not render" in mistakes(tmp_path)[0]


def test_plan_prints_the_mistake_and_ends_with_exit_code_2(tmp_path: Path) -> None:
    from tests.endtoend.test_plan_and_lint import said

    write_task(tmp_path, TASK.replace("{{question}}", "{{query}}"))
    with pytest.raises(PlanError):
        planned(tmp_path, WITH_TASK)
    for command in ("plan", "check"):
        code, _, error = said(command, str(tmp_path / "variant.yaml"))
        assert code == 2
        assert "mine.yaml:6: doc_to_text: found" in error
        assert "1 mistake found; nothing was run" in error
    write_task(tmp_path)
    assert make_plan(tmp_path / "variant.yaml").name == "v"
