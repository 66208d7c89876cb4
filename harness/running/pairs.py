"""Makes the pair of a variant and the reference, describes it, and identifies it by its data key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.concluding.pair import Pair, PairFacts, Storage, begin, hash_data
from harness.data.calibration import CalibrationDocuments
from harness.data.contamination import WINDOW, DocumentIndex
from harness.data.documents import RawDocument, read_documents, shuffle_documents, texts_sha256
from harness.data.encoding import EncodedDocument, count_duplicates, documents_sha256, encode, name_similar
from harness.data.training import TrainingDocuments
from harness.errors import DataError
from harness.models.coverage.finite import compare_finite, describe_tensors
from harness.models.coverage.same_model import note_same_model
from harness.models.coverage.stated import note_plain_layers, note_quantized_reference
from harness.models.loaded import LoadedModel
from harness.models.prequantized import LIBRARIES
from harness.models.verification.tokenizer_file import verify_texts
from harness.models.vocabulary import explain_mismatch
from harness.numerics.hardware import fit as hardware
from harness.planning.composition import remarks
from harness.planning.specs import Plan, SuiteSpec, VariantSpec
from harness.records import Environment, Identity, Note
from harness.records.plan import SERVED, Served
from harness.running.calibration import read_calibration, with_calibration
from harness.running.opening import note_openings, settle_openings
from harness.running.training import prepare_training, read_training, with_training
from harness.running.variant import make_variant
from harness.system.environment import describe_environment
from harness.system.stopwatch import measure_time

Documents = dict[str, Sequence[EncodedDocument]]
"""Encoded documents by suite name."""
OTHER_IDS = "the documents have other token ids under the variant's tokenizer"
ALTERNATIVES = (
    "tokens cannot be compared; where both sides should have one tokenizer, the variant's tokenizer files are damaged: "
    "repair them. For a variant that is meant to have a tokenizer of its own, bits per byte, tasks, generated texts "
    "and latency can be compared: take a suite and a gate made of those, such as suite student and gate student"
)
"""What can still be compared if tokenizers or vocabularies differ."""


@dataclass(frozen=True)
class Known:
    """Documents that were already read, by their specification."""

    calibration: dict[str, CalibrationDocuments] = field(default_factory=dict)
    training: dict[str, TrainingDocuments] = field(default_factory=dict)


@dataclass(kw_only=True)
class LoadedPair(Pair):
    """A pair of which this process has the variant."""

    variant: LoadedModel


def suite_texts(suite: SuiteSpec) -> Sequence[RawDocument]:
    """The documents of a suite as texts, in sampling order; empty if it has none."""
    spec = suite.documents
    if spec is None:
        return ()
    raw = read_documents(spec.data, spec.max, spec.text_field, spec.split_on, spec.seed)
    return raw if spec.min is None else shuffle_documents(raw, spec.seed)


def encode_suite(suite: SuiteSpec, model: LoadedModel) -> Sequence[EncodedDocument]:
    """The documents as token ids. Raises DataError, and ModelError if the tokenizer is not that of its file."""
    texts = suite_texts(suite)
    verify_texts(model.tokenizer, [document.text for document in texts])
    encoded = _encode(suite, texts, model)
    _check_positions(suite, encoded, model)
    return encoded


def encode_for_variant(suite: SuiteSpec, model: LoadedModel) -> Sequence[EncodedDocument]:
    """The documents encoded for a variant whose token ids differ: with BOS if it has one, cut at its context."""
    spec, positions = suite.documents, model.language_model.positions
    if spec is None:
        return ()
    bos = spec.bos and isinstance(model.tokenizer.bos_token_id, int)
    context = spec.context if positions is None else min(spec.context, positions)
    adapted = spec.model_copy(update={"bos": bos, "context": context})
    return encode(suite_texts(suite), model.tokenizer, adapted, model.language_model.token_ids)


def _encode(suite: SuiteSpec, texts: Sequence[RawDocument], model: LoadedModel) -> Sequence[EncodedDocument]:
    if suite.documents is None:
        return ()
    return encode(texts, model.tokenizer, suite.documents, model.language_model.token_ids)


def _check_positions(suite: SuiteSpec, encoded: Sequence[EncodedDocument], model: LoadedModel) -> None:
    """Raise DataError for documents longer than the model's positions: it would fail, or extrapolate."""
    positions = model.language_model.positions
    longest = max((len(document.ids) for document in encoded if not document.skipped), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"{suite.source}: suite {suite.name} has documents of up to {longest} tokens, expected at most the "
            f"{positions} positions of {model.name}; give a suite with documents: {{context: {positions}}}"
        )


