"""The probe ``items``: runs lm-eval tasks on both sides and pairs them item by item."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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
    from harness.probes._samples import TaskResults
    from harness.probes._scorer import Scorer
    from harness.progress import Progress
    from harness.tables.access import Sink

FIRST = 20
"""Documents whose prompts are made before a model is loaded."""


class Items(TaskSettings, Probe):
    """Runs lm-eval tasks on both sides and records every item: score, answer, log-likelihoods of the choices.

    Tasks, prompts and scores are lm-eval's own, on the loaded models, the reference once for all variants. What the
    requests of a task share is computed once (packed rows), for both sides alike; where that could change an answer,
    both are scored as lm-eval does it, one sequence per row, and the table ``scoring`` says why. Items are
    paired on task, document, prompt and target; an item without a partner is an error. With ``bos`` prompts must begin
    with BOS if the tokenizer has one. Only the task's own decoding settings are used. For rolling tasks BOS is context
    and is not scored.
    """

    runs = "alone"
    reads = "nothing"

    def inputs(self) -> str:
        """Hash of the task files and local data files, which are not documents of a suite."""
        return files_sha256(self._folders())

    def prepare(self, progress: Progress) -> None:
        """Load every task and look at its first documents. Raises DataError for tasks that cannot be found or read."""
        library = TaskLibrary(read_task_files(self._folders()))
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
            check_labels(task, self.limit)
            for document in itertools.islice(task.eval_docs, FIRST):
                task.doc_to_text(document)

    def observe(self, context: Context) -> None:
        """Commit one unit per task. Raises DataError for tasks that cannot be found, loaded, run or paired."""
        if all(sink.done(_unit(name)) for sink in context.sinks for name in self.tasks):
            return
        from harness.probes._scorer import Scorer
        from harness.scoring.guards import reuse_templates, silence

        sinks, progress = context.sinks, context.progress
        with silence():
            bos = follow_bos(self.bos, context.reference.tokenizer)
            scorers = [Scorer(each, self.batch_size, bos) for each in (context.reference, *context.variants)]
        for scorer in scorers:
            scorer.share_context_of(scorers[0])
        library = _OPENED.pop(self, None) or TaskLibrary(read_task_files(self._folders()))
        with reuse_templates():
            for number, name in enumerate(self.tasks):
                progress.step("tasks", number, len(self.tasks))
                if not all(sink.done(_unit(name)) for sink in sinks):
                    for task in library.take(name):
                        self._observe_task(task, library.manager, scorers, sinks, progress)
        progress.step("tasks", len(self.tasks), len(self.tasks))

    def _observe_task(
        self, task: Any, manager: Any, scorers: Sequence[Scorer], sinks: Sequence[Sink], progress: Progress
    ) -> None:
        import pandas as pd

        from harness.probes._samples import list_questions, pair_rows

        name = task.config.task
        waiting = [(s, sink) for s, sink in zip(scorers[1:], sinks, strict=True) if not sink.done(_unit(name))]
        if not waiting:
            return
        what, sides = f"task {name}", len(waiting) + 1
        progress.step(what, 0, sides)
        wanted = self._evaluate_side(task, manager, scorers[0], "")
        references = {bool(wanted.plain): wanted}
        progress.step(what, 1, sides)
        for number, (scorer, sink) in enumerate(waiting, start=2):
            found = self._evaluate_side(task, manager, scorer, wanted.plain)
            plain = bool(found.plain)
            if plain not in references:
                references[plain] = self._evaluate_side(task, manager, scorers[0], found.plain)
            side = "" if not plain else "reference" if wanted.plain else "variant"
            frames = {
                "items": pair_rows(name, task.OUTPUT_TYPE, references[plain], found),
                "item_texts": list_questions(name, wanted),
                "scoring": pd.DataFrame([{"task": name, "plain": found.plain, "side": side}]),
            }
            sink.commit(_unit(name), frames)
            progress.step(what, number, sides)

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
