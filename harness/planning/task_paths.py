"""Checks the user's own lm-eval task files while the plan is made: YAML, data files, templates on the first rows.

A task folder is a program. Its functions (``!function``) are looked for, and never called: what they make of the rows
shows in the run.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.data.task_files import SUFFIXES, FunctionName, content_of, read_task_files
from harness.data.task_rows import list_splits, read_first
from harness.data.task_templates import check_label, render_choices, render_value
from harness.errors import DataError, Problem
from harness.measures import Measure
from harness.planning.checking import Checker
from harness.plugins import nearest
from harness.system.yaml_values import KeyPath

LOCAL = ("json", "csv", "parquet", "text")
OUTPUT_TYPES = ("generate_until", "loglikelihood", "loglikelihood_rolling", "multiple_choice")
TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target")


class _Task:
    """A task file with what it includes. values: by key; origin: the file and line in which each key stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.origin: dict[str, tuple[Path, int]] = {}
        self.problems: list[Problem] = []
        self._read(path, ())

    def _read(self, path: Path, above: tuple[Path, ...]) -> None:
        """Keys of the file itself win over those of the files that it includes, later ones over earlier ones."""
        content, lines = content_of(path), _lines_of(path)
        included = content.pop("include", ())
        for name in included if isinstance(included, list) else [included] if included else ():
            there = Path(os.path.abspath(path.parent / str(name)))
            found = f"{str(name)!r}: no such file ({there})" if not os.path.isfile(there) else ""
            found = f"{name!r}, which includes itself" if there in (path, *above) else found
            if found:
                self.problems.append(Problem(str(path), lines["include"], "include", found, "another task file"))
            else:
                self._read(there, (*above, path))
        self.values |= content
        self.origin |= {key: (path, lines[key]) for key in content}

    def note(self, key: str, found: str, expected: str, hint: str = "", inside: str = "") -> None:
        """Add a mistake of a key, or of the whole file if it lacks the key."""
        file, line = self.origin.get(key, (self.path, 1))
        self.problems.append(Problem(str(file), line, inside or key, found, expected, hint))

    def folder_of(self, key: str) -> Path:
        """The folder of the file in which the key stands."""
        return self.origin[key][0].parent


def name_tasks(check: Checker, value: Any, path: KeyPath) -> Any:
    """The settings of the measure ``tasks``, with the paths of task files replaced by the names that they declare.

    The files join ``include``. Notes problems, and leaves out what has some. path: where the settings stand.
    """
    entries = value.get("tasks") if isinstance(value, Mapping) else None
    if not isinstance(entries, tuple) or not any(_is_path(each) for each in entries):
        return value
    place = (*path, "tasks") if (*path, "tasks") in check.source.lines else path
    names, files = [], []
    for index, entry in enumerate(entries):
        if not _is_path(entry):
            names.append(entry)
            continue
        file = Path(os.path.abspath(check.folder / entry))
        if name := _name_of(check, entry, file, (*place, index)):
            names.append(name)
            files.append(str(file))
    given = value.get("include", ())
    return {**value, "tasks": tuple(names), "include": (*(given if isinstance(given, tuple) else (given,)), *files)}


def check_tasks(check: Checker, measure: Measure) -> None:
    """Note mistakes in the user's own files behind the tasks of a measure; a task of any other place is not opened."""
    places = [Path(each) for each in measure.code_folders()]
    if not places or not all(os.path.exists(place) for place in places):
        return
    files = read_task_files(places)
    for size in measure.task_sizes():
        for path in files.declared.get(size.name, ())[:1]:
            check.problems.extend(find_mistakes(path))


def find_mistakes(path: Path) -> list[Problem]:
    """The mistakes of a task file that show without a model and without running its functions."""
    try:
        task = _Task(path)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        return [_unreadable(path, error)]
    if "class" in task.values or "group" in task.values:
        return task.problems
    _check_functions(task)
    kind = task.values.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        close = nearest(kind, OUTPUT_TYPES) if isinstance(kind, str) else ""
        hint = f"did you mean {close}?" if close else ""
        task.note("output_type", repr(kind), f"one of {', '.join(OUTPUT_TYPES)}", hint)
    split = next((key for key in ("test_split", "validation_split") if task.values.get(key)), "")
    if not split:
        task.note("test_split", "no test_split", "the split that is scored", "write for example test_split: train")
    elif "custom_dataset" not in task.values:
        _check_rows(task, split)
    return task.problems


def _is_path(entry: Any) -> bool:
    return isinstance(entry, str) and entry.endswith(SUFFIXES)


