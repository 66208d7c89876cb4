"""The probe ``experts``: how many tokens are routed to each expert of a mixture-of-experts layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.lockstep.recording import REFERENCE, CallTap, PassContext, Recorder
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.lockstep.batches import Batch
    from harness.modules.experts import Experts as Mixture

UNKNOWN = -1
"""Stands for an unknown number."""


class Experts(Probe):
    """Counts the tokens that are routed to every expert on both sides, and on the calibration documents.

    Writes one row (side, module, expert, tokens, agreeing, calibration) to the table ``experts`` per side and expert,
    over all tokens of the suite. agreeing: how many of the variant's tokens the reference routes to that expert, too.
    calibration: tokens of the calibration documents that the finished variant routes to it. −1: not known (no
    calibration; agreement if experts are separate modules). A dense model has one row with an empty module and the side
    ``none``.
    """

    runs = "shared_pass"
    needs = ("hooks",)
    whole_batches = True
    sums = "experts"

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of the calls of experts."""
        return _ExpertRecorder(context)

    def combine(self, total: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
        """Tokens added up; what is not known of one block is not known of all."""
        pairs = {name: (total[name], block[name]) for name in ("tokens", "agreeing")}
        return total.assign(
            **{name: (left + right).mask((left < 0) | (right < 0), UNKNOWN) for name, (left, right) in pairs.items()}
        )


class _ExpertRecorder(Recorder):
    """Counts of a batch are added to those of each variant over the block [tokens, agreeing; experts of both sides]."""

    def __init__(self, context: PassContext) -> None:
        self._layout = context.layout
        self._mixtures = context.layout.experts or ((),) * (context.variants + 1)
        self._fitted = context.calibrations or (None,) * context.variants
        self._totals: dict[int, Tensor] = {}

    def calls(self, side: int) -> Mapping[str, CallTap]:
        taps: dict[str, CallTap] = {}
        for mixture in self._mixtures[side + 1]:
            if mixture.stacked:
                taps[mixture.module] = partial(self._stack, side, mixture)
                continue
            taps[mixture.module.rpartition(".")[0]] = partial(self._enter, side, mixture)
            for expert in range(mixture.count):
                taps[f"{mixture.module}.{expert}"] = partial(self._one, side, mixture, expert)
        return taps

    def start_block(self) -> None:
        self._totals = {}

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._chosen: dict[str, Tensor] = {}
        self._known: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._found: dict[tuple[int, str], Tensor] = {}

    def add(self, variant: int) -> None:
        import torch

        pieces = [self._count_batch(side, each) for side, each in self._rows(variant)]
        batch_2E = torch.cat(pieces, dim=1) if pieces else torch.zeros(2, 0, dtype=torch.int64)
        earlier, total = self._totals.get(variant), batch_2E
        if earlier is not None:
            # What is not known of one batch is not known of all.
            total = torch.where((earlier < 0) | (batch_2E < 0), UNKNOWN, earlier + batch_2E)
        self._totals[variant] = total

    def sums(self, variant: int) -> pd.DataFrame:
        import pandas as pd

        total = self._totals[variant]
        labels = self._labels(variant)
        tokens, agreeing = total.tolist() if labels else ([0], [UNKNOWN])
        rows = [
            (side, module, expert, tokens[number], agreeing[number], calibration)
            for number, (side, module, expert, calibration) in enumerate(labels or [("none", "", UNKNOWN, UNKNOWN)])
        ]
        frame = pd.DataFrame(rows, columns=["side", "module", "expert", "tokens", "agreeing", "calibration"])
        kinds = {"expert": "int32", "tokens": "int64", "agreeing": "int64", "calibration": "int64"}
        return frame.astype({"side": "str", "module": "str"} | kinds)

    def _stack(self, side: int, mixture: Mixture, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Handle a call of stacked experts, one row per position."""
        from harness.modules.experts import routed_tokens

        hits_NE = routed_tokens(arguments, named, mixture.count)
        is_token_N = self._batch.is_token(hits_NE.device).flatten()
        if len(is_token_N) != len(hits_NE):
            self._add(side, mixture.module, None, None)
            return
        hits_NE = hits_NE & is_token_N[:, None]
        partner = self._layout.find_in_reference(side, mixture.module)
        other_NE = None if partner is None else self._chosen.get(partner)
        if side == REFERENCE:
            self._chosen[mixture.module] = hits_NE
        both = None if side == REFERENCE or other_NE is None or other_NE.shape != hits_NE.shape else hits_NE & other_NE
        self._add(side, mixture.module, hits_NE.sum(0), None if both is None else both.sum(0))

    def _enter(self, side: int, mixture: Mixture, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Handle a call of the module around separate expert modules: its rows distinguish tokens from padding."""
        import torch

        from harness.modules.experts import fingerprints, input_rows

        prints_N = fingerprints(input_rows(arguments, named))
        is_token_N = self._batch.is_token(prints_N.device).flatten()
        if len(is_token_N) == len(prints_N):
            self._known[side, mixture.module] = prints_N[is_token_N], prints_N
            self._add(side, mixture.module, torch.zeros(mixture.count, dtype=torch.int64), None)

    def _one(
        self, side: int, mixture: Mixture, expert: int, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> None:
        """Handle a call of one expert: select those of its rows that are tokens."""
        import torch

        from harness.modules.experts import fingerprints, input_rows

        prints_n = fingerprints(input_rows(arguments, named))
        known = self._known.get((side, mixture.module))
        if known is None or not bool(torch.isin(prints_n, known[1]).all()):
            self._add(side, mixture.module, None, None)
            return
        counts_E = torch.zeros(mixture.count, dtype=torch.int64)
        counts_E[expert] = torch.isin(prints_n, known[0]).sum()
        self._add(side, mixture.module, counts_E, None)

    def _add(self, side: int, module: str, tokens_E: Tensor | None, agreeing_E: Tensor | None) -> None:
        """Count tokens; None: the number is not known."""
        import torch

        experts = next(each.count for each in self._mixtures[side + 1] if each.module == module)
        unknown_E = torch.full((experts,), UNKNOWN, dtype=torch.int64)
        found_2E = torch.stack([unknown_E if part is None else part.cpu() for part in (tokens_E, agreeing_E)])
        earlier_2E = self._found.get((side, module))
        if earlier_2E is not None:
            found_2E = torch.where((earlier_2E < 0) | (found_2E < 0), UNKNOWN, earlier_2E + found_2E)
        self._found[side, module] = found_2E

    def _count_batch(self, side: int, mixture: Mixture) -> Tensor:
        """Counts [2, E] of the batch; zero for a layer that was not called."""
        import torch

        counts = self._found.get((side, mixture.module))
        return torch.zeros(2, mixture.count, dtype=torch.int64) if counts is None else counts

    def _rows(self, variant: int) -> Iterator[tuple[int, Mixture]]:
        for side in (REFERENCE, variant):
            for mixture in self._mixtures[side + 1]:
                yield side, mixture

    def _labels(self, variant: int) -> list[tuple[str, str, int, int]]:
        """Side, module, expert and calibration tokens of every row."""
        fitted = self._fitted[variant]
        labels = []
        for side, mixture in self._rows(variant):
            given = None if side == REFERENCE or fitted is None else fitted.tokens.get(mixture.module)
            counts = given or (UNKNOWN,) * mixture.count
            name = "reference" if side == REFERENCE else "variant"
            labels += [(name, mixture.module, expert, counts[expert]) for expert in range(mixture.count)]
        return labels
