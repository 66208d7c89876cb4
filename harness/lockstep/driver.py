"""The teacher-forced pass shared by all pass probes.

Each batch goes through the reference once and through each variant once, in turns (see ``turns``). Hooks are attached
once a stage. Hidden states are kept for the whole batch, logits only for a chunk of rows. The rows of a block of
batches are committed as one unit and depend on no other block, so a killed pass resumes at the block it was in, other
processes may compute some of the blocks, and the tables are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.data.encoding import EncodedDocument
from harness.errors import DataError, ModelError, is_out_of_memory
from harness.lockstep.arrangement import Arrange
from harness.lockstep.batches import Batch, Block, plan_stages
from harness.lockstep.decoder import VERIFIED_TOKENS, Decoder
from harness.lockstep.hooks import ActiveSide, attach_taps
from harness.lockstep.idle import Watch
from harness.lockstep.kernels import Choice, Kernels, choose_kernels
from harness.lockstep.pass_report import PassReport, read_report, write_report
from harness.lockstep.recording import REFERENCE, Idle, Looks, PassContext, Recorder, Recording, Tap, collect_taps
from harness.lockstep.repeat import measure_repeat
from harness.lockstep.sides import check_ids, check_logits, count_compared, note_extra_logits
from harness.lockstep.stages import SETUP, Wanted, run_stages, store_sums
from harness.lockstep.survey import survey
from harness.lockstep.turns import CannotTakeTurnsError, Turns, find_turns
from harness.models.coverage.untouched import note_untouched
from harness.modules.layer_pairs import LayerPairs, pair_layers
from harness.progress import Progress
from harness.records import Note
from harness.system.foreign import guard
from harness.tables.access import Sink

if TYPE_CHECKING:
    import pandas as pd

    from harness.models.loaded import LoadedModel

_Rows = dict[str, "pd.DataFrame"]
"""Rows by table name."""
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
    """Run all models on all documents for all probes, and commit the recorded rows block by block.

    sinks: one per variant. Besides the probes' tables, each gets ``documents``, ``pass`` and ``notes``. If a variant
    has another number of logits than the reference, only ids of both tokenizers are compared.
    arranged: for each variant, its batch layout if it differs from the reference's; such a pass does not measure
    whether the reference repeats itself.
    looks: decides at interim looks which variants need more documents; without it all variants get all documents.
    Raises DataError if there is nothing to score, ModelError if the two sides cannot be compared.
    """
    sizes = looks.sizes if looks else ()
    models = (reference, *variants)
    live = LivePass(models, documents, probes, sinks, progress, batch_tokens, kernel, arranged, sizes)
    live.set_up()
    run_stages(live.stages, sinks, looks, live.run)
    for sink in sinks:
        store_sums(probes, sink)
    report = read_report(sinks)
    return replace(report, notes=report.notes + live.late_notes)


class LivePass:
    """A pass that may be asked for any of its blocks, in any order. Models are prepared when the first is asked for."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        documents: Sequence[EncodedDocument],
        probes: Sequence[Recording],
        sinks: Sequence[Sink],
        progress: Progress,
        batch_tokens: int | None = None,
        kernel: Choice = "auto",
        arranged: Sequence[Arrange | None] = (),
        sizes: Sequence[int] = (),
    ) -> None:
        """models: the reference, then the variants. sizes: those of the looks. See ``shared_pass`` for the rest.

        Raises DataError if there is nothing to score.
        """
        self._every, self._documents, self._probes = models, documents, probes
        self._sinks, self._progress, self._kernel, self._repeating = sinks, progress, kernel, not arranged
        ways = (None, *(arranged or (None,) * len(models[1:])))
        both = zip(self._every, ways, strict=True)
        self._sides = [Decoder(loaded.name, loaded.language_model, way) for loaded, way in both]
        tokens = batch_tokens or (CPU_TOKENS if self._sides[0].device.type == "cpu" else GPU_TOKENS)
        self.stages = plan_stages(documents, tokens, sizes)
        if not any(self.stages):
            raise DataError(f"none of {len(documents)} documents has a token to score; check the suite's documents")
        self._ready: _Pass | None = None

    @property
    def late_notes(self) -> tuple[Note, ...]:
        """Notes that hold for this process only."""
        return self._ready.late_notes if self._ready else ()

    def set_up(self) -> None:
        """See that every sink has the report of the pass."""
        if not all(sink.done(SETUP) for sink in self._sinks):
            self._prepare()

    def run(self, wanted: Wanted) -> None:
        """Compute some blocks, each for the variants that lack it, and commit their rows."""
        # Not inference_mode, here and elsewhere: tensors of some libraries (quanto with 4 bits) cannot be used in it.
        with torch.no_grad():
            self._prepare().go(wanted, self._sinks, self._progress)

    def _prepare(self) -> _Pass:
        if self._ready is None:
            batches = [batch for stage in self.stages for block in stage for batch in block.batches]
            with torch.no_grad():
                self._ready = _prepare(
                    self._sides,
                    self._every,
                    batches,
                    self._documents,
                    self._probes,
                    self._sinks,
                    self._kernel,
                    self._repeating,
                )
        return self._ready


