"""Warns of suites about the embedded model's world where another model is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.data.task_files import read_task_files
from harness.planning.specs import Plan, SuiteSpec
from harness.pocket import MODEL_DIR
from harness.records import Note
from harness.system.resources import POCKET_SPLITS, folder

TOKENIZER = "tokenizer.json"


def note_other_world(plan: Plan) -> tuple[Note, ...]:
    """One warning for each suite whose texts or tasks are those of the embedded model, if the reference reads others.

    A reference with the embedded model's tokenizer file is a copy of it, or was trained on its world.
    """
    if plan.reference.model == "pocket" or _has_its_tokenizer(Path(plan.reference.model)):
        return ()
    return tuple(
        Note(topic="another world", text=_explain(suite, about, plan.reference.model), level="warn")
        for suite in plan.suites
        if (about := list(_about_pocket(suite)))
    )


def _explain(suite: SuiteSpec, about: list[str], model: str) -> str:
    return (
        f"the suite {suite.name} is about the small world of the embedded model ({', '.join(about)}), and the "
        f"reference is {Path(model).name}: it shows little of what that model is used for. Measure on your own texts: "
        "documents: {data: my-texts.jsonl} and suites: [texts]; harness init --documents writes both"
    )


def _about_pocket(suite: SuiteSpec) -> Iterator[str]:
    """The bundled documents and tasks that a suite measures on."""
    if suite.documents is not None and suite.documents.data in POCKET_SPLITS:
        yield f"documents {suite.documents.data}"
    named = [task.name for measure in suite.measures for task in measure.task_sizes()]
    bundled = read_task_files([folder("suites") / "tasks"]).declared if named else {}
    if theirs := [name for name in named if name in bundled]:
        yield f"{len(theirs)} task{'s' * (len(theirs) > 1)} such as {theirs[0]}"


def _has_its_tokenizer(model: Path) -> bool:
    try:
        return (model / TOKENIZER).read_bytes() == (MODEL_DIR / TOKENIZER).read_bytes()
    except OSError:
        return False
