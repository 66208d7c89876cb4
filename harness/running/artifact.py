"""Observes the artifact of each variant (the files that would be released), last, because saving may change a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.artifacts.saving import discard_artifact, save_folder
from harness.backends import Backend
from harness.data.encoding import EncodedDocument
from harness.errors import WriteError
from harness.models.adapters import copy_adapter, detach_adapter
from harness.models.loaded import LoadedModel
from harness.models.transformers_output import silence_transformers
from harness.planning.specs import Plan, SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
from harness.records import Artifact, ArtifactFile, Identity, Note
from harness.running.comparing import compare_files
from harness.running.pair import Pair
from harness.running.pairs import Documents, LoadedPair, encode_for_variant

if TYPE_CHECKING:
    import pandas as pd

ADAPTER = "adapter"
"""Folder inside the artifact for an unmerged adapter."""
FOLDER = "artifact"
"""Name of the folder next to run.json, of the table about it, and of the stage."""


def observe_artifact(pair: LoadedPair, documents: Documents, reference: LoadedModel, progress: Progress) -> None:
    """Let the artifact probes observe a pair, and compare its files again if they were saved."""
    plan, store = pair.observed.plan, pair.store
    asking = [(suite, probe) for suite in plan.suites for probe in suite.probes if probe.runs == "artifact"]
    source = _source(pair, bool(asking))
    if source.kind != "save":
        _discard_stale(source.folder)
    for kind in dict.fromkeys(probe.kind for _, probe in asking):
        suites = [(suite, probe) for suite, probe in asking if probe.kind == kind]
        first, probe = suites[0]
        context = Context(
            reference,
            (pair.variant,),
            [store.sink(suite.name) for suite, _ in suites],
            progress,
            documents=_documents(pair, first, documents),
            artifact=source,
        )
        probe.observe(context)
    if source.kind == "save" and (table := _read_table(pair)) is not None and artifact_of(table) is not None:
        compare_files(plan.suites, reference, pair, progress, source)


def conclude_artifact(pair: Pair) -> None:
    """Record the files of the artifact, and what is to be said of them."""
    if (table := _read_table(pair)) is not None:
        pair.observed.artifact = artifact_of(table)
        pair.observed.notes += _notes(pair.facts.variant, table)


def _read_table(pair: Pair) -> pd.DataFrame | None:
    suites = [suite for suite in pair.observed.plan.suites if any(probe.runs == "artifact" for probe in suite.probes)]
    tables = (pair.store.read(suite.name, FOLDER) for suite in suites)
    return next((table for table in tables if table is not None), None)


def artifact_of(table: pd.DataFrame) -> Artifact | None:
    """The files that the table ``artifact`` lists; None if it lists none."""
    rows = table[table["part"] == "file"]
    columns = zip(rows["name"], rows["count"], rows["text"], strict=True)
    files = tuple(ArtifactFile(name=str(name), bytes=int(size), sha256=str(sha256)) for name, size, sha256 in columns)
    loaded = bool((table["part"] == "checkpoint").any())
    return Artifact(kind="checkpoint" if loaded else "saved", files=files) if files else None


def _source(pair: LoadedPair, observed: bool) -> ArtifactSource:
    """Where the artifact of a pair comes from. observed: whether a probe needs it; otherwise nothing is written."""
    plan, variant = pair.observed.plan, pair.variant
    folder = pair.store.folder.with_name(FOLDER)
    kind: Literal["save", "checkpoint", "none"] = "save" if plan.variant.made_here else "checkpoint"
    if not observed or (kind == "save" and plan.variant.artifact == "none"):
        kind = "none"
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


def _discard_stale(folder: Path) -> None:
    """Delete what an earlier run saved, so that it cannot be mistaken for the artifact of this verdict."""
    try:
        discard_artifact(folder)
    except OSError as error:
        raise WriteError(f"{folder}: an earlier artifact could not be removed: {error.strerror or error}") from error


def _documents(pair: LoadedPair, suite: SuiteSpec, documents: Documents) -> Sequence[EncodedDocument]:
    """The suite's documents, encoded by the variant's own tokenizer if its token ids differ."""
    return (
        encode_for_variant(suite, pair.variant) if suite.name in pair.facts.token_mismatches else documents[suite.name]
    )


def _notes(variant: Identity, table: pd.DataFrame) -> Iterator[Note]:
    """Notes: why an artifact was refused, how it differs from the model in memory, and where its size is misleading."""
    refused = " ".join(table.loc[table["part"] == "refused", "text"])
    for text in table.loc[table["part"].isin(["refused", "live_refused"]), "text"]:
        yield Note(topic=FOLDER, text=f"{variant.name}: {text}", level="warn")
    if (changed := _describe_difference(table, "live")) is not None:
        text = f"saving changed the model in memory ({changed}); all other numbers were measured before"
        yield Note(topic=FOLDER, text=f"{variant.name}: {text}", level="warn")
    causes = "; ".join(_explain_unsaved(variant))
    if (differs := _describe_difference(table, "reloaded")) is not None:
        unknown = "no step is known to be lost when saving, so values were rounded once more, or lost"
        text = f"the artifact differs from the model in memory ({differs}): {causes or unknown}"
        yield Note(topic=FOLDER, text=f"{variant.name}: {text}", level="warn")
    elif refused and causes:
        yield Note(topic=FOLDER, text=f"{variant.name}: {causes}", level="warn")
    yield from _size_notes(variant, table)


def _describe_difference(table: pd.DataFrame, part: str) -> str | None:
    """Difference of the tokens and modules of a part from the model in memory, in words; None if they are the same."""
    tokens, modules = table[table["part"] == part], table[table["part"] == f"{part}_module"]
    other = modules[~(modules["error"] <= modules["allowed"])]
    moved = tokens[~((tokens["kl"] == 0.0) & (tokens["max_abs_diff"] == 0.0))]
    if moved.empty and other.empty:
        return None
    first = f", {other['name'].iloc[0]} first" if len(other) else ""
    largest = f", largest KL {tokens['kl'].max():.3g} nats/token" if len(moved) else ""
    return f"{len(other)} of {len(modules)} modules{first}; logits of {len(moved)} of {len(tokens)} tokens{largest}"


def _explain_unsaved(variant: Identity) -> Iterator[str]:
    """What is simulated in memory and cannot be stored in weight files."""
    if rounding := sum(m.activations is not None and m.kernel == "simulated" for m in variant.modules):
        yield f"inputs of {rounding} modules are rounded in memory, but activation quantization is not in the artifact"
    if variant.cache and variant.cache.kernel == "simulated":
        yield "keys and values are rounded in memory, but KV cache quantization is not in the artifact"


def _size_notes(variant: Identity, table: pd.DataFrame) -> Iterator[Note]:
    """A note if simulated weights are saved as floats: the size on disk is not that of the format.

    Libraries that compute with floats may still save codes; headers and configurations are less than a tenth.
    """
    files = table[(table["part"] == "file") & table["name"].str.endswith(".safetensors")]
    modules = variant.modules
    stated, on_disk = sum(module.stored_bytes for module in modules), int(files["count"].sum())
    simulated = any(module.kernel == "simulated" and module.backend for module in modules)
    if simulated and on_disk > 1.1 * stated and (table["part"] != "checkpoint").all():
        text = f"held as floats; on disk {on_disk:,} bytes, not the {stated:,} of the packed format"
        yield Note(topic=FOLDER, text=f"{variant.name}: {text}")
