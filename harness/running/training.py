"""Reads the training texts of a variant, and hands them to the steps that train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.contamination import DocumentIndex
from harness.data.encoding import count_prompt_ids
from harness.data.training import Trained, TrainingDocuments
from harness.errors import DataError
from harness.planning.specs import Plan
from harness.records import Note, TrainingSpec
from harness.records.training import HELD_OUT, Fitted
from harness.running.calibration import encode_fitted, name_source, note_missing
from harness.running.questions import read_questions
from harness.system.environment import describe_environment
from harness.training.data import Training

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FOLDER = "training"
"""Of the states of trainings, in the folder of a run."""


def read_training(spec: TrainingSpec, reference: LoadedModel) -> TrainingDocuments:
    """The texts that ``spec`` names, encoded by the reference's tokenizer: those to train on, and those behind them.

    Raises DataError as ``running.calibration.encode_fitted`` does, and if nothing would be left to train on.
    """
    wanted = spec.documents + spec.held_out
    raw, encoded = encode_fitted("training", spec, wanted, reference)
    prompts = count_prompt_ids(raw, encoded, reference.tokenizer, spec.bos) if spec.prompt_field else [0] * len(encoded)
    learned = [place for place, document in enumerate(encoded) if prompts[place] < len(document.ids)]
    kept = [encoded[place] for place in learned if not encoded[place].skipped]
    if len(kept) <= spec.held_out:
        raise DataError(
            f"training: {len(kept)} documents in {name_source(spec)}, of which held_out takes {spec.held_out}, "
            "expected more; name more documents, or lower held_out"
        )
    texts, held_out = kept[: -spec.held_out], kept[-spec.held_out :]
    notes = note_missing("training", spec, wanted, encoded)
    if filled := len(encoded) - len(learned):
        text = f"{filled} of {len(encoded)} prompts fill all {spec.tokens} tokens and leave nothing to learn: left out"
        notes.append(Note(topic="training", text=f"{text} ({name_source(spec)})", level="warn"))
    if copies := sum(document.duplicate_of is not None for document in held_out):
        text = f"{copies} of {len(held_out)} held-out documents repeat others, so held-out losses are too low"
        notes.append(Note(topic="training", text=f"{text} ({name_source(spec)})", level="warn"))
    seen = DocumentIndex(reference.tokenizer, [document.ids for document in kept])
    before = tuple(prompts[document.index] for document in kept)
    return TrainingDocuments(name_source(spec), tuple(texts), tuple(held_out), before, seen, tuple(notes))


def prepare_training(
    plan: Plan, data: TrainingDocuments | None, reference: LoadedModel, folder: Path
) -> Training | None:
    """What steps that train are given; None without ``data``. folder: of the run."""
    if data is None or plan.training is None:
        return None
    libraries = [library for step in plan.variant.compress for library in step.libraries]
    return Training(
        plan.training,
        data.texts,
        data.held_out_texts,
        reference.model,
        reference.identity.weights_sha256,
        describe_environment(libraries).model_dump(mode="json"),
        folder / FOLDER,
        data.prompts,
        tokenizer=reference.tokenizer,
        ask=read_questions,
    )


def with_training(variant: LoadedModel, data: TrainingDocuments, fits: Sequence[Fitted]) -> LoadedModel:
    """The variant with the texts that it was trained on, and what each training left."""
    identity = variant.identity.model_copy(update={"training": data.record})
    notes = (*variant.notes, *data.notes, *(note for fitted in fits for note in _notes_on(variant.name, fitted)))
    return replace(variant, identity=identity, training=Trained(data, tuple(fits)), notes=notes)


def _notes_on(name: str, fitted: Fitted) -> Iterator[Note]:
    """What the curves of a training do not show at first sight."""
    first, last = fitted.first(HELD_OUT), fitted.last(HELD_OUT)
    if first is not None and last is not None and last > first:
        text = (
            f"{name}: {fitted.step} raised the held-out loss from {first:.4g} to {last:.4g}, so it did not help; "
            "lower learning_rate, or write early_stop: 3 to keep the best step"
        )
        yield Note(topic="training", text=text, level="warn")
    if fitted.part < fitted.batch:
        text = f"{name}: memory ran out, so {fitted.step} took {fitted.part} of {fitted.batch} documents at a time"
        yield Note(topic="training", text=f"{text}, with the gradients of all")
