"""Training questions of lm-eval tasks, and the task's own judgement of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from harness.data.task_files import read_task_files
from harness.errors import DataError
from harness.scoring.task_library import TaskLibrary
from harness.training.questions import Question, Questions

_ALLOWED = 256
"""Tokens of an answer where the task says nothing, as in lm-eval."""


def read_questions(name: str, include: Sequence[str], most: int) -> Questions:
    """The first ``most`` training questions of the task ``name``; its validation questions if it has no others.

    include: folders with task files, or such files. Raises DataError for a task that is not found, that does not
    generate answers or does not judge each by itself, and for one that has questions to be judged on alone.
    """
    from harness.system.resources import folder as shipped_folder

    library = TaskLibrary(read_task_files([*map(Path, include), shipped_folder("suites") / "tasks"]))
    tasks = library.take(name)
    if len(tasks) != 1:
        raise DataError(f"traces: {name} is a group of {len(tasks)} tasks, expected one task")
    return _read(name, tasks[0], most)


def _read(name: str, task: Any, most: int) -> Questions:
    if task.OUTPUT_TYPE != "generate_until":
        raise DataError(
            f"traces: the task {name} has output_type {task.OUTPUT_TYPE} and no checker of written answers, expected "
            "generate_until"
        )
    split, documents = _training_documents(name, task)
    questions = []
    settings: dict[str, Any] = {}
    for document in islice(documents, most):
        prompt = task.fewshot_context(document, 0)
        request = task.construct_requests(document, prompt, doc_id=0, repeats=1)
        settings = request.args[1] if len(request.args) > 1 else {}
        questions.append(Question(prompt, _make_checker(name, task, document, request)))
    if not questions:
        raise DataError(f"traces: the task {name} has no question in its split {split}")
    until = settings.get("until", [])
    ends = (until,) if isinstance(until, str) else tuple(until)
    return Questions(name, split, tuple(questions), ends, int(settings.get("max_gen_toks", _ALLOWED)))


def _training_documents(name: str, task: Any) -> tuple[str, Any]:
    """The name and documents of the split from which a model may learn."""
    if task.has_training_docs():
        return str(task.config.training_split), task.training_docs()
    if task.has_validation_docs() and task.has_test_docs():
        return str(task.config.validation_split), task.validation_docs()
    raise DataError(
        f"traces: the task {name} has no training_split, and the questions of its other splits judge models; give it "
        "one in its file, with questions of their own"
    )


def _make_checker(name: str, task: Any, document: Any, request: Any) -> Callable[[str], bool]:
    """Whether the task's first filter and its metrics count an answer as entirely right."""

    def accepts(answer: str) -> bool:
        request.resps = [answer]
        request.filtered_resps = {}
        task._instances = [request]
        task.apply_filters()
        filtered = next(iter(request.filtered_resps.values()))
        found = task.process_results(document, filtered if isinstance(filtered, list) else [filtered])
        better = task.higher_is_better()
        judged = [value for metric, value in found.items() if better.get(metric)]
        if not judged or not all(isinstance(value, int | float) for value in judged):
            raise DataError(f"traces: the task {name} judges no answer by itself (found {sorted(found)})")
        return all(float(value) == 1.0 for value in judged)

    return accepts
