"""The blocks of a pass, stage by stage, whoever computes them. No model is used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from harness.errors import TableError
from harness.lockstep.batches import Block
from harness.lockstep.recording import Looks, Recording
from harness.tables.access import Sink

Wanted = Sequence[tuple[Block, Sequence[int]]]
"""Blocks, each with the variants that need it."""
SETUP, SUMS = "pass/setup", "pass/sums"
"""The units before the first block and after the last."""


def run_stages(
    stages: Sequence[Sequence[Block]],
    sinks: Sequence[Sink],
    looks: Looks | None,
    compute: Callable[[Wanted], None],
) -> None:
    """Have every block computed that some variant needs and its sink lacks, a whole stage before the next.

    compute: commits the rows of all blocks that it is given, in any order. looks: says after each stage which variants
    need the next one; without it all need all. Raises TableError if a block is missing afterwards.
    """
    going = list(range(len(sinks)))
    for number, blocks in enumerate(stages):
        if looks is not None and number > 0:
            going = [variant for variant in going if looks.goes_on(variant, number - 1)]
        if wanted := _list_lacking(blocks, going, sinks):
            compute(wanted)
        if missing := _list_lacking(blocks, going, sinks):
            names = ", ".join(block.unit for block, _ in missing)
            raise TableError(f"the rows of {names} are missing although they were computed; run the check again")


def _list_lacking(blocks: Sequence[Block], going: Sequence[int], sinks: Sequence[Sink]) -> Wanted:
    lacking = [(block, [variant for variant in going if not sinks[variant].done(block.unit)]) for block in blocks]
    return [(block, variants) for block, variants in lacking if variants]


def store_sums(probes: Sequence[Recording], sink: Sink) -> None:
    """Replace the sums of the blocks by those of the whole pass, added up in the order of the blocks."""
    if sink.done(SUMS):
        return
    summing = [probe for probe in probes if probe.sums]
    sink.commit(SUMS, {}, {probe.sums: reduce(probe.combine, sink.read_parts(probe.sums)) for probe in summing})
