"""The teacher-forced pass shared by all pass probes.

Each batch goes through the reference once and through each variant once. Hooks are attached once. Hidden states are
kept for the whole batch, logits only for a chunk of rows. The rows of a batch are committed as one unit, so a killed
pass resumes at the batch it was in and produces the same tables as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data.encoding import EncodedDocument
from harness.errors import DataError, ModelError, is_out_of_memory
from harness.lockstep.arrangement import Arrange
from harness.lockstep.batches import Batch, plan_stages
from harness.lockstep.decoder import VERIFIED_TOKENS, Decoder
from harness.lockstep.hooks import ActiveSide, attach_taps
from harness.lockstep.idle import Watch
from harness.lockstep.kernels import Choice, Kernels, choose_kernels
from harness.lockstep.pass_report import SETUP, PassReport, read_report, write_report
from harness.lockstep.recording import REFERENCE, Idle, Looks, PassContext, Recorder, Recording, Tap, collect_taps
from harness.lockstep.repeat import measure_repeat
from harness.lockstep.survey import survey
from harness.models.coverage.untouched import note_untouched
from harness.models.vocabulary import count_common_logits, explain_width_difference
from harness.modules.layer_pairs import LayerPairs, pair_layers
from harness.progress import Progress
from harness.records import Note
from harness.system.foreign import guard
from harness.tables.access import Sink

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.loaded import LoadedModel

_BatchRows = tuple[dict[str, "pd.DataFrame"], dict[str, "pd.DataFrame"]]
"""Rows and running tables, by table name."""
CPU_TOKENS, GPU_TOKENS = 1024, 4096
"""Positions in a batch. On a CPU, larger batches gain nothing and need more memory."""
CHUNK_VALUES = 2**23
"""Logits of one side in memory at a time."""


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
    """Run all models on all documents for all probes, and commit the recorded rows batch by batch.

    sinks: one per variant. Besides the probes' tables, each gets ``documents``, ``pass`` and ``notes``. If a variant
    has another number of logits than the reference, only ids of both tokenizers are compared.
    arranged: for each variant, its batch layout if it differs from the reference's; such a pass does not measure
    whether the reference repeats itself.
    looks: decides at interim looks which variants need more documents; without it all variants get all documents.
    Raises DataError if there is nothing to score, ModelError if the two sides cannot be compared.
    """
    ways = (None, *(arranged or (None,) * len(variants)))
    every = (reference, *variants)
    sides = [Decoder(loaded.name, loaded.language_model, way) for loaded, way in zip(every, ways, strict=True)]
    tokens = batch_tokens or (CPU_TOKENS if sides[0].device.type == "cpu" else GPU_TOKENS)
    stages = plan_stages(documents, tokens, looks.sizes if looks else ())
    batches = [batch for stage in stages for batch in stage]
    if not batches:
        raise DataError(f"none of {len(documents)} documents has a token to score; check the suite's documents")
    if all(sink.done(SETUP) for sink in sinks) and _is_finished(stages, sinks, looks):
        return read_report(sinks)
    # Not inference_mode, here and elsewhere: tensors of some libraries (quanto with 4 bits) cannot be used in it.
    with torch.no_grad():
        ready = _prepare(sides, every, batches, documents, probes, sinks, kernel, repeating=not arranged)
        ready.go(stages, sinks, progress, looks)
    report = read_report(sinks)
    return replace(report, notes=report.notes + ready.late_notes)


def _stages(
    stages: Sequence[Sequence[Batch]], variants: int, looks: Looks | None
) -> Iterator[tuple[Sequence[Batch], Sequence[int]]]:
    """Each stage with the variants that need it; commit a whole stage before requesting the next."""
    going = list(range(variants))
    for number, batches in enumerate(stages):
        if looks is not None and number > 0:
            going = [variant for variant in going if looks.goes_on(variant, number - 1)]
        if not going:
            return
        yield batches, going


def _is_finished(stages: Sequence[Sequence[Batch]], sinks: Sequence[Sink], looks: Looks | None) -> bool:
    """Whether every variant has all the batches it needs, so that no model has to run."""
    return all(
        sinks[variant].done(batch.unit)
        for batches, going in _stages(stages, len(sinks), looks)
        for batch in batches
        for variant in going
    )


@dataclass
class _Pass:
    """State that does not change between batches."""

    sides: Sequence[Decoder]
    recorders: Sequence[Recorder]
    stage: ActiveSide
    chunk: int
    kept: tuple[int | None, ...]
    """For every variant: number of logits compared, the rest being extra ids (None: all)."""
    pairs: tuple[LayerPairs, ...]
    late_notes: tuple[Note, ...]
    """Notes that hold for this process only."""

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
        """Run all batches that some variant needs and its sink lacks."""
        for recorder in self.recorders:
            for variant, sink in enumerate(sinks):
                if recorder.running and (totals := sink.read(recorder.running)) is not None:
                    recorder.resume(variant, totals)
        total = sum(map(len, stages))
        with self._attach_hooks():
            for batch, going in (
                (batch, going) for some, going in _stages(stages, len(sinks), looks) for batch in some
            ):
                progress.step("shared pass", batch.index, total)
                lacking = [variant for variant in going if not sinks[variant].done(batch.unit)]
                batch_rows = self._observe(batch, lacking) if lacking else {}
                for variant, (rows, running) in batch_rows.items():
                    sinks[variant].commit(batch.unit, rows, running)
        progress.step("shared pass", total, total)

    @contextmanager
    def _attach_hooks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for side, decoder in enumerate(self.sides, start=REFERENCE):
                if decoder.modules is None:
                    continue
                inputs = collect_taps(self.recorders, side, inputs=True)
                outputs = collect_taps(self.recorders, side, inputs=False)
                if side != REFERENCE:
                    inputs, outputs = (_rename(taps, self.pairs[side]) for taps in (inputs, outputs))
                inputs, outputs = decoder.wrap_taps(inputs), decoder.wrap_taps(outputs)
                calls = [pair for recorder in self.recorders for pair in recorder.calls(side).items()]
                stack.enter_context(attach_taps(decoder.modules, side, self.stage, inputs, outputs, calls))
            yield

    def _observe(self, batch: Batch, variants: Sequence[int]) -> dict[int, _BatchRows]:
        """The rows of one batch for each given variant. If memory runs out, both sides run it in halves."""
        try:
            self._run_batch(batch, variants)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch.documents) == 1:
                raise ModelError(
                    f"memory ran out on the single document {batch.documents[0].id} of {batch.width} tokens ({error}); "
                    "set documents.context lower or use a larger machine; earlier measurements are kept"
                ) from error
        else:
            return {variant: self._collect_rows(variant) for variant in variants}
        middle = len(batch.documents) // 2
        halves = [Batch(batch.index, part) for part in (batch.documents[:middle], batch.documents[middle:])]
        first, second = (self._observe(half, variants) for half in halves)
        return {variant: _join(first[variant], second[variant]) for variant in variants}

    def _run_batch(self, batch: Batch, variants: Sequence[int]) -> None:
        """One batch through the reference and the given variants."""
        for recorder in self.recorders:
            recorder.start(batch)
        states = {side: self._scored_states(side, batch) for side in (REFERENCE, *variants)}
        for recorder in self.recorders:
            recorder.release_inputs()
        if not self.reads_logits:
            return
        targets_N = batch.index_scored(self.sides[0].device)[1]
        starts = range(0, len(targets_N), self.chunk)
        for rows in (slice(start, start + self.chunk) for start in starts):
            reference_NV = self.sides[0].logits(states[REFERENCE][rows])
            for variant in variants:
                variant_NV = self.sides[variant + 1].logits(states[variant][rows]).to(reference_NV.device)
                kept = self.kept[variant]
                for recorder in self.recorders:
                    recorder.logits(variant, reference_NV[:, :kept], variant_NV[:, :kept], targets_N[rows])
                    if kept is not None:
                        recorder.extra_logits(variant, reference_NV[:, kept:], variant_NV[:, kept:])

    def _scored_states(self, side: int, batch: Batch) -> Tensor:
        """Hidden states of the scored positions, with the hooks of the side active."""
        decoder = self.sides[side + 1]
        with self.stage.activate(side), guard(f"{decoder.name}: its forward pass"):
            return decoder.scored_states(batch)

    def _collect_rows(self, variant: int) -> _BatchRows:
        rows: dict[str, pd.DataFrame] = {}
        totals: dict[str, pd.DataFrame] = {}
        for recorder in self.recorders:
            rows |= recorder.rows(variant)
            if recorder.running:
                totals[recorder.running] = recorder.totals(variant)
        return rows, totals


def _rename(taps: Mapping[str, list[Tap]], pairs: LayerPairs) -> dict[str, list[Tap]]:
    """Taps by the names that the variant gives to the modules of the reference."""
    return {other: own for name, own in taps.items() if (other := pairs.find_in_variant(name)) is not None}


def _join(first: _BatchRows, second: _BatchRows) -> _BatchRows:
    """Concatenate the rows of both halves of a batch; running tables are those after the second half."""
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
    """Survey the models, choose kernels, start the probes, and commit the report before the first batch."""
    _check_ids(sides, documents)
    first_ids = torch.from_numpy(batches[0].documents[0].ids[:VERIFIED_TOKENS])[None]
    # Conditions of a noise floor run the same modules, so only the ordinary pass is watched.
    watches = [Watch(side.modules if repeating else None) for side in sides]
    logits = []
    for side, watch in zip(sides, watches, strict=True):
        with watch.watching():
            logits.append(side.prepare(first_ids.to(side.device)))
    dtype = _check_logits(logits, sides)
    kept = tuple(_count_compared(logits, sides, loaded, index) for index in range(1, len(sides)))
    vocabulary = max(found.shape[-1] for found in logits)
    chunk = max(16, CHUNK_VALUES // vocabulary)
    earlier = [sink for sink in sinks if sink.done(SETUP)]
    wanted = read_report(earlier).kernel if earlier else choice
    scored = sum(length - 1 for batch in batches for length in batch.lengths)
    kernels = choose_kernels(wanted, scored, vocabulary, dtype, sides[0].device)
    both = zip(sides[1:], loaded[1:], strict=True)
    pairs = tuple(pair_layers(sides[0].modules, side.modules, variant.layers) for side, variant in both)
    layout = survey(sides[0], sides[1:], first_ids, vocabulary, pairs, tuple(watch.idle() for watch in watches))
    fitted = tuple(variant.calibration for variant in loaded[1:])
    context = PassContext(layout, len(sides) - 1, kernels, fitted, tuple(loaded))
    recorders = [probe.begin(context) for probe in probes]
    if len(earlier) < len(sinks):
        watching = any(recorder.inputs(REFERENCE) or recorder.outputs(REFERENCE) for recorder in recorders)
        repeat = read_report(earlier).repeat if earlier else None
        if repeating and repeat is None:
            repeat = measure_repeat(sides[0], batches[0], kernels, chunk)
        report = PassReport(
            notes=tuple(_notes(sides[0], dtype, kernels)),
            variant_notes=tuple(
                (*_whole_notes(side), *_extra_notes(logits[0], found, count, side.name), *said)
                for side, found, count, said in zip(
                    sides[1:], logits[1:], kept, _untouched_notes(loaded, layout.idle), strict=True
                )
            ),
            repeat=repeat,
            unpaired=tuple(dict(missing) if watching else {} for missing in layout.unpaired),
            expected=layout.expected,
            kernel=kernels.name,
        )
        write_report(report, documents, sinks)
    late = (Note(topic="pass", text=kernels.note, level="warn"),) if earlier and kernels.note else ()
    return _Pass(sides, recorders, ActiveSide(), chunk, kept, pairs, late)


def _untouched_notes(loaded: Sequence[LoadedModel], idle: Sequence[Idle]) -> list[list[Note]]:
    """Of every variant: what no text runs of it."""
    return [
        list(note_untouched(loaded[0], variant, [idle[0].modules, own.modules]))
        for variant, own in zip(loaded[1:], idle[1:], strict=True)
    ]


def _notes(reference: Decoder, dtype: torch.dtype, kernels: Kernels) -> Iterator[Note]:
    yield from _whole_notes(reference)
    if kernels.note:
        yield Note(topic="pass", text=kernels.note)
    if torch.finfo(dtype).bits < 32:
        text = (
            f"logits are {str(dtype).removeprefix('torch.')}: their rounding alone can cause a KL near "
            f"{5e-4 if dtype == torch.bfloat16 else 1e-5:.0e} nats per token; smaller divergences are meaningless"
        )
        yield Note(topic="precision", text=text)


def _whole_notes(side: Decoder) -> Iterator[Note]:
    if side.whole:
        text = f"{side.name}: logits of whole batches are kept, which needs more memory: {side.whole}"
        yield Note(topic="pass", text=text)


def _check_ids(sides: Sequence[Decoder], documents: Sequence[EncodedDocument]) -> None:
    for side in sides:
        known = side.language_model.token_ids
        for document in documents:
            if len(document.ids) and not 0 <= document.ids.min() <= document.ids.max() < known:
                raise ModelError(
                    f"{side.name}: document {document.id} has token ids up to {document.ids.max()}, expected 0 "
                    f"to {known - 1}; tokenizer and model do not belong together"
                )


def _check_logits(logits_TV: Sequence[Tensor], sides: Sequence[Decoder]) -> torch.dtype:
    """The logit dtype of both sides. Raises ModelError if they differ."""
    reference = logits_TV[0]
    for side, logits in zip(sides[1:], logits_TV[1:], strict=True):
        if logits.dtype != reference.dtype:
            raise ModelError(
                f"{side.name}: found logits of {logits.dtype}, expected {reference.dtype} as in {sides[0].name}, or "
                "precision would count as degradation: set reference.dtype and variant.dtype alike"
            )
    return reference.dtype


def _count_compared(
    logits_TV: Sequence[Tensor], sides: Sequence[Decoder], loaded: Sequence[LoadedModel], index: int
) -> int | None:
    """Number of logits of a variant to compare (None: all). If the widths differ, broadcasting would be wrong."""
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


def _extra_notes(reference_TV: Tensor, variant_TV: Tensor, kept: int | None, name: str) -> Iterator[Note]:
    if kept is not None:
        rows = [logits.shape[-1] - kept for logits in (reference_TV, variant_TV)]
        text = (
            f"{name}: {kept} logits per token are compared, one per id of both tokenizers; {rows[1]} extra ids of the "
            f"variant and {rows[0]} of the reference are left out"
        )
        yield Note(topic="vocabulary", text=text)
