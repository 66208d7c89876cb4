"""The one teacher-forced pass that all pass probes share.

Each batch goes through the reference once and through each variant once. Hooks are attached once. Hidden
states of the batch are kept, logits only of a chunk of rows. What the batch left behind is committed as one
unit, so a killed pass goes on at the batch it was in and leaves the same tables as one that was never
disturbed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data.encoding import EncodedDocument
from harness.errors import DataError, ModelError
from harness.lockstep.arrangement import Arrange
from harness.lockstep.batches import Batch, plan_stages
from harness.lockstep.decoder import VERIFIED_TOKENS, Decoder
from harness.lockstep.hooks import Stage, attached
from harness.lockstep.kernels import Choice, Kernels, choose_kernels
from harness.lockstep.pass_report import SETUP, PassReport, read_report, write_report
from harness.lockstep.recording import REFERENCE, Looks, PassContext, Recorder, Recording, collect_taps
from harness.lockstep.repeat import measure_repeat
from harness.lockstep.survey import survey
from harness.models.vocabulary import count_common_logits, explain_width_difference
from harness.progress import Progress
from harness.records import Note
from harness.tables.access import Sink

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.loaded import LoadedModel

_Found = tuple[dict[str, "pd.DataFrame"], dict[str, "pd.DataFrame"]]
"""Rows and running tables, by table name."""
CPU_TOKENS, GPU_TOKENS = 1024, 4096
"""Positions in a batch. On a processor larger batches gain nothing and take memory."""
CHUNK_VALUES = 2**23
"""Logits of one side that exist at a time."""


def shared_pass(
    reference: LoadedModel,
    variants: Sequence[LoadedModel],
    documents: Sequence[EncodedDocument],
    probes: Sequence[Recording],
    sinks: Sequence[Sink],
    progress: Progress,
    *,
    batch_tokens: int | None = None,
    kernel: Choice = "auto",
    arranged: Sequence[Arrange | None] = (),
    looks: Looks | None = None,
) -> PassReport:
    """Let every probe see all models on all documents, and commit what it records batch by batch.

    sinks: one for each variant. Besides the probes' tables, each gets ``documents``, ``pass`` and ``notes``. Logits
    beyond every id of the tokenizers are left out where a variant has another number of them than the reference.
    arranged: for each variant, how the documents of a batch run where they do not run as those of the reference do;
    such a pass does not look whether the reference repeats itself.
    looks: where to ask which variants need more documents; without it all of them get all.
    Raises DataError when there is nothing to score, ModelError when the two sides cannot be compared.
    """
    ways = (None, *(arranged or (None,) * len(variants)))
    every = (reference, *variants)
    sides = [Decoder(loaded.name, loaded.language_model, way) for loaded, way in zip(every, ways, strict=True)]
    tokens = batch_tokens or (CPU_TOKENS if sides[0].device.type == "cpu" else GPU_TOKENS)
    stages = plan_stages(documents, tokens, looks.sizes if looks else ())
    batches = [batch for stage in stages for batch in stage]
    if not batches:
        raise DataError(f"none of {len(documents)} documents has a token to score; check the suite's documents")
    if all(sink.done(SETUP) for sink in sinks) and _finished(stages, sinks, looks):
        return read_report(sinks)
    # Not inference_mode, here and elsewhere: tensors of some libraries (quanto with 4 bits) cannot be used in it.
    with torch.no_grad():
        ready = _prepare(sides, every, batches, documents, probes, sinks, kernel, repeating=not arranged)
        ready.go(stages, sinks, progress, looks)
    report = read_report(sinks)
    return replace(report, notes=report.notes + ready.late_notes)


def _going(
    stages: Sequence[Sequence[Batch]], variants: int, looks: Looks | None
) -> Iterator[tuple[Sequence[Batch], Sequence[int]]]:
    """Each stage with the variants that need it; all of a stage must be committed before the next is asked for."""
    going = list(range(variants))
    for number, batches in enumerate(stages):
        if looks is not None and number > 0:
            going = [variant for variant in going if looks.goes_on(variant, number - 1)]
        if not going:
            return
        yield batches, going


def _finished(stages: Sequence[Sequence[Batch]], sinks: Sequence[Sink], looks: Looks | None) -> bool:
    """Whether every variant has all the batches that it needs, so that no model has to run."""
    return all(
        sinks[variant].done(batch.unit)
        for batches, going in _going(stages, len(sinks), looks)
        for batch in batches
        for variant in going
    )


@dataclass
class _Pass:
    """Everything that stays the same from batch to batch."""

    sides: Sequence[Decoder]
    recorders: Sequence[Recorder]
    stage: Stage
    chunk: int
    kept: tuple[int | None, ...]
    """Of every variant: how many logits are compared, the rest being padding (None: all)."""
    late_notes: tuple[Note, ...]
    """What holds for this process only."""

    @property
    def reads_logits(self) -> bool:
        return any(recorder.reads_logits for recorder in self.recorders)

    def go(
        self,
        stages: Sequence[Sequence[Batch]],
        sinks: Sequence[Sink],
        progress: Progress,
        looks: Looks | None,
    ) -> None:
        """All batches that some variant needs and its sink lacks."""
        for recorder in self.recorders:
            for variant, sink in enumerate(sinks):
                if recorder.running and (totals := sink.read(recorder.running)) is not None:
                    recorder.resume(variant, totals)
        total = sum(map(len, stages))
        with self._hooks():
            for batch, going in ((batch, going) for some, going in _going(stages, len(sinks), looks) for batch in some):
                progress.step("shared pass", batch.index, total)
                lacking = [variant for variant in going if not sinks[variant].done(batch.unit)]
                found = self._observe(batch, lacking) if lacking else {}
                for variant, (rows, running) in found.items():
                    sinks[variant].commit(batch.unit, rows, running)
        progress.step("shared pass", total, total)

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for side, decoder in enumerate(self.sides, start=REFERENCE):
                if decoder.modules is None:
                    continue
                inputs = collect_taps(self.recorders, side, inputs=True)
                outputs = collect_taps(self.recorders, side, inputs=False)
                inputs, outputs = decoder.watched(inputs), decoder.watched(outputs)
                calls = [pair for recorder in self.recorders for pair in recorder.calls(side).items()]
                stack.enter_context(attached(decoder.modules, side, self.stage, inputs, outputs, calls))
            yield

    def _observe(self, batch: Batch, variants: Sequence[int]) -> dict[int, _Found]:
        """What one batch leaves of each given variant. Where memory runs out, its halves do, for both sides."""
        try:
            self._run(batch, variants)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch.documents) == 1:
                raise ModelError(
                    f"memory ran out on document {batch.documents[0].id} of {batch.width} tokens alone ({error}); "
                    "set documents.context lower or use a larger machine; what was measured before is kept"
                ) from error
        else:
            return {variant: self._found(variant) for variant in variants}
        middle = len(batch.documents) // 2
        halves = [Batch(batch.index, part) for part in (batch.documents[:middle], batch.documents[middle:])]
        first, second = (self._observe(half, variants) for half in halves)
        return {variant: _joined(first[variant], second[variant]) for variant in variants}

    def _run(self, batch: Batch, variants: Sequence[int]) -> None:
        """One batch through the reference and the given variants."""
        for recorder in self.recorders:
            recorder.start(batch)
        states = {side: self._states(side, batch) for side in (REFERENCE, *variants)}
        for recorder in self.recorders:
            recorder.forwarded()
        if not self.reads_logits:
            return
        targets_N = batch.scored(self.sides[0].device)[1]
        starts = range(0, len(targets_N), self.chunk)
        for rows in (slice(start, start + self.chunk) for start in starts):
            reference_NV = self.sides[0].logits(states[REFERENCE][rows])
            for variant in variants:
                variant_NV = self.sides[variant + 1].logits(states[variant][rows]).to(reference_NV.device)
                kept = self.kept[variant]
                for recorder in self.recorders:
                    recorder.logits(variant, reference_NV[:, :kept], variant_NV[:, :kept], targets_N[rows])

    def _states(self, side: int, batch: Batch) -> Tensor:
        """Hidden states of the scored positions, with the hooks of the side listening."""
        with self.stage.playing(side):
            return self.sides[side + 1].scored_states(batch)

    def _found(self, variant: int) -> _Found:
        rows: dict[str, pd.DataFrame] = {}
        totals: dict[str, pd.DataFrame] = {}
        for recorder in self.recorders:
            rows |= recorder.rows(variant)
            if recorder.running:
                totals[recorder.running] = recorder.totals(variant)
        return rows, totals


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch means that memory ran out; on a processor only its text says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _joined(first: _Found, second: _Found) -> _Found:
    """Rows of both halves of a batch, and the running tables after the second."""
    import pandas as pd

    rows = {name: pd.concat([first[0][name], second[0][name]], ignore_index=True) for name in first[0]}
    return rows, second[1]


def _prepare(
    sides: Sequence[Decoder],
    loaded: Sequence[LoadedModel],
    batches: Sequence[Batch],
    documents: Sequence[EncodedDocument],
    probes: Sequence[Recording],
    sinks: Sequence[Sink],
    choice: Choice,
    repeating: bool,
) -> _Pass:
    """Survey the models, choose kernels, let the probes begin, and commit what is known before any batch."""
    _check_ids(sides, documents)
    first_ids = torch.from_numpy(batches[0].documents[0].ids[:VERIFIED_TOKENS])[None]
    logits = [side.prepare(first_ids.to(side.device)) for side in sides]
    dtype = _check_logits(logits, sides)
    kept = tuple(_kept(logits, sides, loaded, index) for index in range(1, len(sides)))
    vocabulary = max(found.shape[-1] for found in logits)
    chunk = max(16, CHUNK_VALUES // vocabulary)
    earlier = [sink for sink in sinks if sink.done(SETUP)]
    wanted = read_report(earlier).kernel if earlier else choice
    scored = sum(length - 1 for batch in batches for length in batch.lengths)
    kernels = choose_kernels(wanted, scored, vocabulary, dtype, sides[0].device)
    layout = survey(sides[0], sides[1:], first_ids, vocabulary)
    fitted = tuple(variant.calibration for variant in loaded[1:])
    recorders = [probe.begin(PassContext(layout, len(sides) - 1, kernels, fitted)) for probe in probes]
    if len(earlier) < len(sinks):
        watching = any(recorder.inputs(REFERENCE) or recorder.outputs(REFERENCE) for recorder in recorders)
        repeat = read_report(earlier).repeat if earlier else None
        if repeating and repeat is None:
            repeat = measure_repeat(sides[0], batches[0], kernels, chunk)
        report = PassReport(
            notes=tuple(_notes(sides[0], dtype, kernels)),
            variant_notes=tuple(
                (*_whole_notes(side), *_padding_notes(logits[0], found, count, side.name))
                for side, found, count in zip(sides[1:], logits[1:], kept, strict=True)
            ),
            repeat=repeat,
            unpaired=tuple(dict(missing) if watching else {} for missing in layout.unpaired),
            kernel=kernels.name,
        )
        write_report(report, documents, sinks)
    late = (Note(topic="pass", text=kernels.note, level="warn"),) if earlier and kernels.note else ()
    return _Pass(sides, recorders, Stage(), chunk, kept, late)


def _notes(reference: Decoder, dtype: torch.dtype, kernels: Kernels) -> Iterator[Note]:
    yield from _whole_notes(reference)
    if kernels.note:
        yield Note(topic="pass", text=kernels.note)
    if torch.finfo(dtype).bits < 32:
        text = (
            f"logits are {str(dtype).removeprefix('torch.')}: their rounding alone can make a KL near "
            f"{5e-4 if dtype == torch.bfloat16 else 1e-5:.0e} nats per token; smaller divergences say nothing"
        )
        yield Note(topic="precision", text=text)


def _whole_notes(side: Decoder) -> Iterator[Note]:
    if side.whole:
        text = f"{side.name}: logits of whole batches are kept, which takes more memory: {side.whole}"
        yield Note(topic="pass", text=text)


def _check_ids(sides: Sequence[Decoder], documents: Sequence[EncodedDocument]) -> None:
    for side in sides:
        known = side.language_model.token_ids
        for document in documents:
            if len(document.ids) and not 0 <= document.ids.min() <= document.ids.max() < known:
                raise ModelError(
                    f"{side.name}: document {document.id} has token ids up to {document.ids.max()}, wanted 0 "
                    f"to {known - 1}; tokenizer and model do not belong together"
                )


def _check_logits(logits_TV: Sequence[Tensor], sides: Sequence[Decoder]) -> torch.dtype:
    """The dtype of both sides. Raises ModelError where they differ."""
    reference = logits_TV[0]
    for side, found in zip(sides[1:], logits_TV[1:], strict=True):
        if found.dtype != reference.dtype:
            raise ModelError(
                f"{side.name}: found logits of {found.dtype}, wanted {reference.dtype} as {sides[0].name} has"
                ", or precision would count as damage: set reference.dtype and variant.dtype alike"
            )
    return reference.dtype


def _kept(
    logits_TV: Sequence[Tensor], sides: Sequence[Decoder], loaded: Sequence[LoadedModel], index: int
) -> int | None:
    """How many logits of a variant are compared (None: all). Where numbers differ, broadcasting would be wrong."""
    widths = logits_TV[0].shape[-1], logits_TV[index].shape[-1]
    if widths[0] == widths[1]:
        return None
    tokenizers = loaded[0].tokenizer, loaded[index].tokenizer
    if (kept := count_common_logits(widths, tokenizers)) is None:
        raise ModelError(
            f"{sides[index].name}: {explain_width_difference(widths, tokenizers)}; different vocabularies cannot be "
            "compared token by token"
        )
    return kept


def _padding_notes(reference_TV: Tensor, variant_TV: Tensor, kept: int | None, name: str) -> Iterator[Note]:
    if kept is not None:
        rows = [logits.shape[-1] - kept for logits in (reference_TV, variant_TV)]
        text = (
            f"{name}: {kept} logits of a token are compared, one for every id of the tokenizer; {rows[1]} rows of "
            f"padding of the variant and {rows[0]} of the reference are left out, as whoever serves the model must do"
        )
        yield Note(topic="vocabulary", text=text)
