"""The user's own documents and tasks, which a variant file names and suites made for them take over.

A suite with ``documents: {data: own}`` measures on the texts of the variant file (``documents:``); a suite that leaves
tasks out (``without: [tasks]``) scores those of the variant file (``tasks:``), if it names any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.measures import Measure
from harness.planning.checking import Checker
from harness.planning.data.readable import check_readable
from harness.planning.locating import find_data
from harness.planning.task_paths import check_tasks, name_tasks
from harness.records import DocumentsSpec
from harness.records.plan import OWN
from harness.system.yaml_values import describe

if TYPE_CHECKING:
    from harness.planning.suite_file import Suite

TASKS = "tasks"
"""The measure of tasks, and the key of the variant file that names the user's own."""
DOCUMENTS = "documents"
"""The key of the variant file that names the user's own texts."""


@dataclass(frozen=True)
class OwnData:
    """What a variant file names. documents: settings that take the place of the suite's, with an absolute path."""

    documents: Mapping[str, Any] | None = None
    tasks: Measure | None = None


def read_own_data(check: Checker, content: Mapping[str, Any]) -> OwnData:
    """The documents and tasks of a variant file. Notes problems."""
    documents = tasks = None
    if content.get(DOCUMENTS) is not None:
        documents = _read_documents(check, content[DOCUMENTS])
    if content.get(TASKS) is not None:
        tasks = _read_tasks(check, content[TASKS])
    return OwnData(documents, tasks)


def check_taken(check: Checker, content: Mapping[str, Any], suites: Sequence[Suite | None]) -> None:
    """Note own data that no suite takes, and suites that need own texts where none are named."""
    known = [suite for suite in suites if suite]
    if len(known) < len(suites) or not known:
        return
    names = " and ".join(suite.name for suite in known)
    for suite in known:
        if suite.documents is not None and suite.documents.data == OWN and content.get(DOCUMENTS) is None:
            found = f"the suite {suite.name}, which measures on your own texts, and no documents"
            expected = "documents: {data: my-texts.jsonl} in this file"
            check.problem(("suites",), found, expected, "harness init --documents my-texts.jsonl writes such a file")
    if content.get(DOCUMENTS) is not None and not any(suite.takes_documents for suite in known):
        found = f"documents, but {names} has its own" if len(known) == 1 else f"documents, but {names} have their own"
        check.problem((DOCUMENTS,), found, "a suite with documents: {data: own}", "write suites: [texts]")
    if content.get(TASKS) is not None and not any(suite.takes_tasks for suite in known):
        found = f"tasks, but {names} takes none from here"
        expected = f"a suite that leaves them out (without: [{TASKS}])"
        check.problem((TASKS,), found, expected, "write suites: [texts], or name the tasks in your own suite")


def _read_documents(check: Checker, value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping) or "data" not in value:
        check.record(DocumentsSpec, value, (DOCUMENTS,))
        return None
    data = find_data(check, value["data"], (DOCUMENTS, "data"))
    spec = check.record(DocumentsSpec, {**value, "data": OWN}, (DOCUMENTS,))
    if data is None or spec is None:
        return None
    check_readable(check, spec.model_copy(update={"data": data}), DOCUMENTS)
    return {**value, "data": data}


def _read_tasks(check: Checker, value: Any) -> Measure | None:
    """The measure of tasks, from a list of them or from its settings."""
    if not isinstance(value, tuple | Mapping) or not value:
        check.problem((TASKS,), describe(value), "a list of lm-eval tasks, by name or by the path of a .yaml file")
        return None
    settings, before = value if isinstance(value, Mapping) else {TASKS: value}, len(check.problems)
    settings = name_tasks(check, settings, (TASKS,))
    if len(check.problems) > before:
        return None
    measure = check.plugin(Measure, {"bos": "auto", **settings, "measure": TASKS}, (TASKS,))
    if measure is not None:
        check_tasks(check, measure)
    return measure
