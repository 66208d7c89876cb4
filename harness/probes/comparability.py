"""The probe ``comparability``: what users of the reference and of the variant load beside weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.probes import Context, Probe

if TYPE_CHECKING:
    from harness.comparability import Header, Side
    from harness.models.loaded import LoadedModel
    from harness.records import Comparison
    from harness.tables.access import Sink

TABLE = "comparability"
COLUMN = "comparison"


class Comparability(Probe):
    """Compares the folders of both sides: configuration, stop tokens, chat template, tokenizer.

    Before any model is called; once more on the artifact of a variant that was made in the run, as soon as it is saved.
    Until then, the variant has the files of the reference. Writes one row to the table ``comparability``: the
    comparison as JSON.
    """

    runs = "files"
    reads = "nothing"

    def observe(self, context: Context) -> None:
        """Commit the table as a snapshot, unless it is there already."""
        import pandas as pd

        (variant,) = context.variants
        row = _compare(context, variant).model_dump_json()
        for sink in context.sinks:
            earlier = sink.read(TABLE)
            if earlier is None or earlier[COLUMN].tolist() != [row]:
                sink.commit(_free_unit(sink), {}, {TABLE: pd.DataFrame({COLUMN: [row]})})


def _compare(context: Context, variant: LoadedModel) -> Comparison:
    from harness.comparability import Side, Sides, assume_same, compare_sides

    reference, texts = context.reference, [document.text for document in context.texts]
    ours, theirs = _side("reference", reference, reference), _side("variant", variant, reference)
    if context.artifact is not None:
        folder = context.artifact.folder
        return compare_sides(Sides(ours, Side("variant", folder, folder), texts), "artifact")
    if (ours.folder, ours.tokenizer_folder) == (theirs.folder, theirs.tokenizer_folder) and _is_own(reference, variant):
        return assume_same("reference")
    same_ids = reference.identity.tokenizer_sha256 == variant.identity.tokenizer_sha256
    return compare_sides(Sides(ours, theirs, texts, _same_files(reference, variant), same_ids))


def _side(name: str, model: LoadedModel, reference: LoadedModel) -> Side:
    """The model's own folder; that of the reference for a tokenizer that it borrows."""
    from harness.comparability import Side

    own, borrowed = _folder(model), model is not reference and model.tokenizer is reference.tokenizer
    if own is None:
        return Side(name, None, None, model.tokenizer, _read_header(model), borrowed)
    return Side(name, own, _folder(reference) if borrowed else own, model.tokenizer)


def _read_header(model: LoadedModel) -> Header | None:
    """The header of a model in a GGUF file; None for files without one."""
    from harness.comparability import Header
    from harness.models.gguf_file import read_gguf

    path = next((file.path for file in model.files if file.path.suffix == ".gguf"), None)
    if path is None:
        return None
    content = read_gguf(path)
    return Header(content.architecture, content.values, content.tokens)


def _folder(model: LoadedModel) -> Path | None:
    """The folder that the model was loaded from; None for a model in a single file."""
    return next((file.path.parent for file in model.files if file.path.name == "config.json"), None)


def _is_own(reference: LoadedModel, variant: LoadedModel) -> bool:
    """Whether the variant was made of the very files of the reference."""
    return variant.files[: len(reference.files)] == reference.files


def _same_files(reference: LoadedModel, variant: LoadedModel) -> bool:
    """Whether every file that a user would load has the same bytes."""
    one, other = ({file.path.name: file.sha256 for file in model.files} for model in (reference, variant))
    return bool(one) and one == other


def _free_unit(sink: Sink) -> str:
    number = 1
    while sink.done(f"{TABLE}/{number}"):
        number += 1
    return f"{TABLE}/{number}"
