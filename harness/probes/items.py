"""The probe ``items``: runs lm-eval tasks on both sides and pairs them item by item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.encoding import follow_bos
from harness.data.task_files import files_sha256, read_task_files
from harness.errors import DataError
from harness.probes import Context, Probe
from harness.records import Note
from harness.records.plan import TaskSettings
from harness.scoring.task_library import TaskLibrary, raise_data_errors
from harness.system.foreign import guard
from harness.system.resources import folder as shipped_folder

if TYPE_CHECKING:
    import pandas as pd

    from harness.probes._samples import TaskResults
    from harness.probes._scorer import Scorer
    from harness.progress import Progress
    from harness.scoring.item_stages import Stages
    from harness.tables.access import Sink

FIRST = 20
"""Documents whose prompts are made before a model is loaded."""


class Items(TaskSettings, Probe):
    """Runs lm-eval tasks on both sides and records every item: score, answer, log-likelihoods of the choices.

    Tasks, prompts and scores are lm-eval's own, on the loaded models, the reference once for all variants. What the
    requests of a task share is computed once (packed rows), for both sides alike; where that could change an answer,
    both are scored as lm-eval does it, one sequence per row, and the table ``scoring`` says why. Items are
    paired on task, document, prompt and target; an item without a partner is an error. With ``items`` those of each
    task are drawn in a random order, stage by stage, until its rules are decided. With ``bos`` prompts must begin with
    BOS if the tokenizer has one. Only the task's own decoding settings are used. For rolling tasks BOS is context and
    is not scored.
    """

    runs = "alone"
    reads = "nothing"

    def inputs(self) -> str:
        """Hash of the task files and local data files, which are not documents of a suite."""
        return files_sha256(self._folders())

    def prepare(self, progress: Progress) -> None:
        """Load every task and look at its first documents. Raises DataError for tasks that cannot be found or read."""
        library = self._open()
        for number, name in enumerate(self.tasks):
            progress.step("open tasks", number, len(self.tasks))
            for task in library.open(name):
                self._look_at_documents(task)
        progress.step("open tasks", len(self.tasks), len(self.tasks))
        _OPENED[self] = library

    def _look_at_documents(self, task: Any) -> None:
        from harness.probes._samples import check_labels
        from harness.scoring.guards import isolate_random_states, reuse_templates, silence

        what = f"task {task.config.task} cannot read its documents"
        with (
            raise_data_errors(what, "check the task file"),
            guard(what),
            isolate_random_states(),
            silence(),
            reuse_templates(),
        ):
            stages = self._plan(task)
            with stages.restrict(0) if stages else nullcontext():
                check_labels(task, self.limit)
                for document in itertools.islice(task.eval_docs, FIRST):
                    task.doc_to_text(document)

    def _plan(self, task: Any) -> Stages | None:
        """The stages of a task; None if its items are not drawn, so that it is one unit."""
        from harness.scoring.item_stages import plan_stages

        return plan_stages(task, self.items) if self.items else None

    def observe(self, context: Context) -> None:
        """Commit one unit per task and stage. Raises DataError for tasks that cannot be found, loaded, run or paired.

        A variant takes no further stage of a task once ``context.items`` says that it needs none.
        """
        if not self.items and all(sink.done(_unit(name)) for sink in context.sinks for name in self.tasks):
            return
        from harness.scoring.guards import reuse_templates

        progress, library = context.progress, self._open()
        sides = _Sides(context, self)
        with reuse_templates():
            for number, name in enumerate(self.tasks):
                progress.step("tasks", number, len(self.tasks))
                if self.items or not all(sink.done(_unit(name)) for sink in context.sinks):
                    tasks = library.take(name)
                    scored = [self._observe_task(task, library.manager, sides) for task in tasks]
                    if not any(scored):
                        library.keep(name, tasks)
                        _OPENED[self] = library
        progress.step("tasks", len(self.tasks), len(self.tasks))

    def _open(self) -> TaskLibrary:
        return _OPENED.pop(self, None) or TaskLibrary(read_task_files(self._folders()))

    def _observe_task(self, task: Any, manager: Any, sides: _Sides) -> bool:
        """Commit what is missing of a task; returns whether anything was."""
        name, stages, context = task.config.task, self._plan(task), sides.context
        undecided, scored = list(range(len(context.sinks))), False
        for stage, unit in enumerate(_units(name, stages)):
            waiting = [variant for variant in undecided if not context.sinks[variant].done(unit)]
            if waiting:
                scored = True
                with stages.restrict(stage) if stages else nullcontext():
                    for variant, frames in self._score(task, manager, sides, waiting):
                        rows = _place(frames, stages, stage) if stages else frames
                        context.sinks[variant].commit(unit, rows)
            if stages and context.items:
                undecided = [variant for variant in undecided if context.items.goes_on(variant, name, stage)]
        return scored

    def _score(
        self, task: Any, manager: Any, sides: _Sides, waiting: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, pd.DataFrame]]]:
        """The rows of each of these variants on the documents that the task shows, by table."""
        import pandas as pd

        from harness.probes._samples import list_questions, pair_rows

        name, progress = task.config.task, sides.context.progress
        what, count = f"task {name}", len(waiting) + 1
        progress.step(what, 0, count)
        scorers = sides.scorers
        wanted = self._evaluate_side(task, manager, scorers[0], "")
        references = {bool(wanted.plain): wanted}
        progress.step(what, 1, count)
        for done, variant in enumerate(waiting, start=2):
            found = self._evaluate_side(task, manager, scorers[variant + 1], wanted.plain)
            plain = bool(found.plain)
            if plain not in references:
                references[plain] = self._evaluate_side(task, manager, scorers[0], found.plain)
            side = "" if not plain else "reference" if wanted.plain else "variant"
            yield (
                variant,
                {
                    "items": pair_rows(name, task.OUTPUT_TYPE, references[plain], found),
                    "item_texts": list_questions(name, wanted),
                    "scoring": pd.DataFrame([{"task": name, "plain": found.plain, "side": side}]),
                },
            )
            progress.step(what, done, count)

    def _evaluate_side(self, task: Any, manager: Any, scorer: Scorer, plain: str) -> TaskResults:
        from harness.probes._samples import check_labels, read_side
        from harness.probes._scorer import evaluate

        name = task.config.task
        hint = f"check the task file or, if memory ran out, set batch_size lower than {self.batch_size}"
        what = f"task {name} could not be run on {scorer.name}"
        with raise_data_errors(what, hint), guard(f"task {name} on {scorer.name}"):
            check_labels(task, self.limit)
            results = evaluate(scorer, task, manager, self.limit, self.fewshot, plain)
        shots = results["n-shot"][name]
        if self.fewshot is not None and shots != self.fewshot:
            raise DataError(
                f"task {name}: fewshot: {self.fewshot} has no effect, as its task file fixes num_fewshot: "
                f"{shots}; leave fewshot out or change the task file"
            )
        if scorer.longest > scorer.own_max_length:
            raise DataError(
                f"task {name}: a prompt has {scorer.longest} tokens, but {scorer.name} reads "
                f"{scorer.own_max_length} at most, fewer than the reference; choose tasks with shorter prompts"
            )
        documents = len(task.eval_docs)
        return read_side(
            task,
            results["samples"][name],
            results["higher_is_better"][name],
            requested=documents if self.limit is None else min(self.limit, documents),
            non_finite=scorer.non_finite,
            cut=scorer.cut,
            begins_with_bos=scorer.begins_with_bos,
            plain=scorer.plain,
        )

    def notes(self, sink: Sink) -> Sequence[Note]:
        """The tasks that were scored one sequence per row, counted, by reason."""
        scoring = sink.read("scoring")
        if scoring is None:
            return ()
        scoring = scoring.sort_values("plain", kind="stable", ascending=False).drop_duplicates("task").sort_index()
        rows = scoring[scoring["plain"] != ""]
        found = []
        for (reason, side), tasks in rows.groupby(["plain", "side"], sort=False)["task"]:
            text = (
                f"{len(tasks)} of {len(scoring)} tasks were scored one sequence per row on both sides, as lm-eval does "
                f"it, which takes longer ({', '.join(tasks)}): {reason} (on the {side}'s side)"
            )
            found.append(Note(topic="tasks", text=text))
        return found

    def _folders(self) -> list[Path]:
        shipped = shipped_folder("suites") / "tasks"
        return [*(Path(path) for path in self.include), *([shipped] if shipped.is_dir() else [])]


_OPENED: dict[Items, TaskLibrary] = {}
"""Tasks that a probe has opened and not yet run."""


def _unit(task: str) -> str:
    return f"items:{task}"


def _place(frames: Mapping[str, pd.DataFrame], stages: Stages, stage: int) -> dict[str, pd.DataFrame]:
    """The tables of a stage of a task, with places in its data; the first stage says in which order these are drawn."""
    placed = {name: stages.number_items(frame, stage) for name, frame in frames.items() if "doc_id" in frame.columns}
    placed["items"] = stages.label_items(placed["items"])
    return {**frames, **placed, **({"item_order": stages.to_table()} if stage == 0 else {})}


def _units(task: str, stages: Stages | None) -> list[str]:
    """The units of a task in order: one, or one for each stage."""
    return [f"{_unit(task)}/{stage}" for stage in range(len(stages.sizes))] if stages else [_unit(task)]


@dataclass
class _Sides:
    """The sides of a context, as scorers that are made once a unit needs them."""

    context: Context
    probe: Items

    @cached_property
    def scorers(self) -> list[Scorer]:
        """That of the reference, then that of every variant."""
        from harness.probes._scorer import Scorer
        from harness.scoring.guards import silence

        context, probe = self.context, self.probe
        with silence():
            bos = follow_bos(probe.bos, context.reference.tokenizer)
            scorers = [Scorer(each, probe.batch_size, bos) for each in (context.reference, *context.variants)]
        for scorer in scorers:
            scorer.share_context_of(scorers[0])
        return scorers