def calibration_of(plan: Plan, reference: LoadedModel, known: Known) -> CalibrationDocuments | None:
    """The calibration documents, encoded once for all variants that name the same; None if no step needs them.

    Raises DataError.
    """
    spec = plan.calibration
    if spec is None or not any(step.calibrates for step in plan.variant.compress):
        return None
    key = spec.model_dump_json()
    if key not in known.calibration:
        known.calibration[key] = read_calibration(spec, reference)
    return known.calibration[key]


def training_of(plan: Plan, reference: LoadedModel, known: Known) -> TrainingDocuments | None:
    """The training texts, encoded once for all variants that name the same; None if no step trains.

    Raises DataError.
    """
    spec = plan.training
    if spec is None or not any(step.trains for step in plan.variant.compress):
        return None
    key = spec.model_dump_json(exclude={"steps", "epochs"})
    if key not in known.training:
        known.training[key] = read_training(spec, reference)
    return known.training[key]


def make_pair(
    asked: Plan,
    folder: Path,
    reference: LoadedModel,
    documents: Documents,
    known: Known,
    seconds: dict[str, float],
    store: Callable[[str], Storage],
    made: LoadedModel | None = None,
) -> LoadedPair:
    """Make the variant of a plan and describe it beside the reference.

    store: opens the place for its tables, by the data key. made: the variant, if another process has made it.
    """
    plan = settle_openings(asked, reference.tokenizer)
    with measure_time(seconds, "make variant"):
        variant = made or _make(plan, folder, reference, known)
    if variant.tokenizer is not reference.tokenizer:
        for suite in plan.suites:
            verify_texts(variant.tokenizer, [document.text for document in suite_texts(suite)])
    hashes = {name: documents_sha256(encoded) for name, encoded in documents.items()}
    reasons = {suite.name: _token_mismatch(suite, reference, variant, hashes[suite.name]) for suite in plan.suites}
    mismatches = {name: reason for name, reason in reasons.items() if reason}
    for suite in plan.suites:
        if suite.name not in mismatches:
            _check_positions(suite, documents[suite.name], variant)
    steps = plan.variant.compress
    libraries = [library for step in steps for library in step.libraries]
    environment = describe_environment([*libraries, *_libraries_of(plan.variant, variant.identity)])
    hashes |= {f"{s.name} as texts": texts_sha256(suite_texts(s)) for s in plan.suites if _reads_texts(s, mismatches)}
    depends = describe_data(plan, reference.identity, variant.identity, environment, hashes)
    failing, finite_notes = compare_finite(reference, variant)
    notes = [*_list_notes(plan, reference, variant, documents, mismatches), *finite_notes]
    notes += note_openings(asked, reference.tokenizer)
    withheld = _find_withheld(plan)
    facts = PairFacts(
        reference=reference.identity,
        variant=variant.identity,
        environment=environment,
        data_key=hash_data(depends),
        depends={part: hash_data(content) for part, content in depends.items()},
        vocabulary=reference.language_model.vocabulary,
        token_mismatches=mismatches,
        unsupported={
            probe.kind: withheld[need]
            for suite in plan.suites
            for probe in suite.probes
            for need in probe.needs
            if need in withheld
        },
        hidden_weights=withheld.get("weights", "") if variant.language_model.modules is None else "",
        notes=tuple(notes),
        non_finite=f"{variant.name}: {describe_tensors(failing)}, and not so in the reference" if failing else "",
    )
    tables = store(facts.data_key)
    return LoadedPair(facts=facts, store=tables, observed=begin(plan, facts, tables, seconds), variant=variant)


