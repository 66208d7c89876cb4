"""The probe ``coverage``: which parameters the documents touched, and what the two sides hold elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.lockstep.recording import REFERENCE, CallTap, Idle, PassContext, Recorder
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.lockstep.batches import Batch
    from harness.models.coverage.parts import ModelPart
    from harness.models.loaded import LoadedModel

COLUMNS = (
    "side",
    "name",
    "kind",
    "units",
    "parameters",
    "bytes",
    "compressed",
    "missing",
    "seen",
    "changed",
    "damaged",
)


class Coverage(Probe):
    """Records which parts of both sides the documents touched, and whether the variant's differ from the reference's.

    Writes to the table ``coverage`` one row per side and part that documents may leave untouched: a module that no text
    runs, a stack of experts, an embedding read row by row, a tensor that the class leaves in the files (kind
    ``module``, ``experts``, ``rows``, ``unread``; see ``harness.models.coverage.parts``). units: how many experts or
    rows it has; seen, changed, damaged: one bit for each, in hexadecimal: whether a document touched it, whether it
    differs from the reference's, and whether it says nothing of it. missing: the other side has no such part. Rows
    of other kinds: ``total`` with the parameters and bytes of a side; ``non_finite`` for every tensor of the
    variant with NaN or infinity that the reference does not have there; ``stated`` for every layer that a
    quantization config speaks of, with whether it is ``compressed``. Of a variant whose engine keeps its weights to
    itself, what documents touch is taken from the reference, all of it counts as compressed, and beside NaN in
    its files nothing else is known.
    """

    runs = "shared_pass"
    whole_batches = True
    sums = "coverage"

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of calls of modules that not every document calls."""
        return _CoverageRecorder(context)

    def combine(self, total: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
        """What either touched."""
        pairs = zip(total["seen"], block["seen"], strict=True)
        return total.assign(seen=[_join_bits(left, right) for left, right in pairs]).astype({"seen": "str"})


class _CoverageRecorder(Recorder):
    """The bits of a batch are added to those of each variant over the block, for both sides."""

    def __init__(self, context: PassContext) -> None:
        from harness.models.coverage.parts import list_parts

        self._models = context.models
        self._mixtures = {each.module: each.count for side in context.layout.experts for each in side if each.stacked}
        idle = context.layout.idle or (Idle(),) * len(context.models)
        self._parts = [
            {part.name: part for part in list_parts(model, own.modules, own.tables)}
            for model, own in zip(context.models, idle, strict=True)
        ]
        self._seen: dict[int, dict[tuple[int, str], Tensor]] = {}
        self._frames: dict[int, pd.DataFrame] = {}

    def calls(self, side: int) -> Mapping[str, CallTap]:
        taps: dict[str, CallTap] = {}
        owners: dict[str, list[ModelPart]] = {}
        for part in self._parts[side + 1].values():
            if part.kind != "unread":
                owners.setdefault(part.owner, []).append(part)
        for owner, parts in owners.items():
            kind = parts[0].kind
            see = {"module": self._see_module, "experts": self._see_experts, "rows": self._see_rows}[kind]
            taps[owner] = partial(see, side, parts)
        return taps

    def start_block(self) -> None:
        self._seen = {}

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._found: dict[tuple[int, str], Tensor] = {}

    def add(self, variant: int) -> None:
        seen = self._seen.setdefault(variant, {})
        for (side, name), units in self._found.items():
            if side in (REFERENCE, variant):
                earlier = seen.get((side, name))
                seen[side, name] = units if earlier is None else earlier | units

    def sums(self, variant: int) -> pd.DataFrame:
        seen = self._seen[variant]
        if variant not in self._frames:
            self._frames[variant] = _frame(self._rows(variant))
        frame = self._frames[variant]
        sides = {"reference": REFERENCE, "variant": REFERENCE if self._is_hidden(variant) else variant}
        bits = [
            _bits(seen.get((sides[side], name)), units)
            for side, name, units in zip(frame["side"], frame["name"], frame["units"], strict=True)
        ]
        return frame.assign(seen=bits).astype({"seen": "str"})

    def _see_module(self, side: int, parts: Sequence[ModelPart], _: tuple[Any, ...], __: Mapping[str, Any]) -> None:
        import torch

        self._add(side, parts, torch.ones(1, dtype=torch.bool))

    def _see_experts(
        self, side: int, parts: Sequence[ModelPart], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        from harness.modules.experts import routed_tokens

        hits_NE = routed_tokens(arguments, named, parts[0].units)
        self._add(side, parts, hits_NE[self._tokens(hits_NE)].any(0).cpu())

    def _see_rows(
        self, side: int, parts: Sequence[ModelPart], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        import torch

        from harness.lockstep.idle import first_ids

        ids = first_ids(arguments, named)
        units = torch.zeros(parts[0].units, dtype=torch.bool)
        if ids is not None:
            flat_N = ids.flatten()
            units[flat_N[self._tokens(flat_N)].cpu()] = True
        self._add(side, parts, units)

    def _tokens(self, rows: Tensor) -> Tensor:
        """Which rows belong to tokens and not to padding; all of them where the two cannot be told apart."""
        import torch

        is_token_N = self._batch.is_token(rows.device).flatten()
        return (
            is_token_N
            if len(is_token_N) == len(rows)
            else torch.ones_like(rows[..., 0] if rows.dim() > 1 else rows).bool()
        )

    def _add(self, side: int, parts: Sequence[ModelPart], units: Tensor) -> None:
        for part in parts:
            earlier = self._found.get((side, part.name))
            self._found[side, part.name] = units if earlier is None else earlier | units

    def _is_hidden(self, variant: int) -> bool:
        """Whether the engine of a variant keeps its weights to itself."""
        return self._models[variant + 1].language_model.modules is None

    def _rows(self, variant: int) -> list[tuple[Any, ...]]:
        """All columns but ``seen`` of the rows about one pair."""
        from harness.models.coverage.finite import compare_finite
        from harness.models.coverage.parts import compare_part, find_counterparts
        from harness.models.coverage.stated import compare_with_config

        reference, other = self._models[0], self._models[variant + 1]
        before, after = list(self._parts[0].values()), list(self._parts[variant + 1].values())
        failing, _ = compare_finite(reference, other)
        bad = [("variant", str(each), "non_finite", 0, 0, 0, False, False, "", "") for each in failing]
        if self._is_hidden(variant):
            rows = [_total(side, reference) for side in ("reference", "variant")]
            rows += [_row("reference", part, False, "", "") for part in before]
            return [*rows, *(_row("variant", replace(part, compressed=True), False, "", "") for part in before), *bad]
        both = find_counterparts(before, other)
        rows = [_total("reference", reference), _total("variant", other)]
        rows += [_row("reference", part, part.name not in both, "", "") for part in before]
        for part in after:
            changed, damaged = compare_part(part, reference, other)
            rows.append(_row("variant", part, False, _bits(changed, part.units), _bits(damaged, part.units)))
        rows += bad
        stated = compare_with_config(other)
        for module in (*stated.quantized, *stated.plain) if stated else ():
            size = module.parameters, module.stored_bytes
            rows.append(("variant", module.module, "stated", 0, *size, module.compressed, False, "", ""))
        return rows


def _row(side: str, part: ModelPart, missing: bool, changed: str, damaged: str) -> tuple[Any, ...]:
    own = part.kind, part.units, part.parameters, part.bytes, part.compressed
    return side, part.name, *own, missing, changed, damaged


def _total(side: str, loaded: LoadedModel) -> tuple[Any, ...]:
    from harness.models.coverage.untouched import total

    return side, "", "total", 0, *total(loaded), False, False, "", ""


def _frame(rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    names = [name for name in COLUMNS if name != "seen"]
    kinds = {"units": "int64", "parameters": "int64", "bytes": "int64", "compressed": "bool", "missing": "bool"}
    texts = dict.fromkeys(("side", "name", "kind", "changed", "damaged"), "str")
    return pd.DataFrame(rows, columns=names).astype(kinds | texts)


def _bits(units: Tensor | None, count: int) -> str:
    """Bits in hexadecimal, the first unit in the highest bit of the first byte; all 0 for None."""
    import numpy as np

    bits = np.zeros(count, dtype=bool) if units is None else units.numpy()
    return np.packbits(bits).tobytes().hex()


def _join_bits(left: str, right: str) -> str:
    """The bits that are set in either, both in hexadecimal and of the same length."""
    return f"{int(left, 16) | int(right, 16):0{len(left)}x}" if left else left