def _name_of(check: Checker, entry: str, file: Path, path: KeyPath) -> str:
    """The name that a task file declares; empty, and a problem, if it declares none."""
    if not os.path.isfile(file):
        beside = [each.name for suffix in SUFFIXES for each in file.parent.glob(f"*{suffix}")]
        close = nearest(file.name, beside)
        hint = f"did you mean {close}?" if close else "paths are relative to the file that names them"
        check.problem(path, f"{entry!r}: no such file ({file})", "an lm-eval task file", hint)
        return ""
    try:
        content = _Task(file).values
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        check.problems.append(_unreadable(file, error))
        return ""
    name = content.get("task")
    if "group" in content or not isinstance(name, str):
        what = "a group" if "group" in content else "no name (task: …)"
        hint = "for a group, name its folder under include: and the group under tasks:" if "group" in content else ""
        check.problem(path, f"{entry!r}, which declares {what}", "a file that declares one task", hint)
        return ""
    return name


def _unreadable(path: Path, error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None)
    reason = " ".join(str(getattr(error, "problem", None) or error).split())
    found = f"what is no task file ({reason})"
    return Problem(str(path), mark.line + 1 if mark else 1, "", found, "an lm-eval task file: keys and values in YAML")


def _lines_of(path: Path) -> dict[str, int]:
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return {str(key.value): key.start_mark.line + 1 for key, _ in root.value} if root is not None else {}


def _check_functions(task: _Task) -> None:
    """Note functions that no Python file beside the task file has."""
    for key, value in task.values.items():
        for name in _functions_in(value):
            module, _, function = name.rpartition(".")
            file = task.folder_of(key) / f"{module.replace('.', '/')}.py"
            if os.path.isfile(file):
                _check_source(task, key, file, function)
            elif not module or importlib.util.find_spec(module.partition(".")[0]) is None:
                task.note(key, f"!function {name}, and no file {file}", "module.function of a Python file beside it")


def _functions_in(value: Any) -> Iterator[str]:
    if isinstance(value, FunctionName):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _functions_in(each)


def _check_source(task: _Task, key: str, file: Path, function: str) -> None:
    try:
        defined = _names_in(ast.parse(file.read_bytes()))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        task.problems.append(
            Problem(str(file), line, "", f"no Python: {getattr(error, 'msg', error)}", "a Python file")
        )
        return
    if function not in defined and "*" not in defined:
        close = nearest(function, sorted(defined))
        hint = f"did you mean {close}?" if close else ""
        task.note(key, f"the function {function}, which {file.name} does not define", "one that it defines", hint)


def _names_in(tree: ast.Module) -> set[str]:
    """The names that a module defines or imports; ``*`` if it imports all of another's."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {(node.asname or node.name) for node in ast.walk(tree) if isinstance(node, ast.alias)}


def _check_rows(task: _Task, split: str) -> None:
    kind, arguments = task.values.get("dataset_path"), task.values.get("dataset_kwargs") or {}
    if kind is None:
        task.note("dataset_path", "no dataset_path", "json, csv, parquet, text, or a data set of the hub")
    if kind not in LOCAL or not isinstance(arguments, Mapping) or "data_dir" in arguments:
        return
    key = "dataset_kwargs"
    try:
        splits = list_splits(arguments, task.path.parent)
        if task.values[split] not in splits:
            task.note(split, repr(task.values[split]), f"a split that {key}.data_files names: {', '.join(splits)}")
            return
        read = [read_first(str(kind), path, arguments) for path in splits[task.values[split]]]
    except DataError as error:
        expected = "a data file that can be read, relative to the task file"
        task.note(key, str(error), expected, inside=f"{key}.data_files")
        return
    if any(rows is None for rows in read):
        return
    rows = [row for found in read if found for row in found]
    if not rows:
        task.note(key, "no document in the data files", "at least one", inside=f"{key}.data_files")
    elif "process_docs" not in task.values:
        _check_templates(task, rows)


def _check_templates(task: _Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Note, once for each key, a template that does not render on one of the rows, and labels outside the choices."""
    for number, row in enumerate(rows, 1):
        key = TEMPLATES[0]
        try:
            for key in TEMPLATES:
                _check_template(task, key, row)
        except DataError as error:
            task.note(key, f"{error} (row {number} of the data)", "what the rows hold, as lm-eval reads it")
            return


def _check_template(task: _Task, key: str, row: Mapping[str, Any]) -> None:
    value, choices = task.values.get(key), task.values.get("doc_to_choice")
    if value is None or isinstance(value, FunctionName):
        return
    choosing = task.values.get("output_type") == "multiple_choice" and not isinstance(choices, FunctionName)
    if key == "doc_to_choice":
        render_choices(value, row)
    elif key == "doc_to_target" and choosing and choices is not None:
        found = render_choices(choices, row)
        if found is not None:
            check_label(value, row, found)
    else:
        render_value(value, row)
