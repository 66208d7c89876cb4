"""The probe ``artifact``: compares a variant with the same variant after saving and reloading it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness.errors import BackendError, ModelError
from harness.probes import ArtifactSource, Context, Probe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.artifacts.outputs import Outputs
    from harness.data.encoding import EncodedDocument
    from harness.models.loaded import LoadedModel
    from harness.progress import Progress
    from harness.tables.access import Sink

DOCUMENTS, TOKENS = 8, 64
"""How many documents of the suite are compared (the first ones), and how many tokens of each. Files contain the same
model or not: more documents would not add certainty; these suffice to show effects that no single module shows."""
TABLE = "artifact"
NOT_SAVED = "nothing was saved: variant.artifact is none"
Row = dict[str, Any]


class Artifact(Probe):
    """Saves a variant as it would be released, reloads it in a fresh process, and compares both.

    Compared are logits on the first 8 documents (64 tokens each, one thread), the outputs of every module, and the
    tokenizer's ids: of the model in memory before saving, of the same model after saving (some libraries change it),
    and of the files loaded in a separate process with all checks. Writes rows (part, …) to the table ``artifact``:
    tokens and modules of ``reloaded`` and ``live``, ``text``, ``same`` hashes, every ``file``; or ``refused``
    (``live_refused``) with the reason, ``checkpoint`` if the variant was loaded unchanged, ``none``.
    """

    runs = "artifact"

    def observe(self, context: Context) -> None:
        """Commit the table as a snapshot: a run whose files are gone or changed, or were refused, tries again."""
        from harness.artifacts.comparing import table

        (variant,), source = context.variants, context.artifact
        if source is None or all(_is_current(sink, source) for sink in context.sinks):
            return
        distinct = (each for each in context.documents if not each.skipped and each.duplicate_of is None)
        documents = list(islice(distinct, DOCUMENTS))
        rows = table(list(_rows(context.reference, variant, source, documents, context.progress)))
        for sink in context.sinks:
            sink.commit(_free_unit(sink), {}, {TABLE: rows})


def _rows(
    reference: LoadedModel,
    variant: LoadedModel,
    source: ArtifactSource,
    documents: Sequence[EncodedDocument],
    progress: Progress,
) -> Iterator[Row]:
    yield {"part": "parameters", "count": variant.identity.parameters}
    if source.kind == "none":
        yield {"part": "none", "text": NOT_SAVED}
    elif source.kind == "checkpoint":
        yield {"part": "checkpoint"}
        for stamp in variant.files:
            yield {"part": "file", "name": stamp.path.name, "count": stamp.stat[0], "text": stamp.sha256}
        if variant.identity.tokenizer_sha256 != reference.identity.tokenizer_sha256:
            yield from _texts_of_files(reference, variant, documents)
    else:
        yield from _save(variant, source, documents, progress)


def _texts_of_files(
    reference: LoadedModel, variant: LoadedModel, documents: Sequence[EncodedDocument]
) -> Iterator[Row]:
    """Rows about texts as users of both sides encode them."""
    from harness.artifacts.outputs import encode_text

    for document in documents:
        text = str(variant.tokenizer.decode(document.ids[:TOKENS].tolist()))
        changed = encode_text(reference.tokenizer, text) != encode_text(variant.tokenizer, text)
        yield {"part": "text", "document": document.index, "count": int(changed)}


def _save(
    variant: LoadedModel, source: ArtifactSource, documents: Sequence[EncodedDocument], progress: Progress
) -> Iterator[Row]:
    import torch

    from harness.artifacts.comparing import DifferentShapesError, module_rows, token_rows
    from harness.artifacts.reloading import ReloadError
    from harness.artifacts.saving import list_files

    inputs = [(document.index, torch.from_numpy(document.ids[:TOKENS])) for document in documents]
    before = _outputs(variant, inputs, "artifact: before saving", progress)
    try:
        source.write()
    except BackendError as error:
        yield {"part": "refused", "text": str(error)}
        return
    for file in list_files(source.folder):
        yield {"part": "file", "name": file.name, "count": file.bytes, "text": file.sha256}
    try:
        after = _outputs(variant, inputs, "artifact: after saving", progress)
        yield from list(token_rows("live", inputs, before, after))
        yield from module_rows("live_module", before, after)
        del after
    except (ModelError, DifferentShapesError) as error:
        yield {"part": "live_refused", "text": f"saving left the model in memory unusable: {error}"}
    try:
        found, others = _reload(variant, source, inputs, progress)
        compared = list(token_rows("reloaded", inputs, before, found))
    except (ReloadError, DifferentShapesError) as error:
        # Its place is no part of the reason: the same run elsewhere gives the same bytes.
        reason = str(error).replace(str(source.folder.absolute()), source.folder.name)
        yield {"part": "refused", "text": f"the artifact was refused: {reason}"}
        return
    yield from compared
    yield from module_rows("reloaded_module", before, found)
    yield from others


def _outputs(variant: LoadedModel, inputs: Sequence[tuple[int, Tensor]], what: str, progress: Progress) -> Outputs:
    from harness.artifacts.outputs import model_outputs

    try:
        return model_outputs(variant.model, [ids for _, ids in inputs], lambda done, of: progress.step(what, done, of))
    except RuntimeError as error:  # Out of memory is one, too.
        raise ModelError(f"{what}: {variant.name} could not be called: {error}") from error


def _reload(
    variant: LoadedModel, source: ArtifactSource, inputs: Sequence[tuple[int, Tensor]], progress: Progress
) -> tuple[Outputs, list[Row]]:
    """Outputs of the model loaded by a fresh process, and rows about its hashes and its tokenizer."""
    from harness.artifacts.exchange import Request
    from harness.artifacts.outputs import DOCUMENT, encode_text
    from harness.artifacts.reloading import read_back

    texts = [str(variant.tokenizer.decode(ids.tolist())) for _, ids in inputs]
    adapter = str(source.adapter) if source.adapter else None
    request = Request(name=f"{variant.name}, reloaded", spec=source.spec, adapter=adapter, texts=tuple(texts))
    documents = {f"{DOCUMENT}{number}": ids for number, (_, ids) in enumerate(inputs)}
    answer, model_outputs = read_back(request, documents, source.folder.with_name(".reload"), progress)
    rows: list[Row] = []
    for (index, _), text, ids in zip(inputs, texts, answer.text_ids, strict=True):
        rows.append({"part": "text", "document": index, "count": int(ids != encode_text(variant.tokenizer, text))})
    for name in ("weights_sha256", "config_sha256", "tokenizer_sha256"):
        same = getattr(answer, name) == getattr(variant.identity, name)
        rows.append({"part": "same", "name": name.removesuffix("_sha256"), "count": int(same)})
    return model_outputs, rows


def _is_current(sink: Sink, source: ArtifactSource) -> bool:
    """Whether the rows belong to this artifact and, if it was saved, its files are unchanged since."""
    rows = sink.read(TABLE)
    if rows is None:
        return False
    parts = set(rows["part"])
    if source.kind != "save":
        return source.kind in parts
    if "reloaded" not in parts:
        return False
    files = rows[rows["part"] == "file"]
    return _hashes(source.folder) == dict(zip(files["name"], files["text"], strict=True))


def _hashes(folder: Path) -> dict[str, str]:
    from harness.artifacts.saving import list_files

    return {file.name: file.sha256 for file in list_files(folder)}


def _free_unit(sink: Sink) -> str:
    number = 1
    while sink.done(f"{TABLE}/{number}"):
        number += 1
    return f"{TABLE}/{number}"