def _list_notes(
    plan: Plan, reference: LoadedModel, variant: LoadedModel, documents: Documents, mismatches: Mapping[str, str]
) -> list[Note]:
    """What is to be said of a pair before anything is measured."""
    notes = [*reference.notes, *variant.notes, *_document_notes(plan.suites, documents)]
    notes += remarks(plan.variant.compress, plan.calibration is not None, plan.training is not None)
    notes += _contamination_notes(variant, documents)
    if plan.target is not None:
        notes += hardware.notes(plan.target, variant.identity)
    notes += [*note_quantized_reference(reference), *note_plain_layers(variant)]
    notes += note_same_model(reference, variant)
    notes += [
        Note(topic="tokenizer", text=f"suite {name}: {reason}", level="warn") for name, reason in mismatches.items()
    ]
    return notes


def _make(plan: Plan, folder: Path, reference: LoadedModel, known: Known) -> LoadedModel:
    """The variant, with the documents to which its steps fitted it."""
    fitted_to, trained_on = calibration_of(plan, reference, known), training_of(plan, reference, known)
    training = prepare_training(plan, trained_on, reference, folder)
    variant = make_variant(plan, reference, fitted_to.ids if fitted_to else (), training)
    if trained_on and training:
        variant = with_training(variant, trained_on, training.fits)
    if fitted_to:
        ranges = any(probe.calibration_ranges for suite in plan.suites for probe in suite.probes)
        variant = with_calibration(variant, fitted_to, ranges)
    return variant


def _find_withheld(plan: Plan) -> dict[Served, str]:
    """What the engine or some step of a plan gives no access to, with the reason."""
    made_by = [("backend", step) for step in plan.variant.compress] + [("engine", plan.variant.engine)]
    return {
        what: f"the {role} {plugin.kind} gives no access to {words}"
        for what, words in SERVED.items()
        for role, plugin in made_by
        if what not in plugin.serves
    }


def _token_mismatch(suite: SuiteSpec, reference: LoadedModel, variant: LoadedModel, expected: str) -> str:
    """Why the tokens of a suite cannot be compared; empty if they can. expected: hash of the reference's token ids."""
    spec = suite.documents
    if spec is None:
        return ""
    if variant.identity.tokenizer_sha256 != reference.identity.tokenizer_sha256:
        without_bos = spec.bos and not isinstance(variant.tokenizer.bos_token_id, int)
        if without_bos or documents_sha256(_encode(suite, suite_texts(suite), variant)) != expected:
            return f"{OTHER_IDS}, so {ALTERNATIVES}"
    reason = explain_mismatch(reference, variant)
    return f"{reason}; so {ALTERNATIVES}" if reason else ""


def _reads_texts(suite: SuiteSpec, mismatches: Mapping[str, str]) -> bool:
    """Whether the tables of a suite depend on its texts beyond the token ids of the reference."""
    return suite.documents is not None and (
        suite.name in mismatches or any(probe.reads == "texts" for probe in suite.probes)
    )


