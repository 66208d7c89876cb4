"""The probe ``items``: runs lm-eval tasks on both sides and pairs them item by item."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.encoding import follow_bos
from harness.data.task_files import files_sha256, read_task_files
from harness.errors import DataError
from harness.probes import Context, Probe, Rounds, name_unit
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

        Beyond the first stage of every task a variant takes only those that ``context.items`` asks for.
        """
        from harness.scoring.guards import reuse_templates

        sinks, everyone = context.sinks, range(len(context.sinks))
        names = [name for name in self.tasks if self.items or not all(sink.done(name_unit(name)) for sink in sinks)]
        if not names:
            return
        library, sides = self._open(), _Sides(context, self)
        with reuse_templates():
            opened = {name: library.take(name) for name in names}
            listed = [_Drawn(task, self._plan(task)) for tasks in opened.values() for task in tasks]
            drawn = {each.name: each for each in listed}
            for number, each in enumerate(listed):
                context.progress.step("tasks", number, len(listed))
                for stage in range(1 if context.items else len(each.units)):
                    self._observe_stage(each, stage, library.manager, sides, everyone)
            context.progress.step("tasks", len(listed), len(listed))
            for (name, stage), waiting in _follow(context.items or ()):
                self._observe_stage(drawn[name], stage, library.manager, sides, waiting)
        # Running a task changes its object, so only the others can be taken again.
        for name, tasks in opened.items():
            if not any(drawn[task.config.task].scored for task in tasks):
                library.keep(name, tasks)
                _OPENED[self] = library

    def _open(self) -> TaskLibrary:
        return _OPENED.pop(self, None) or TaskLibrary(read_task_files(self._folders()))

    def _observe_stage(self, drawn: _Drawn, stage: int, manager: Any, sides: _Sides, variants: Iterable[int]) -> None:
        """Commit a stage of a task for those variants that lack it."""
        sinks, unit = sides.context.sinks, drawn.units[stage]
        if waiting := [variant for variant in variants if not sinks[variant].done(unit)]:
            drawn.scored = True
            with drawn.stages.restrict(stage) if drawn.stages else nullcontext():
                for variant, frames in self._score(drawn, stage, manager, sides, waiting):
                    sinks[variant].commit(unit, _place(frames, drawn.stages, stage) if drawn.stages else frames)

    def _score(
        self, drawn: _Drawn, stage: int, manager: Any, sides: _Sides, waiting: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, pd.DataFrame]]]:
        """The rows of each of these variants on the documents that the task shows, by table."""
        import pandas as pd

        from harness.probes._samples import list_questions, pair_rows

        task, progress = drawn.task, sides.context.progress
        name, scorers = drawn.name, sides.scorers
        what, count = f"task {name}", len(waiting) + 1
        progress.step(what, 0, count)
        # Several variants may ask for a stage at different times; the reference is scored once.
        references = drawn.references.setdefault(stage, {}) if len(scorers) > 2 else {}
        if not references:
            found = self._evaluate_side(task, manager, scorers[0], "")
            references[bool(found.plain)] = found
        wanted = next(iter(references.values()))
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


def _place(frames: Mapping[str, pd.DataFrame], stages: Stages, stage: int) -> dict[str, pd.DataFrame]:
    """The tables of a stage of a task, with places in its data; the first stage says in which order these are drawn."""
    placed = {name: stages.number_items(frame, stage) for name, frame in frames.items() if "doc_id" in frame.columns}
    placed["items"] = stages.label_items(placed["items"])
    return {**frames, **placed, **({"item_order": stages.to_table()} if stage == 0 else {})}


def _follow(rounds: Sequence[Rounds]) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """Each task and stage that some variants need next, with these; all of a round are committed before the next."""
    going = {variant: iter(each) for variant, each in enumerate(rounds)}
    while going:
        wanted: dict[tuple[str, int], list[int]] = {}
        for variant, each in list(going.items()):
            stages = next(each, None)
            if stages is None:
                del going[variant]
            for stage in stages or ():
                wanted.setdefault(stage, []).append(variant)
        yield from wanted.items()


@dataclass
class _Drawn:
    """A task with the stages in which its items are drawn; None if they are not, so that it is one unit.

    references: results of the reference by stage and by whether it was scored one sequence per row, the first as it
    would be by itself. scored: whether anything was.
    """

    task: Any
    stages: Stages | None
    references: dict[int, dict[bool, TaskResults]] = field(default_factory=dict)
    scored: bool = False

    @property
    def name(self) -> str:
        """The name of the task."""
        return str(self.task.config.task)

    @property
    def units(self) -> list[str]:
        """The units in order: one, or one for each stage."""
        stages = range(len(self.stages.sizes)) if self.stages else (None,)
        return [name_unit(self.name, stage) for stage in stages]


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
