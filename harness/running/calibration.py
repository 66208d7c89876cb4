"""Reads the calibration documents of a variant, and records the input ranges of its linear layers on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from harness.data.calibration import Calibrated, CalibrationDocuments
from harness.data.contamination import DocumentIndex
from harness.data.documents import RawDocument, read_documents
from harness.data.encoding import EncodedDocument, encode
from harness.errors import DataError
from harness.lockstep.hooks import ActiveSide, attach_taps
from harness.lockstep.survey import candidates
from harness.modules.experts import count_expert_tokens
from harness.records import CalibrationSpec, DocumentsSpec, HubData, Note, TrainingSpec

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


def read_calibration(spec: CalibrationSpec, reference: LoadedModel) -> CalibrationDocuments:
    """Read the documents that ``spec`` names, encoded by the reference's tokenizer.

    Raises DataError as ``documents.read_documents`` and ``documents.encode`` do, naming the key.
    """
    _, encoded = encode_fitted("calibration", spec, spec.documents, reference)
    kept = tuple(document for document in encoded if not document.skipped)
    seen = DocumentIndex(reference.tokenizer, [document.ids for document in kept])
    notes = note_missing("calibration", spec, spec.documents, encoded)
    return CalibrationDocuments(name_source(spec), kept, seen, tuple(notes))


def encode_fitted(
    key: str, spec: CalibrationSpec | TrainingSpec, count: int, reference: LoadedModel
) -> tuple[list[RawDocument], list[EncodedDocument]]:
    """The first ``count`` documents that the section ``key`` names, as texts and encoded by the reference's tokenizer.

    Raises DataError as ``documents.read_documents`` and ``documents.encode`` do, naming the key.
    """
    form = DocumentsSpec(data=spec.data, context=spec.tokens, bos=spec.bos)
    weight = cast(Tensor, reference.model.get_input_embeddings().weight)
    try:
        prompts = spec.prompt_field if isinstance(spec, TrainingSpec) else None
        raw = read_documents(spec.data, count, spec.text_field, spec.split_on, spec.seed, prompts)
        return raw, encode(raw, reference.tokenizer, form, weight.shape[0])
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def with_calibration(variant: LoadedModel, data: CalibrationDocuments, ranges: bool) -> LoadedModel:
    """The variant with its calibration documents. ranges: whether to run them to record the ranges of inputs."""
    by_module = input_ranges(variant, data.ids) if ranges else {}
    identity = variant.identity.model_copy(update={"calibration": data.record})
    fitted = Calibrated(data, by_module, count_expert_tokens(variant.model, data.ids))
    notes = (*variant.notes, *data.notes, *_note_unreached(fitted.tokens))
    return replace(variant, identity=identity, calibration=fitted, notes=notes)


def input_ranges(loaded: LoadedModel, documents: list[Tensor]) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of every linear layer but the head, and of stacked experts, over all documents.

    One pass. Inputs are recorded before the layer itself rounds them. A layer that no document reaches (an expert, for
    example) is excluded. NaN makes both ends NaN, and then no value lies inside.
    """
    ends: dict[str, Tensor] = {}

    def record(name: str, input_NI: Tensor) -> None:
        if input_NI.numel():
            low, high = input_NI.aminmax()
            both = torch.stack([-low, high]).float()
            ends[name] = torch.maximum(ends[name], both) if name in ends else both

    model, stage = loaded.model, ActiveSide()
    names = [name for name, kind in candidates(model).items() if kind in ("linear", "experts")]
    taps = {name: [partial(record, name)] for name in names}
    with torch.no_grad(), attach_taps(model, 0, stage, taps, {}), stage.activate(0):
        for ids in documents:
            model(input_ids=ids[None].to(model.device), use_cache=False)
    return {name: (-low, high) for name, (low, high) in ((name, end.tolist()) for name, end in ends.items())}


def _note_unreached(tokens: Mapping[str, tuple[int, ...]]) -> list[Note]:
    """A warning that names the experts to which no calibration token was routed."""
    unreached = {path: [str(e) for e, count in enumerate(counts) if not count] for path, counts in tokens.items()}
    if not any(unreached.values()):
        return []
    total, every = sum(map(len, unreached.values())), sum(map(len, tokens.values()))
    listed = "; ".join(f"{path}: {', '.join(numbers)}" for path, numbers in unreached.items() if numbers)
    text = f"{total} of {every} experts received no token of the calibration documents: {listed}"
    return [Note(topic="experts", text=text, level="warn")]


def name_source(spec: CalibrationSpec | TrainingSpec) -> str:
    """The source of documents with what selects them."""
    name = spec.data
    if isinstance(name, HubData):
        return " ".join(part for part in (name.hub, name.config, name.split, name.revision) if part)
    return f"{name}, seed {spec.seed}" if spec.seed else name


def note_missing(
    key: str, spec: CalibrationSpec | TrainingSpec, count: int, encoded: Sequence[EncodedDocument]
) -> list[Note]:
    """Warnings that a source has fewer than ``count`` documents, or some that are too short."""
    texts, kept = [], sum(not document.skipped for document in encoded)
    if len(encoded) < count:
        texts.append(f"{count} documents were requested, {len(encoded)} are available")
    if kept < len(encoded):
        texts.append(f"{len(encoded) - kept} of {len(encoded)} documents have fewer than 2 tokens and were left out")
    return [Note(topic=key, text=f"{text} in {name_source(spec)}", level="warn") for text in texts]