def describe_data(
    plan: Plan, reference: Identity, variant: Identity, environment: Environment, documents: dict[str, str]
) -> dict[str, object]:
    """Everything that the tables depend on: both models, the inputs, the probes, and the libraries."""
    content: dict[str, object] = {
        "reference": reference.model_dump(mode="json", exclude={"source", "name"}),
        "variant": variant.model_dump(mode="json", exclude={"source", "name"}),
        # A step may do what no tensor and no description of a module shows.
        "steps": [{"backend": step.kind, **step.settings()} for step in plan.variant.compress],
        "engine": {"engine": plan.variant.engine.kind, **plan.variant.engine.settings()},
        "documents": documents,
        "probes": {suite.name: {probe.kind: probe.settings() for probe in suite.probes} for suite in plan.suites},
        "inputs": {
            suite.name: {
                probe.kind: probe.inputs() for probe in suite.probes if probe.runs == "alone" or probe.inputs()
            }
            for suite in plan.suites
        },
        "environment": environment.model_dump(mode="json"),
    }
    if plan.variant.layers is not None:
        content["layers"] = plan.variant.layers
    drawn = any(measure.item_sampling() for suite in plan.suites for measure in suite.measures)
    if drawn or any(suite.documents and suite.documents.min for suite in plan.suites):
        content["stopping"] = _list_stopping_rules(plan)
    return content


def _list_stopping_rules(plan: Plan) -> list[object]:
    """The part of the gates that decides how many documents and items are measured, without the rules' reasons and
    file positions."""
    rules = [
        [gate.sequential, [{"rule": spec.rule.kind, **spec.rule.settings(), "why": ""} for spec in gate.rules]]
        for gate in plan.gates
    ]
    return [rules, {suite.name: suite.documents.min for suite in plan.suites if suite.documents}]


def _document_notes(suites: Sequence[SuiteSpec], documents: Documents) -> list[Note]:
    notes = []
    for suite in suites:
        encoded = documents[suite.name]
        counts = {
            "cut at the context": sum(document.cut for document in encoded),
            "skipped (nothing to score)": sum(bool(document.skipped) for document in encoded),
            "duplicate another document, and count as one cluster with it": count_duplicates(encoded),
        }
        for what, count in counts.items():
            if count:
                text = f"{count} of {len(encoded)} documents of suite {suite.name} {what}"
                notes.append(Note(topic="documents", text=text))
        if near := name_similar(encoded):
            named = ", ".join(f"{later} (of {earlier})" for later, earlier in near[:3]) + (
                " …" if len(near) > 3 else ""
            )
            text = (
                f"{len(near)} of {len(encoded)} documents of suite {suite.name} share at least half of their runs of "
                f"{WINDOW} tokens with earlier documents, yet count as clusters of their own: {named}"
            )
            notes.append(Note(topic="documents", text=text))
    return notes


def _contamination_notes(variant: LoadedModel, documents: Documents) -> list[Note]:
    """A warning for every suite that judges on documents that were seen while the variant was made."""
    seen: list[tuple[str, str, DocumentIndex]] = []
    if variant.calibration:
        seen.append(("calibration", "calibration documents", variant.calibration.data.seen))
    if variant.training:
        seen.append(("training", "training texts", variant.training.data.seen))
    notes = []
    for topic, what, index in seen:
        for name, encoded in documents.items():
            scored = [document for document in encoded if not document.skipped]
            shared = [document.id for document in scored if index.count_shared(document.ids)[0]]
            if shared:
                first = ", ".join(shared[:3]) + (" …" if len(shared) > 3 else "")
                text = (
                    f"{len(shared)} of {len(scored)} documents of suite {name} share {WINDOW} tokens in a row with the "
                    f"{what}, or are among them: {first}"
                )
                notes.append(Note(topic=topic, text=text, level="warn"))
    return notes


def _libraries_of(variant: VariantSpec, identity: Identity) -> list[str]:
    """Import names of the libraries that read or compute a checkpoint, whose versions may change results."""
    libraries = {LIBRARIES[module.backend][0] for module in identity.modules if module.backend in LIBRARIES}
    libraries |= {"gguf"} if variant.is_gguf else set()
    libraries |= {"peft"} if variant.adapter else set()
    return sorted(libraries | set(variant.engine.requires))
