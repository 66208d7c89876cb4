"""What the tables say of files: those that were compared, and those of the artifact. No model is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.concluding.pair import Pair
from harness.measures.comparability import read_comparison
from harness.planning.specs import SuiteSpec
from harness.records import Artifact, ArtifactFile, Comparison, Identity, Note
from harness.report.comparability import title

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

FOLDER = "artifact"
"""Name of the folder next to run.json, of the table about it, and of the stage."""
TABLE = "comparability"


def conclude_comparison(pair: Pair, suites: Sequence[SuiteSpec]) -> None:
    """Record the last comparison of a pair: that of its artifact, if one was saved, with what it omits."""
    tables = (pair.store.read(suite.name, TABLE) for suite in suites)
    pair.observed.comparison = next((read_comparison(table) for table in tables if table is not None), None)
    pair.observed.notes += _note_omissions(pair.observed.comparison)


def _note_omissions(comparison: Comparison | None) -> Iterator[Note]:
    """A warning that names what could not be compared, by its reason."""
    reasons: dict[str, list[str]] = {}
    for lost in comparison.omissions if comparison else ():
        reasons.setdefault(lost.reason, []).append(title(lost.part))
    if reasons:
        said = "; ".join(f"{', '.join(parts)}: {reason}" for reason, parts in reasons.items())
        yield Note(topic=TABLE, text=f"not everything could be compared: {said}", level="warn")


def conclude_artifact(pair: Pair) -> None:
    """Record the files of the artifact, and what is to be said of them."""
    if (table := read_artifact(pair)) is not None:
        pair.observed.artifact = artifact_of(table)
        pair.observed.notes += _notes(pair.facts.variant, table)


def read_artifact(pair: Pair) -> pd.DataFrame | None:
    """The table about the artifact; None where nothing was saved."""
    suites = [suite for suite in pair.observed.plan.suites if any(probe.runs == "artifact" for probe in suite.probes)]
    tables = (pair.store.read(suite.name, FOLDER) for suite in suites)
    return next((table for table in tables if table is not None), None)


def find_lost_files(artifact: Artifact | None, folder: Path) -> list[str]:
    """The files of an artifact that was saved beside the tables and is not there, in ``folder`` of a run."""
    saved = artifact.files if artifact is not None and artifact.kind == "saved" else ()
    paths = {file: folder / FOLDER / file.name for file in saved}
    return [file.name for file, path in paths.items() if not path.is_file() or path.stat().st_size != file.bytes]


def artifact_of(table: pd.DataFrame) -> Artifact | None:
    """The files that the table ``artifact`` lists; None if it lists none."""
    rows = table[table["part"] == "file"]
    columns = zip(rows["name"], rows["count"], rows["text"], strict=True)
    files = tuple(ArtifactFile(name=str(name), bytes=int(size), sha256=str(sha256)) for name, size, sha256 in columns)
    loaded = bool((table["part"] == "checkpoint").any())
    return Artifact(kind="checkpoint" if loaded else "saved", files=files) if files else None


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
