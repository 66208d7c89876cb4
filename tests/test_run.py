"""Several variants in one run: what belongs to one is not taken from, or given to, another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.backends.round_to_nearest import RoundToNearest
from harness.concluding.conclusion import conclude
from harness.concluding.pair import Observed, Pair
from harness.errors import DataError, HarnessError, ModelError, TableError
from harness.forecast.passes import group_plans
from harness.measures import Measure
from harness.measures.artifact import Artifact
from harness.measures.divergence import Divergence
from harness.measures.generation import Generation
from harness.measures.hardware import Hardware
from harness.measures.latency import Latency
from harness.measures.layer_error import LayerError
from harness.measures.memory import Memory
from harness.measures.perplexity import Perplexity
from harness.plan import load_suite
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.pocket import MODEL_DIR
from harness.probes import Context
from harness.probes.artifact import Artifact as ArtifactProbe
from harness.probes.generations import Generations
from harness.probes.layers import Layers
from harness.probes.timings import Timings
from harness.probes.tokens import Tokens
from harness.probes.weights import Weights
from harness.records import DocumentsSpec, Measurement, ModelSpec, NoiseFloorSpec, Served
from harness.records.plan import SERVED
from harness.rules.at_most import AtMost
from harness.run import run_group
from tests.helpers.results import number
from tests.helpers.students import SENTENCES, byte_tokenizer, make_model
from tests.helpers.tiny_models import VOCABULARY, save, tiny_llama

RULE = RuleSpec(rule=AtMost(metric="memory.weight_bytes", limit=1e9, why="any size"), where="gate.yaml:1")


def make_plan(name: str, reference: Path, target: str | None = None, **variant: Any) -> Plan:
    measures = (Memory(), Hardware(target=target))
    return Plan(
        name=name,
        source=f"{name}.yaml",
        reference=ModelSpec(model=str(reference)),
        variant=VariantSpec(**variant),
        target=target,
        suites=(SuiteSpec(name="suite", source="suite.yaml", measures=measures, probes=(Weights(),)),),
        gates=(GateSpec(name="gate", source="gate.yaml", rules=(RULE,)),),
    )


class Progress:
    """A progress that appends to a file as soon as the weights are looked at."""

    def __init__(self, victim: Path | None = None) -> None:
        self.victim = victim

    def step(self, what: str, done: int, of: int) -> None:
        if what == "weights" and self.victim is not None:
            with self.victim.open("a") as stream:
                stream.write("\n")
            self.victim = None


def run(plans: list[Plan], folder: Path, victim: Path | None = None) -> list[Observed | HarnessError]:
    return run_group(plans, [folder / "runs" / plan.name for plan in plans], Progress(victim))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("reference", "own"):
        save(tiny_llama(), tmp_path / name)
    return tmp_path


def test_a_variant_whose_files_change_during_the_run_fails_alone(models: Path) -> None:
    plans = [
        make_plan("own", models / "reference", model=str(models / "own")),
        make_plan("rounded", models / "reference", compress=(RoundToNearest(bits=4),)),
    ]
    changed, whole = run(plans, models, victim=models / "own" / "config.json")
    assert isinstance(changed, ModelError)
    assert str(models / "own" / "config.json") in str(changed)
    assert isinstance(whole, Observed)
    assert {entry.name for entry in whole.measurements} >= {"memory.weight_bytes", "memory.bits_per_weight"}


def test_a_reference_whose_files_change_during_the_run_fails_every_variant(models: Path) -> None:
    plans = [make_plan("rounded", models / "reference", compress=(RoundToNearest(bits=4),))]
    with pytest.raises(ModelError, match=r"config\.json"):
        run(plans, models, victim=models / "reference" / "config.json")


def test_variants_for_different_targets_share_a_pass_and_are_each_measured_for_their_own(models: Path) -> None:
    step = (RoundToNearest(bits=3, group_size=64),)
    plans = [make_plan(name, models / "reference", name, compress=step) for name in ("apple", "arm")]
    plans.append(make_plan("none", models / "reference", compress=step))
    assert group_plans(plans) == [plans]
    apple, arm, none = run(plans, models)
    assert isinstance(apple, Observed)
    assert isinstance(arm, Observed)
    assert isinstance(none, Observed)
    assert supported(apple) == [1.0]
    assert supported(arm) == [0.0]
    assert supported(none) == []
    assert any("target: cuda-9.0" in entry.reason for entry in none.skipped)
    assert [note.level for note in apple.notes if note.topic == "hardware"] == ["info"]
    (said,) = [note for note in arm.notes if note.topic == "hardware"]
    assert said.level == "warn"
    assert "int3 in groups of 64 has no kernel (14 modules, model.layers.0.self_attn.q_proj first)" in said.text
    assert not [note for note in none.notes if note.topic == "hardware"]


@pytest.mark.parametrize("short", ["reference", "own"])
def test_documents_beyond_the_positions_of_a_model_are_refused_with_what_to_do(models: Path, short: str) -> None:
    """GPT-2 would fail on an index, and a rotary model would be judged where it was never trained."""
    save(tiny_llama(max_position_embeddings=16), models / short)
    text = models / "texts.jsonl"
    text.write_text('{"text": "twenty characters ok"}\n' * 3)
    plan = make_plan("own", models / "reference", model=str(models / "own"))

    def at(context: int) -> Plan:
        documents = DocumentsSpec(data=str(text), context=context)
        return plan.model_copy(update={"suites": (plan.suites[0].model_copy(update={"documents": documents}),)})

    message = r"suite\.yaml: suite suite has documents of up to 21 tokens, expected at most the 16 positions of"
    if short == "reference":
        with pytest.raises(DataError, match=message):
            run([at(32)], models)
    else:
        (refused,) = run([at(32)], models)
        assert isinstance(refused, DataError)
        assert re.search(message, str(refused))
    (whole,) = run([at(16)], models)
    assert isinstance(whole, Observed)


def supported(observed: Observed) -> list[float | None]:
    found = [entry for entry in observed.measurements if isinstance(entry, Measurement)]
    return [entry.variant for entry in found if entry.name == "hardware.supported"]


def two_plans(models: Path) -> list[Plan]:
    """Plans of 4 and 8 bits that share a pass over two texts."""
    (models / "texts.jsonl").write_text('{"text": "some text"}\n{"text": "another one"}\n', encoding="utf-8")
    documents = DocumentsSpec(data=str(models / "texts.jsonl"), context=32)
    plans = []
    for bits in (4, 8):
        plan = make_plan(f"w{bits}", models / "reference", compress=(RoundToNearest(bits=bits),))
        (suite,) = plan.suites
        suite = suite.model_copy(update={"documents": documents, "probes": (Tokens(), *suite.probes)})
        plans.append(plan.model_copy(update={"suites": (suite,)}))
    return plans


def test_a_variant_that_is_observed_again_alone_is_told_nothing_twice(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = two_plans(models)
    observe = Weights.observe

    def alone_only(self: Weights, context: Context) -> None:
        if len(context.variants) > 1:
            raise DataError("one at a time")
        observe(self, context)

    monkeypatch.setattr(Weights, "observe", alone_only)
    for result in run(plans, models):
        assert isinstance(result, Observed)
        assert any(note.topic == "repeat" for note in result.notes)
        assert [note for note in result.notes if result.notes.count(note) > 1] == []


def test_a_variant_that_cannot_be_concluded_leaves_the_others_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = two_plans(models)

    def damaged(pair: Pair) -> None:
        if pair.observed.plan.name == plans[0].name:
            raise TableError("its tables are damaged")
        conclude(pair)

    monkeypatch.setattr("harness.run.conclude", damaged)
    lost, kept = run(plans, models)
    assert str(lost) == "its tables are damaged"
    assert isinstance(kept, Observed)


def test_a_variant_whose_kernels_fail_leaves_the_others_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = two_plans(models)
    compress = RoundToNearest.compress

    def fail(*_: object) -> None:
        raise AssertionError("outputs must be divisible by 32")

    def broken(self: RoundToNearest, model: Any, tokenizer: Any, calibration: Any) -> Any:
        done = compress(self, model, tokenizer, calibration)
        if self.bits == 4:
            done.model.get_decoder().norm.register_forward_hook(fail)
        return done

    monkeypatch.setattr(RoundToNearest, "compress", broken)
    lost, kept = run(plans, models)
    assert isinstance(lost, ModelError)
    assert re.search(r"w4: calling it on \d+ tokens raised AssertionError: outputs must be divisible by 32", str(lost))
    assert isinstance(kept, Observed)


def test_vocabularies_that_differ_by_more_than_padding_leave_token_measures_skipped(models: Path) -> None:
    save(tiny_llama(vocab_size=VOCABULARY - 4), models / "own")
    tokens = models / "own/tokenizer.json"
    content = json.loads(tokens.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {token: number for token, number in vocabulary.items() if number < VOCABULARY - 4}
    tokens.write_text(json.dumps(content), encoding="utf-8")
    text = models / "texts.jsonl"
    text.write_text('{"text": "only words"}\n{"text": "and more of them"}\n', encoding="utf-8")
    plan = make_plan("own", models / "reference", model=str(models / "own"))
    (suite,) = plan.suites
    documents = DocumentsSpec(data=str(text), context=32)
    measures = (Perplexity(), Divergence(), *suite.measures)
    suite = suite.model_copy(update={"documents": documents, "measures": measures, "probes": (Tokens(), *suite.probes)})
    (found,) = run([plan.model_copy(update={"suites": (suite,)})], models)
    assert isinstance(found, Observed)
    skipped = {entry.measure: entry.reason for entry in found.skipped}
    for name in ("perplexity.ratio", "divergence.kl_mean", "perplexity.bits_per_byte"):
        assert "ids that exist on one side only are in use" in skipped[name]
        assert "gate student" in skipped[name]
        assert skipped[name].index("give both sides the same vocabulary") < skipped[name].index("gate student")
    assert any("probability" in note.text and note.level == "warn" for note in found.notes), found.notes


def test_what_a_backend_does_not_serve_is_skipped_with_that_reason(models: Path) -> None:
    """Of two variants in one run, the one whose models cannot; the other is measured as ever."""

    class Deaf(RoundToNearest):
        """Says that its models only give logits."""

        kind = "deaf"
        serves = ()

    (models / "texts.jsonl").write_text('{"text": "only words"}\n{"text": "and more of them"}\n', encoding="utf-8")
    plans = []
    for name, step in (("deaf", Deaf(bits=8)), ("whole", RoundToNearest(bits=8))):
        plan = make_plan(name, models / "reference", compress=(step,))
        (suite,) = plan.suites
        timings, texts = Timings(repeats=1, prompt_tokens=4, new_tokens=2), Generations(new_tokens=4)
        probes = (Tokens(), Layers(), timings, texts, *suite.probes)
        measures = (Perplexity(), LayerError(), Latency(), Generation(), *suite.measures)
        documents = DocumentsSpec(data=str(models / "texts.jsonl"), context=32)
        changes = {"documents": documents, "measures": measures, "probes": probes}
        plans.append(plan.model_copy(update={"suites": (suite.model_copy(update=changes),)}))
    deaf, whole = run(plans, models)
    assert isinstance(deaf, Observed), deaf
    assert isinstance(whole, Observed), whole
    skipped = {entry.measure: entry.reason for entry in deaf.skipped}
    needs: list[tuple[Measure, Served]] = [(LayerError(), "hooks"), (Latency(), "cache"), (Generation(), "generation")]
    for measure, need in needs:
        for metric in measure.produces():
            assert skipped[metric.name] == f"the backend deaf gives no access to {SERVED[need]}"
    assert not any("gives no access" in entry.reason for entry in whole.skipped)
    assert {entry.name for entry in deaf.measurements} < {entry.name for entry in whole.measurements}
    assert {"perplexity.ratio", "memory.weight_bytes"} <= {entry.name for entry in deaf.measurements}


def test_a_student_without_bos_and_with_fewer_positions_is_compared_by_bytes_on_every_slice(models: Path) -> None:
    for name, size, bos, positions in (("reference", 320, True, 96), ("own", 290, False, 24)):
        make_model(size, max_position_embeddings=positions).save_pretrained(models / name)
        byte_tokenizer(size, bos).save_pretrained(models / name)
    text = models / "texts.jsonl"
    labelled = [{"text": each, "language": "one" if index % 2 else "two"} for index, each in enumerate(SENTENCES)]
    text.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    plan = make_plan("own", models / "reference", model=str(models / "own"))
    (suite,) = plan.suites
    measures = (Perplexity(), Divergence(), Artifact(), *suite.measures)
    probes = (ArtifactProbe(), Tokens(), *suite.probes)
    documents = DocumentsSpec(data=str(text), context=64)
    suite = suite.model_copy(update={"documents": documents, "measures": measures, "probes": probes})
    sliced = AtMost(metric="perplexity.bits_per_byte", limit=9.0, of="change", slices="language", why="w")
    gate = plan.gates[0].model_copy(update={"rules": (RuleSpec(rule=sliced, where="gate.yaml:1"),)})
    (found,) = run([plan.model_copy(update={"suites": (suite,), "gates": (gate,)})], models)
    assert isinstance(found, Observed), found
    (bits,) = [entry for entry in found.measurements if entry.name == "perplexity.bits_per_byte"]
    assert bits.clusters == len(SENTENCES)
    assert "bytes that one side cannot score" in bits.method
    assert {entry.measure for entry in found.skipped} >= {"perplexity.ratio", "divergence.kl_mean"}
    by_value = {part.value: [m.name for m in part.measurements] for part in found.slices}
    assert by_value == {"one": ["perplexity.bits_per_byte"], "two": ["perplexity.bits_per_byte"]}


def test_every_variant_gets_the_noise_floor_of_the_reference_and_slices_do_too(models: Path) -> None:
    lines = [f'{{"text": "text number {number}", "kind": "{"ab"[number % 2]}"}}' for number in range(8)]
    (models / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    documents = DocumentsSpec(data=str(models / "texts.jsonl"), context=32)
    sliced = AtMost(metric="divergence.kl_mean", limit=9.0, slices="kind", why="w")
    plans = []
    for bits in (4, 8):
        plan = make_plan(f"w{bits}", models / "reference", compress=(RoundToNearest(bits=bits),))
        (suite,) = plan.suites
        changes = {
            "documents": documents, "measures": (*suite.measures, Divergence()), "probes": (Tokens(), *suite.probes),
            "noise_floor": NoiseFloorSpec(conditions=("batch_size", "rounding"), documents=3),
        }  # fmt: skip
        gate = plan.gates[0].model_copy(update={"rules": (RULE, RuleSpec(rule=sliced, where="gate.yaml:2"))})
        plans.append(plan.model_copy(update={"suites": (suite.model_copy(update=changes),), "gates": (gate,)}))
    found = run(plans, models)
    floors = []
    for observed in found:
        assert isinstance(observed, Observed)
        assert [note.level for note in observed.notes if note.topic == "noise floor"] == ["info"]
        assert observed.seconds["noise floor"] > 0
        by_name = {entry.name: entry for entry in observed.measurements}
        assert by_name["memory.weight_bytes"].floor is None, "no pass sees it"
        kl = by_name["divergence.kl_mean"]
        assert kl.floor is not None
        assert (kl.floor.documents, kl.floor.condition in ("batch_size", "rounding")) == (3, True)
        assert 0 <= kl.floor.value < min(number(kl.change), 1e-6)
        assert {m.floor for part in observed.slices for m in part.measurements} == {kl.floor}
        floors.append({name: entry.floor for name, entry in by_name.items()})
    assert floors[0] == floors[1], "it depends on the reference alone"


TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: ./items.jsonl}}
test_split: test
output_type: multiple_choice
process_docs: !function own.prepare
doc_to_text: "Q: {{question}}"
doc_to_choice: ["no", "yes"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "    return rows.map(lambda row: row['gone'])",
            "mine could not be loaded: KeyError: 'gone'; the rows of the data",
        ),
        (
            "    return rows.rename_column('label', 'answer')",
            "task mine, document 0: found the label 'label', expected",
        ),
        (
            "    return rows.rename_column('question', 'q')",
            "mine could not be loaded: UndefinedError: 'question' is und",
        ),
        (
            "    return rows.map(lambda row, n: {'label': 7 * (n == 5)}, with_indices=True)",
            "task mine, document 5: found the label 7, expected an index from 0 to 1",
        ),
    ],
)
def test_what_functions_of_a_task_make_of_its_rows_fails_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(TASK)
    (tmp_path / "own.py").write_text(f"def prepare(rows):\n{body}\n")
    rows = "\n".join(json.dumps({"question": f"Is {n} odd?", "label": n % 2}) for n in range(8))
    (tmp_path / "items.jsonl").write_text(rows)
    (tmp_path / "suite.yaml").write_text("measures: [{measure: tasks, tasks: [./mine.yaml]}]\n")
    _refuses_before_loading(tmp_path, monkeypatch, said)


def test_an_unknown_task_fails_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suite.yaml").write_text("measures: [{measure: tasks, tasks: [pocket_sumz]}]\n")
    _refuses_before_loading(tmp_path, monkeypatch, r"no task is called 'pocket_sumz'; did you mean pocket_sums\?")


def test_a_data_set_of_the_hub_that_is_not_here_fails_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "{hub: nobody/has-this, split: test}"
    (tmp_path / "suite.yaml").write_text(f"documents: {{data: {data}}}\nmeasures: [divergence]\n")
    _refuses_before_loading(tmp_path, monkeypatch, r"hub dataset nobody/has-this .*cannot be loaded")


def _refuses_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    suite = load_suite("./suite.yaml", folder)
    plan = make_plan("v", MODEL_DIR).model_copy(update={"suites": (suite,)})

    def refuse(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("harness.running.session.load", refuse)
    with pytest.raises(DataError, match=said):
        run_group([plan], [folder / "runs"], Progress())