@dataclass
class _Pass:
    """State that does not change between batches."""

    sides: Sequence[Decoder]
    probes: Sequence[Recording]
    recorders: Sequence[Recorder]
    """One for each probe."""
    stage: ActiveSide
    chunk: int
    kept: tuple[int | None, ...]
    """For every variant: number of logits compared, the rest being extra ids (None: all)."""
    pairs: tuple[LayerPairs, ...]
    late_notes: tuple[Note, ...]
    batches: int
    """How many there are at most, for the progress."""
    in_turns: bool = True
    """Whether the sides run each batch in turns, if they can."""

    @property
    def reads_logits(self) -> bool:
        return any(recorder.reads_logits for recorder in self.recorders)

    def go(self, wanted: Wanted, sinks: Sequence[Sink], progress: Progress) -> None:
        """Run some blocks, each for some variants, and commit their rows."""
        with self._attach_hooks():
            for block, variants in wanted:
                for variant, rows in self._run_block(block, variants, progress).items():
                    sinks[variant].commit(block.unit, rows)
        last = max(batch.index for block, _ in wanted for batch in block.batches)
        progress.step("shared pass", last + 1, self.batches)

    def _run_block(self, block: Block, variants: Sequence[int], progress: Progress) -> dict[int, _Rows]:
        """The rows of a block for each given variant, with the sums over its batches."""
        found: dict[int, list[_Rows]] = {variant: [] for variant in variants}
        for recorder in self.recorders:
            recorder.start_block()
        for batch in block.batches:
            progress.step("shared pass", batch.index, self.batches)
            for variant, rows in self._observe(batch, variants).items():
                found[variant].append(rows)
        return {variant: _join(parts) | self._collect_sums(variant) for variant, parts in found.items()}

    def _collect_sums(self, variant: int) -> _Rows:
        found = {
            probe.sums: recorder.sums(variant) for probe, recorder in zip(self.probes, self.recorders, strict=True)
        }
        return {table: sums for table, sums in found.items() if sums is not None}

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
            if isinstance(self.stage, Turns):
                stack.enter_context(self.stage.attach())
            yield

    def _observe(self, batch: Batch, variants: Sequence[int]) -> dict[int, _Rows]:
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
        return {variant: _join([first[variant], second[variant]]) for variant in variants}

    def _run_batch(self, batch: Batch, variants: Sequence[int]) -> None:
        """One batch through the reference and the given variants."""
        for recorder in self.recorders:
            recorder.start(batch)
        states = self._compute_states(batch, (REFERENCE, *variants))
        for recorder in self.recorders:
            recorder.release_inputs()
        if not self.reads_logits:
            return
        targets_N = batch.index_scored(self.sides[0].device)[1]
        for start in range(0, len(targets_N), self.chunk):
            self._run_rows(slice(start, start + self.chunk), states, targets_N)

    def _run_rows(self, rows: slice, states: Mapping[int, Tensor], targets_N: Tensor) -> None:
        """The logits of some rows, of which no more than the reference's and one variant's are in memory."""
        reference_NV = self.sides[0].logits(states[REFERENCE][rows])
        for variant in (side for side in states if side != REFERENCE):
            variant_NV = self.sides[variant + 1].logits(states[variant][rows]).to(reference_NV.device)
            kept = self.kept[variant]
            for recorder in self.recorders:
                recorder.logits(variant, reference_NV[:, :kept], variant_NV[:, :kept], targets_N[rows])
                if kept is not None:
                    recorder.extra_logits(variant, kept, reference_NV, variant_NV, targets_N[rows])
            del variant_NV

    def _compute_states(self, batch: Batch, sides: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states of the scored positions of every side: in turns where that is possible."""
        if isinstance(self.stage, Turns) and self.in_turns:
            calls = {side: partial(self.sides[side + 1].scored_states, batch) for side in sides}
            names = {side: self.sides[side + 1].name for side in sides}
            try:
                with guard(f"forward passes of {', '.join(names.values())}", patience=len(sides)):
                    return self.stage.take(calls, names)
            except CannotTakeTurnsError:
                self.in_turns = False
                for recorder in self.recorders:
                    recorder.start(batch)
        return {side: self._scored_states(side, batch) for side in sides}

    def _scored_states(self, side: int, batch: Batch) -> Tensor:
        """Hidden states of the scored positions, with the hooks of the side active."""
        decoder = self.sides[side + 1]
        with self.stage.activate(side), guard(f"{decoder.name}: its forward pass"):
            return decoder.scored_states(batch)

    def _collect_rows(self, variant: int) -> _Rows:
        rows: _Rows = {}
        for recorder in self.recorders:
            rows |= recorder.rows(variant)
            recorder.add(variant)
        return rows


def _rename(taps: Mapping[str, list[Tap]], pairs: LayerPairs) -> dict[str, list[Tap]]:
    """Taps by the names that the variant gives to the modules of the reference."""
    return {other: own for name, own in taps.items() if (other := pairs.find_in_variant(name)) is not None}


def _join(parts: Sequence[_Rows]) -> _Rows:
    """Concatenate the rows of batches, or of parts of one."""
    import pandas as pd

    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: pd.concat([part[name] for part in parts if name in part], ignore_index=True) for name in names}


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
    check_ids(sides, documents)
    first_ids = torch.from_numpy(batches[0].documents[0].ids[:VERIFIED_TOKENS])[None]
    # Conditions of a noise floor run the same modules, so only the ordinary pass is watched.
    watches = [Watch(side.modules if repeating else None) for side in sides]
    logits = []
    for side, watch in zip(sides, watches, strict=True):
        with watch.watching():
            logits.append(side.prepare(first_ids.to(side.device)).to("meta"))  # Only their shape is asked for.
    dtype = check_logits(logits, sides)
    kept = tuple(count_compared(logits, sides, loaded, index) for index in range(1, len(sides)))
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
    watching = any(recorder.inputs(REFERENCE) or recorder.outputs(REFERENCE) for recorder in recorders)
    if len(earlier) < len(sinks):
        repeat = read_report(earlier).repeat if earlier else None
        if repeating and repeat is None:
            repeat = measure_repeat(sides[0], batches[0], kernels, chunk)
        report = PassReport(
            notes=tuple(_notes(sides[0], dtype, kernels)),
            variant_notes=tuple(
                (*_whole_notes(side), *note_extra_logits(logits[0], found, count, side.name), *said)
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
    stage = find_turns(sides, layout, first_ids) if repeating and watching else None
    return _Pass(sides, probes, recorders, stage or ActiveSide(), chunk, kept, pairs, late, len(batches))


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
