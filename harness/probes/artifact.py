"""The probe ``artifact``: a variant beside what it becomes when it is saved and loaded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import BackendError, ModelError
from harness.probes import Shipment, ShippedProbe
from harness.progress import Progress
from harness.tables.access import Sink

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from harness.artifacts.outputs import Outputs
    from harness.data.encoding import EncodedDocument
    from harness.models.loaded import LoadedModel

DOCUMENTS, TOKENS = 8, 64
"""Looked at are the first documents of the suite, in its order, each cut here. A file is the same model or it is not:
this is no sample that more documents would make surer, but long enough to show what no module shows alone."""
TABLE = "artifact"
NOBODY = "nothing was saved: variant.artifact is none"
Row = dict[str, Any]


class Artifact(ShippedProbe):
    """Saves a variant as it would be shipped, reads it back in a fresh process, and compares both with each other.

    Logits on the first 8 documents (64 tokens each, one thread), what every module computes, and what the tokenizer
    makes of the texts are taken of the model in memory before it is saved, of the same model after that (libraries were
    seen to change it), and of the files in a process of its own with all checks of loading.
    Leaves rows (part, …) in the table ``artifact``: tokens and modules of ``reloaded`` and ``live``, ``text``, ``same``
    hashes, every ``file``; or ``refused`` (``live_refused``) with the reason, ``checkpoint`` where the variant was
    loaded and not made, ``none``.
    """

    def observe(
        self,
        variant: LoadedModel,
        shipment: Shipment,
        documents: Sequence[EncodedDocument],
        sinks: Sequence[Sink],
        progress: Progress,
    ) -> None:
        """Commit the table as a snapshot: a run that finds its files gone or changed, or was refused, tries again."""
        from harness.artifacts.comparing import table

        if all(_stands(sink, shipment) for sink in sinks):
            return
        chosen = [document for document in documents if not document.skipped][:DOCUMENTS]
        rows = table(list(_rows(variant, shipment, chosen, progress)))
        for sink in sinks:
            sink.commit(_free_unit(sink), {}, {TABLE: rows})


def _rows(
    variant: LoadedModel, shipment: Shipment, documents: Sequence[EncodedDocument], progress: Progress
) -> Iterator[Row]:
    yield {"part": "parameters", "count": variant.identity.parameters}
    if shipment.kind == "none":
        yield {"part": "none", "text": NOBODY}
    elif shipment.kind == "checkpoint":
        yield {"part": "checkpoint"}
        for stamp in variant.files:
            yield {"part": "file", "name": stamp.path.name, "count": stamp.stat[0], "text": stamp.sha256}
    else:
        yield from _saved(variant, shipment, documents, progress)


def _saved(
    variant: LoadedModel, shipment: Shipment, documents: Sequence[EncodedDocument], progress: Progress
) -> Iterator[Row]:
    import torch

    from harness.artifacts.comparing import DifferentShapesError, module_rows, token_rows
    from harness.artifacts.reloading import ReloadError
    from harness.artifacts.saving import list_files

    inputs = [(document.index, torch.from_numpy(document.ids[:TOKENS])) for document in documents]
    before = _outputs(variant, inputs, "artifact: before saving", progress)
    try:
        shipment.write()
    except BackendError as error:
        yield {"part": "refused", "text": str(error)}
        return
    for file in list_files(shipment.folder):
        yield {"part": "file", "name": file.name, "count": file.bytes, "text": file.sha256}
    try:
        after = _outputs(variant, inputs, "artifact: after saving", progress)
        yield from list(token_rows("live", inputs, before, after))
        yield from module_rows("live_module", before, after)
        del after
    except (ModelError, DifferentShapesError) as error:
        yield {"part": "live_refused", "text": f"saving left the model in memory unusable: {error}"}
    try:
        found, others = _reloaded(variant, shipment, inputs, progress)
        compared = list(token_rows("reloaded", inputs, before, found))
    except (ReloadError, DifferentShapesError) as error:
        # Its place is no part of the reason: the same run elsewhere gives the same bytes.
        reason = str(error).replace(str(shipment.folder.absolute()), shipment.folder.name)
        yield {"part": "refused", "text": f"the artifact was not accepted: {reason}"}
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


def _reloaded(
    variant: LoadedModel, shipment: Shipment, inputs: Sequence[tuple[int, Tensor]], progress: Progress
) -> tuple[Outputs, list[Row]]:
    """Outputs of what a fresh process loads, and rows about its hashes and its tokenizer."""
    from harness.artifacts.exchange import Request
    from harness.artifacts.outputs import DOCUMENT, encode_text
    from harness.artifacts.reloading import read_back

    texts = [str(variant.tokenizer.decode(ids.tolist())) for _, ids in inputs]
    adapter = str(shipment.adapter) if shipment.adapter else None
    request = Request(name=f"{variant.name}, read back", spec=shipment.spec, adapter=adapter, texts=tuple(texts))
    documents = {f"{DOCUMENT}{number}": ids for number, (_, ids) in enumerate(inputs)}
    answer, model_outputs = read_back(request, documents, shipment.folder.with_name(".reload"), progress)
    rows: list[Row] = []
    for (index, _), text, ids in zip(inputs, texts, answer.text_ids, strict=True):
        rows.append({"part": "text", "document": index, "count": int(ids != encode_text(variant.tokenizer, text))})
    for name in ("weights_sha256", "config_sha256", "tokenizer_sha256"):
        same = getattr(answer, name) == getattr(variant.identity, name)
        rows.append({"part": "same", "name": name.removesuffix("_sha256"), "count": int(same)})
    return model_outputs, rows


def _stands(sink: Sink, shipment: Shipment) -> bool:
    """Whether the rows are those of this shipment and, where it was saved, its files are still what they were."""
    rows = sink.read(TABLE)
    if rows is None:
        return False
    parts = set(rows["part"])
    if shipment.kind != "save":
        return shipment.kind in parts
    if "reloaded" not in parts:
        return False
    files = rows[rows["part"] == "file"]
    return _hashes(shipment.folder) == dict(zip(files["name"], files["text"], strict=True))


def _hashes(folder: Path) -> dict[str, str]:
    from harness.artifacts.saving import list_files

    return {file.name: file.sha256 for file in list_files(folder)}


def _free_unit(sink: Sink) -> str:
    number = 1
    while sink.done(f"{TABLE}/{number}"):
        number += 1
    return f"{TABLE}/{number}"
