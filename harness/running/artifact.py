"""Observes the artifact of each variant (the files that would be released), last, because saving may change a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from harness.artifacts.saving import discard_stale, save_folder
from harness.backends import Backend
from harness.concluding.failing import explain_stop
from harness.concluding.saved_files import FOLDER, artifact_of, read_artifact
from harness.data.encoding import EncodedDocument
from harness.models.adapters import copy_adapter, detach_adapter
from harness.models.loaded import LoadedModel
from harness.models.transformers_output import silence_transformers
from harness.planning.specs import Plan, SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
from harness.running.comparing import compare_files
from harness.running.pairs import Documents, LoadedPair, encode_for_variant

ADAPTER = "adapter"
"""Folder inside the artifact for an unmerged adapter."""


def observe_artifact(pair: LoadedPair, documents: Documents, reference: LoadedModel, progress: Progress) -> None:
    """Let the artifact probes observe a pair, and compare its files again if they were saved."""
    plan, store = pair.observed.plan, pair.store
    suites = () if pair.own is None and explain_stop(pair) else plan.suites
    asking = [(suite, probe) for suite in suites for probe in suite.probes if probe.runs == "artifact"]
    source = _source(pair, bool(asking))
    if source.kind != "save":
        discard_stale(source.folder)
    for kind in dict.fromkeys(probe.kind for _, probe in asking):
        those = [(suite, probe) for suite, probe in asking if probe.kind == kind]
        first, probe = those[0]
        context = Context(
            reference,
            (pair.variant,),
            [store.sink(suite.name) for suite, _ in those],
            progress,
            documents=_documents(pair, first, documents),
            artifact=source,
        )
        probe.observe(context)
    if source.kind == "save" and (table := read_artifact(pair)) is not None and artifact_of(table) is not None:
        compare_files(plan.suites, reference, pair, progress, source)


def _source(pair: LoadedPair, observed: bool) -> ArtifactSource:
    """Where the artifact of a pair comes from. observed: whether a probe needs it; otherwise nothing is written."""
    plan, variant = pair.observed.plan, pair.variant
    folder = pair.store.folder.with_name(FOLDER)
    kind: Literal["save", "checkpoint", "none"] = "none"
    if observed and plan.saves_artifact:
        kind = "save"
    elif observed and not plan.variant.made_here:
        kind = "checkpoint"
    own = plan.reference if plan.variant.model == "reference" else plan.variant
    spec = plan.reference.model_copy(
        update={
            "model": str(folder.absolute()),
            "file": None,
            "revision": None,
            "dtype": variant.identity.dtype,
            "trust_remote_code": own.trust_remote_code,
        }
    )
    adapter = folder.absolute() / ADAPTER if variant.adapter else None
    return ArtifactSource(kind, folder, lambda: save_folder(folder, _writer(plan, variant)), spec, adapter)


def _writer(plan: Plan, variant: LoadedModel) -> Callable[[Path], None]:
    """Save the variant into an empty folder, with the ``save`` of the last step that has one.

    An unmerged adapter is saved into a separate folder, because the steps do not know it.
    """
    steps = plan.variant.compress
    own = next((step for step in reversed(steps) if type(step).save is not Backend.save), None)

    def write(folder: Path) -> None:
        with silence_transformers(), detach_adapter(variant.model) if variant.adapter else nullcontext():
            if own is None:
                variant.model.save_pretrained(folder)
            else:
                own.save(variant.model, folder)
            variant.tokenizer.save_pretrained(folder)
        if variant.adapter:
            copy_adapter(variant.adapter, folder / ADAPTER)

    return write


def _documents(pair: LoadedPair, suite: SuiteSpec, documents: Documents) -> Sequence[EncodedDocument]:
    """The suite's documents, encoded by the variant's own tokenizer if its token ids differ."""
    return (
        encode_for_variant(suite, pair.variant) if suite.name in pair.facts.token_mismatches else documents[suite.name]
    )
