"""The probe ``layers``: output error of every module, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.lockstep.recording import REFERENCE, OutputSite, PassContext, Recorder, Tap, check_rows
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.lockstep.batches import Batch


class Layers(Probe):
    """The output error of every block, attention, MLP and linear layer of the variant, document by document.

    Writes one row to the table ``layers`` per module and document: sums over all values of the module's output. Both
    models compute with their own activations, so errors of earlier layers are included in those of later ones.
    """

    runs = "shared_pass"
    needs = ("hooks",)

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of module outputs."""
        return _LayerRecorder(context)


@dataclass
class _Kept:
    """An output [B*T, H] of the reference, and the variants that are to be compared with it."""

    output: Tensor | None
    waiting: set[int]

    def take(self, variant: int) -> Tensor:
        """The output, which is let go of once no variant waits for it."""
        output_NH = self.output
        assert output_NH is not None  # noqa: S101 - each variant takes it once
        self.waiting.discard(variant)
        if not self.waiting:
            self.output = None
        return output_NH


class _LayerRecorder(Recorder):
    """Keeps reference outputs of the batch, uncopied, until every variant has been compared with them."""

    def __init__(self, context: PassContext) -> None:
        self._kernel = context.kernels.errors
        self._variants = context.variants
        self._sites = context.layout.outputs
        self._unpaired = context.layout.unpaired

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._kept: dict[str, list[_Kept]] = {}
        self._errors: list[dict[str, list[Tensor]]] = [{} for _ in range(self._variants)]

    def outputs(self, side: int) -> Mapping[str, Tap]:
        if side == REFERENCE:
            return {site.module: partial(self._keep, site) for site in self._sites if site.same_as is None}
        return {site.module: partial(self._compare, side, site.module) for site in self._select_sites(side)}

    def _select_sites(self, variant: int) -> list[OutputSite]:
        missing = self._unpaired[variant]
        return [site for site in self._sites if site.same_as is None and site.module not in missing]

    def _keep(self, site: OutputSite, output_NH: Tensor) -> None:
        check_rows(site.module, output_NH, self._batch)
        waiting = {variant for variant, missing in enumerate(self._unpaired) if site.module not in missing}
        kept = _Kept(output_NH.clone() if site.volatile else output_NH, waiting)
        self._kept.setdefault(site.module, []).append(kept)

    def _compare(self, variant: int, module: str, output_NH: Tensor) -> None:
        import torch

        check_rows(module, output_NH, self._batch)
        errors = self._errors[variant].setdefault(module, [])
        reference_NH = self._kept[module][len(errors)].take(variant)
        errors.append(torch.stack(self._kernel(reference_NH, output_NH.to(reference_NH.device))))

    def release_inputs(self) -> None:
        self._kept.clear()

    def rows(self, variant: int) -> Mapping[str, pd.DataFrame]:
        import numpy as np
        import pandas as pd
        import torch

        errors, missing = self._errors[variant], self._unpaired[variant]
        sites = [site for site in self._sites if site.module not in missing]
        if not sites:
            return {}
        shape = (5, len(self._batch.documents), self._batch.width)
        calls = [torch.stack(errors[site.same_as or site.module]).double().view(-1, *shape) for site in sites]
        pieces = []
        for number, (document, length) in enumerate(zip(self._batch.documents, self._batch.lengths, strict=True)):
            own = [call[:, :, number, :length] for call in calls]
            sums = torch.stack([values[:, :4].sum((0, 2)) for values in own]).cpu().numpy()
            largest = torch.stack([values[:, 4].amax() for values in own]).cpu().numpy()
            columns: dict[str, object] = {
                "document": np.full(len(sites), document.index, dtype=np.int32),
                "module": [site.module for site in sites],
                "kind": [site.kind for site in sites],
                "depth": np.array([site.depth for site in sites], dtype=np.int32),
                "sum_squared_error": sums[:, 0],
                "sum_squared_reference": sums[:, 1],
                "sum_squared_variant": sums[:, 2],
                "dot": sums[:, 3],
                "max_abs_diff": largest,
                "n": np.array([length * site.width * len(c) for site, c in zip(sites, calls, strict=True)], np.int64),
            }
            pieces.append(pd.DataFrame(columns))
        return {"layers": pd.concat(pieces, ignore_index=True)}
