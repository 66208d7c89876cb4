"""The interface between probes and the shared pass. Nothing here loads torch.

    survey ─▶ Layout ─▶ probe.begin ─▶ Recorder
    for every batch:  start ─▶ taps: of each place the reference's first, then that of every variant
                      ─▶ logits, chunk by chunk ─▶ rows of each variant
    for every block of batches:  the sums over its batches (``sums``), which ``probe.combine`` adds up at the end

One recorder serves all variants, so that what it computes about the reference is computed once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from harness.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.data.calibration import Calibrated
    from harness.lockstep.batches import Batch
    from harness.lockstep.kernels import Kernels
    from harness.models.loaded import LoadedModel
    from harness.modules.experts import Experts
    from harness.modules.layer_pairs import LayerPairs

REFERENCE = -1
"""The side of the reference; variants are the sides 0, 1, …"""

ModuleKind = Literal["block", "attention", "mlp", "experts", "linear"]
Tap = Callable[["Tensor"], None]
"""Called with the input or output of one module as [B*T, width], padding included."""
CallTap = Callable[[tuple[Any, ...], Mapping[str, Any]], None]
"""Called with all that one module is called with: positional arguments, and those by name."""


@dataclass(frozen=True)
class OutputSite:
    """A module whose output is compared.

    depth: rank in order of execution. volatile: later code overwrites the output, so only a copy can be kept.
    same_as: an earlier site whose output is the very same tensor.
    """

    module: str
    kind: ModuleKind
    depth: int
    width: int
    volatile: bool = False
    same_as: str | None = None


@dataclass(frozen=True)
class InputSite:
    """A distinct input of linear layers or stacked experts, named after the first that reads it. layer: its block or
    -1."""

    module: str
    layer: int
    width: int


@dataclass(frozen=True)
class Idle:
    """What a text does not run. modules: those that store tensors and had no part in a pass over a text.

    tables: embeddings of which the pass read the rows that their input names, and no others. uncalled: modules that
    were never called, and whose weights others read (``dt_proj`` of Mamba).
    """

    modules: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Which modules a pass can watch. A module unpaired in one variant is watched in the others."""

    outputs: tuple[OutputSite, ...]
    inputs: tuple[InputSite, ...]
    vocabulary: int
    unpaired: tuple[Mapping[str, str], ...] = field(default_factory=tuple)
    """Of every variant: module name to the reason why it cannot be compared."""
    expected: tuple[frozenset[str], ...] = ()
    """Of every variant: those of them that say nothing about it. They cannot be observed in either model, or the
    declared map of layers leaves them out."""
    pairs: tuple[LayerPairs, ...] = ()
    """Of every variant: the counterparts of the reference's modules; none: all modules are paired by name."""

    def find_in_variant(self, variant: int, module: str) -> str | None:
        """A variant's name of a module of the reference, None if it has no counterpart."""
        return self.pairs[variant].find_in_variant(module) if self.pairs else module

    def find_in_reference(self, side: int, module: str) -> str | None:
        """The reference's name of a module of one side, None if it has no counterpart."""
        return module if side == REFERENCE or not self.pairs else self.pairs[side].find_in_reference(module)

    experts: tuple[tuple[Experts, ...], ...] = ()
    """The mixtures of experts of the reference, then those of every variant."""
    idle: tuple[Idle, ...] = ()
    """What a text does not run of the reference, then of every variant; nothing where nobody looked."""


@dataclass(frozen=True)
class PassContext:
    """What a recorder knows when the pass begins."""

    layout: Layout
    variants: int
    kernels: Kernels
    calibrations: tuple[Calibrated | None, ...] = ()
    """Of every variant: what it was fitted to, None where no step looked at documents."""
    models: tuple[LoadedModel, ...] = ()
    """The reference, then every variant."""


class Recorder:
    """What one probe collects in a shared pass; this base class collects nothing."""

    reads_logits: ClassVar[bool] = False

    def inputs(self, side: int) -> Mapping[str, Tap]:
        """Taps on module inputs of one side, by module name."""
        return {}

    def outputs(self, side: int) -> Mapping[str, Tap]:
        """Taps on module outputs of one side, by module name."""
        return {}

    def calls(self, side: int) -> Mapping[str, CallTap]:
        """Taps on whole calls of modules of one side, by module name: for what is not about one tensor."""
        return {}

    def start_block(self) -> None:
        """A block of batches begins: forget the sums of the one before."""

    def start(self, batch: Batch) -> None:
        """A batch begins: forget the one before."""

    def release_inputs(self) -> None:
        """Every side has run the batch: let go of what only taps need."""

    def logits(self, variant: int, reference_NV: Tensor, variant_NV: Tensor, targets_N: Tensor) -> None:
        """The next scored positions of the batch, in the order of ``Batch.index_scored``."""

    def extra_logits(
        self, variant: int, kept: int, reference_NV: Tensor, variant_NV: Tensor, targets_N: Tensor
    ) -> None:
        """All logits at the positions of the last ``logits``, whose widths may differ; the first ``kept`` of each row
        were compared."""

    def rows(self, variant: int) -> Mapping[str, pd.DataFrame]:
        """Rows about the batch, by table name."""
        return {}

    def add(self, variant: int) -> None:
        """Add the batch to the sums of the block. Called once a batch and variant."""

    def sums(self, variant: int) -> pd.DataFrame | None:
        """The sums of the block, for the table of the probe's ``sums``; None for a probe that has none."""
        return None


class Looks(Protocol):
    """Where a pass asks whether it may stop (see harness.concluding.extending)."""

    @property
    def sizes(self) -> Sequence[int]:
        """After how many of the documents with something to score."""
        ...

    def goes_on(self, variant: int, look: int) -> bool:
        """Whether a variant needs more documents than those of this look, which are committed."""
        ...


class Recording(Protocol):
    """A probe of the pass (see harness.probes.Probe)."""

    sums: ClassVar[str]

    def combine(self, total: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
        """The sums so far with those of the next block."""
        ...

    def begin(self, context: PassContext) -> Recorder:
        """A new recorder for one pass."""
        ...


def check_rows(module: str, values_NH: Tensor, batch: Batch) -> None:
    """Raise ModelError unless a tap was given one row for every position of the batch, as in the survey."""
    wanted = len(batch.documents) * batch.width
    if len(values_NH) != wanted:
        raise ModelError(
            f"{module}: found {len(values_NH)} rows in a batch, expected {wanted}, one for every token; a module that "
            "sees only some tokens (an expert, say) cannot be compared: leave out layer_error and outliers"
        )


def collect_taps(recorders: Sequence[Recorder], side: int, inputs: bool) -> dict[str, list[Tap]]:
    """All taps of one side, by module name."""
    taps: dict[str, list[Tap]] = {}
    for recorder in recorders:
        found = recorder.inputs(side) if inputs else recorder.outputs(side)
        for module, tap in found.items():
            taps.setdefault(module, []).append(tap)
    return taps
