"""Variants that are trained: the texts, the step, and what of both is recorded, observed and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.backends import Compressed
from harness.backends._common.training import TrainingBackend
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, DataError
from harness.measures.training import Training as TrainingMeasure
from harness.models.identity import weights_sha256
from harness.models.loaded import LoadedModel
from harness.planning.specs import Plan, VariantSpec
from harness.pocket import MODEL_DIR
from harness.probes import Context
from harness.probes.training import Training as TrainingProbe
from harness.records import Measurement, ModelSpec, Skipped, TrainingSpec
from harness.records.training import HELD_OUT, HELD_OUT_KL
from harness.report.summaries.suite_tables import SuiteTables
from harness.report.summaries.training import read_trainings
from harness.running.training import prepare_training, read_training, with_training
from harness.running.variant import make_variant
from harness.tables.store import Store, StoreReader
from tests.helpers.pass_pairs import Silent
from tests.helpers.trainings import follow_teacher

SPEC = TrainingSpec(data="pocket-train", documents=8, held_out=4, tokens=32, steps=3)


class Recover(TrainingBackend):
    """Trains every weight towards the reference, as the guide shows it."""

    kind = "recover"

    def train(self, model: Any, tokenizer: Any, training: Any) -> Compressed:
        from harness.training.fitting import fit
        from harness.training.loop import Task, Trainable

        dtype, model = model.dtype, model.float()
        trainable = {name: Trainable(each) for name, each in model.named_parameters()}
        fit(Task(self.kind, model, trainable, follow_teacher, depends_on=self.settings()), self, training)
        return Compressed(model.to(dtype))


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    from harness.models.loading import load

    return load(ModelSpec(model=str(MODEL_DIR)), "pocket")


def plan_of(*steps: Any, spec: TrainingSpec = SPEC) -> Plan:
    return Plan.model_construct(
        name="student",
        source="",
        reference=ModelSpec(model=str(MODEL_DIR)),
        variant=VariantSpec(compress=steps),
        training=spec,
        calibration=None,
        suites=(),
        gates=(),
    )


def make(reference: LoadedModel, folder: Path, *steps: Any) -> LoadedModel:
    plan, data = plan_of(*steps), read_training(SPEC, reference)
    training = prepare_training(plan, data, reference, folder)
    assert training is not None
    return with_training(make_variant(plan, reference, (), training), data, training.fits)


def test_steps_train_in_order_and_compose(reference: LoadedModel, tmp_path: Path) -> None:
    before = weights_sha256(reference.model)
    trained = make(reference, tmp_path, Recover(batch=4, learning_rate=1e-3, evaluations=1))
    rounded = make(reference, tmp_path, Recover(batch=4, learning_rate=1e-3, evaluations=1), RoundToNearest(bits=4))
    assert weights_sha256(reference.model) == before
    assert trained.identity.weights_sha256 not in (before, rounded.identity.weights_sha256)
    assert rounded.training is not None
    assert rounded.training.fits[0].cached
    assert {each.format.bits for each in rounded.identity.modules if each.backend} == {4}
    assert trained.identity.training is not None
    assert (trained.identity.training.documents, trained.identity.training.held_out) == (8, 4)


def test_a_step_that_trains_needs_texts(reference: LoadedModel) -> None:
    with pytest.raises(BackendError, match="recover: needs texts to train on; add a training: section"):
        make_variant(plan_of(Recover()), reference, ())


def test_texts_and_held_out_ones_are_apart(reference: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"Anna likes honey best, said {name}."}) + "\n" for name in "ABCDE"))
    spec = TrainingSpec(data=str(path), documents=3, held_out=2, tokens=32, steps=1)
    data = read_training(spec, reference)
    assert [document.id for document in data.documents] == ["texts-1", "texts-2", "texts-3"]
    assert [document.id for document in data.held_out] == ["texts-4", "texts-5"]
    more = read_training(spec.model_copy(update={"documents": 4}), reference)
    assert [document.id for document in more.held_out] == ["texts-4", "texts-5"]
    assert "6 documents were requested, 5 are available" in more.notes[0].text
    with pytest.raises(DataError, match=r"training: 5 documents .* of which held_out takes 5"):
        read_training(spec.model_copy(update={"held_out": 5}), reference)
    with pytest.raises(DataError, match=r"training: .*cannot be read"):
        read_training(spec.model_copy(update={"data": str(tmp_path / "none.jsonl")}), reference)


def observed(variant: LoadedModel, folder: Path, documents: Any) -> pd.DataFrame:
    with Store(folder / "tables", "key") as store:
        TrainingProbe().observe(Context(variant, [variant], [store.sink("s")], Silent(), documents=documents))
        found = store.sink("s").read("training")
    assert found is not None
    return found


def test_curves_memory_and_overlap_are_observed_measured_and_shown(reference: LoadedModel, tmp_path: Path) -> None:
    variant = make(reference, tmp_path, Recover(batch=4, learning_rate=1e-3, evaluations=3))
    assert variant.training is not None
    other = read_training(SPEC.model_copy(update={"data": "pocket-heldout"}), reference).documents
    table = observed(variant, tmp_path, (*variant.training.data.documents[:2], *other[:1]))
    found = {each.name: each for each in TrainingMeasure().measure(table) if isinstance(each, Measurement)}
    overlap = found["training.overlap"]
    assert overlap.change is not None
    assert overlap.change >= 2 / 3
    (fit,) = variant.training.fits
    first, last = fit.first(HELD_OUT), fit.last(HELD_OUT)
    assert first is not None
    assert last is not None
    assert found["training.held_out_loss"].change == last - first
    assert found["training.held_out_kl"].change == fit.last(HELD_OUT_KL)
    assert found["training.memory"].change == sum(each.measured for each in fit.memory)
    (shown,) = read_trainings([SuiteTables("s", StoreReader(tmp_path / "tables"))])
    assert shown.name == "recover"
    assert (shown.numbers["steps"], shown.at(HELD_OUT)) == (3, last)
    assert [step for step, _ in shown.curves[HELD_OUT]] == [0, 1, 2, 3]
    assert "loss by step" in shown.draw_losses()
    drawn = shown.draw_divergence()
    assert drawn is not None
    assert drawn.count("<circle") == 4
    assert {part for part, _, _ in shown.memory} >= {"optimizer states", "activations", "reference"}


def test_a_variant_that_was_not_trained_has_no_training_metrics(reference: LoadedModel, tmp_path: Path) -> None:
    table = observed(reference, tmp_path, ())
    (skipped,) = TrainingMeasure().measure(table)
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "no step of the variant was trained"


def test_a_training_that_did_not_help_is_said(reference: LoadedModel, tmp_path: Path) -> None:
    step = Recover(batch=4, learning_rate=0.5, schedule="constant", evaluations=1, clip=None)
    notes = [note.text for note in make(reference, tmp_path, step).notes if note.topic == "training"]
    assert any("raised the held-out loss" in text for text in notes)


def test_of_a_text_with_a_prompt_the_rest_alone_is_learned(reference: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"Sums:\n{n}+{n}=", "text": str(2 * n)} for n in range(10, 22)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrainingSpec(data=str(path), prompt_field="prompt", documents=8, held_out=4, tokens=32, steps=1)
    data = read_training(spec, reference)
    plan = plan_of(Recover(), spec=spec)
    training = prepare_training(plan, data, reference, tmp_path)
    assert training is not None
    tokenizer: Any = reference.tokenizer
    for examples, some in zip(training.examples(), (rows[:8], rows[8:]), strict=True):
        learned = [tokenizer.decode(each.ids[each.scored_from :]).strip() for each in examples]
        assert learned == [row["text"] for row in some]
    whole = read_training(spec.model_copy(update={"prompt_field": None}), reference)
    plain = prepare_training(plan, whole, reference, tmp_path)
    assert plain is not None
    assert {each.scored_from for each in plain.examples()[0]} == {1}


def test_a_prompt_that_leaves_nothing_to_learn_is_left_out_and_said(reference: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"Sums:\n{n}+{n}=" * (1 + 9 * (n == 12)), "text": str(2 * n)} for n in range(10, 20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TrainingSpec(data=str(path), prompt_field="prompt", documents=8, held_out=2, tokens=32, steps=1)
    data = read_training(spec, reference)
    assert len(data.documents) == 7
    assert len(data.prompts) == 9
    assert any("1 of 10 prompts fill all 32 tokens and leave nothing to learn" in note.text for note in data.notes)
