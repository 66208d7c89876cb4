"""Loads the tasks of lm-eval by name or file, and says what is wrong with one that cannot be loaded.

Imports lm-eval only when it loads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from harness.data.task_files import TaskFiles
from harness.errors import DataError, HarnessError
from harness.system.foreign import guard

_CAUSES: dict[type[Exception], str] = {
    IndexError: "the label of the first document lies outside its choices, or no document is left to score",
    KeyError: "the rows of the data have no such field; check the task file and the functions that it names",
    UndefinedError: "the rows of the data have no such field; check the task file and the functions that it names",
    StopIteration: "a data file is empty; a task needs at least one document",
}
"""What it means when lm-eval raises these without a message of use."""


class TaskLibrary:
    """lm-eval's task managers: for the task folders and files, and for lm-eval's own tasks once one is requested.

    What it reads of local data files is deleted with it.
    """

    def __init__(self, files: TaskFiles) -> None:
        from lm_eval.tasks import TaskManager

        self._files = files
        self._folders = [str(folder) for folder in files.folders]
        self._complete = False
        self._cache = tempfile.TemporaryDirectory(prefix="harness-datasets-")
        self._opened: dict[str, list[Any]] = {}
        self.manager = TaskManager(include_path=self._folders, include_defaults=False)

    def open(self, name: str) -> list[Any]:
        """Load the task objects of ``name`` (a group has several), in order, and keep them. Raises DataError."""
        self._opened[name] = self._load(name)
        return self._opened[name]

    def take(self, name: str) -> list[Any]:
        """The task objects that ``open`` kept, or new ones: running a task changes its object. Raises DataError."""
        return self._opened.pop(name, None) or self._load(name)

    def keep(self, name: str, tasks: list[Any]) -> None:
        """Keep task objects that were taken and not run."""
        self._opened[name] = tasks

    def _load(self, name: str) -> list[Any]:
        from harness.scoring.guards import isolate_random_states, reload_local_data, silence

        path = self._files.find(name)
        alone = path in self._files.places
        if not alone and not self._complete and self._leads_outside(name):
            self._add_standard_tasks()
        if not alone and name not in self.manager.task_index:
            raise self._files.explain_unknown(name, list(self.manager.task_index))
        hint = "a data set of the hub must be in the local cache before a run without network: load it once"
        with (
            raise_data_errors(f"task {name} could not be loaded", hint),
            guard(f"loading task {name}"),
            isolate_random_states(),
            silence(),
            reload_local_data(Path(self._cache.name), path.parent if path else None),
        ):
            loaded = self.manager.load([str(path) if alone else name])
        return list(loaded["tasks"].values())

    def _leads_outside(self, name: str) -> bool:
        """Whether the task folders lack ``name``, or a member if it is a group."""
        entry = self.manager.task_index.get(name)
        if entry is None:
            return True
        members = (entry.cfg or {}).get("task")
        names = [m.get("task") if isinstance(m, dict) else m for m in members] if isinstance(members, list) else []
        return any(self._leads_outside(member) for member in names if isinstance(member, str))

    def _add_standard_tasks(self) -> None:
        """Index lm-eval's own tasks too; this takes seconds, so only for a name that no folder declares."""
        from lm_eval.tasks import TaskManager

        from harness.scoring.guards import silence

        with silence():
            self.manager = TaskManager(include_path=self._folders, include_defaults=True)
        self._complete = True


@contextmanager
def raise_data_errors(what: str, hint: str) -> Iterator[None]:
    """Name the task in any error: lm-eval and functions in task files may raise anything."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        hint = _CAUSES.get(type(error), hint)
        raise DataError(f"{what}: {type(error).__name__}: {text}; {hint}") from error
