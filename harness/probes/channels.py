"""The probe ``channels``: magnitudes of the inputs of linear layers, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.lockstep.recording import REFERENCE, InputSite, PassContext, Recorder, Tap, check_rows
from harness.probes import Probe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.lockstep.batches import Batch

COLUMNS = ("max_abs", "sum", "sum_squares", "sum_fourth", "over_threshold", "tokens")


class Channels(Probe):
    """Maximum, moments and outlier count of every input channel of the linear layers, on both sides.

    Writes one row to the table ``channels`` per side, distinct input and channel, over all tokens of the suite. Linear
    layers that read the same tensor (query, key and value) share one input, named after the first layer.
    """

    runs = "shared_pass"
    needs = ("hooks",)

    sums = "channels"

    threshold: Annotated[float, Field(gt=0, examples=[6.0])] = Field(
        default=6.0, description="magnitude from which a value counts as an outlier (LLM.int8: 6)"
    )

    def begin(self, context: PassContext) -> Recorder:
        """A recorder of module inputs."""
        return _ChannelRecorder(context, self.threshold)

    def combine(self, total: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
        """Sums and counts added up, and the larger of the maxima; NaN stays NaN."""
        import numpy as np

        names = list(COLUMNS[1:])
        return total.assign(max_abs=np.maximum(total["max_abs"], block["max_abs"]), **(total[names] + block[names]))


class _ChannelRecorder(Recorder):
    """Sums of a batch are added to the float64 sums of each variant over the block [6, channels of all inputs].

    The sixth row counts tokens. Every variant has its own sums, so that each can resume separately.
    """

    def __init__(self, context: PassContext, threshold: float) -> None:
        self._kernel, self._threshold = context.kernels.moments, threshold
        self._sites = context.layout.inputs
        self._unpaired = context.layout.unpaired
        self._totals: dict[int, Tensor] = {}
        self._labels = [self._label(variant) for variant in range(context.variants)]

    def inputs(self, side: int) -> Mapping[str, Tap]:
        return {site.module: partial(self._add, side, site.module) for site in self._select_sites(side)}

    def start_block(self) -> None:
        self._totals = {}

    def start(self, batch: Batch) -> None:
        self._batch = batch
        self._found: dict[tuple[int, str], Tensor] = {}
        self._valid: dict[object, Tensor] = {}

    def add(self, variant: int) -> None:
        import torch

        sums = [self._sum_batch(side, site) for side in (REFERENCE, variant) for site in self._select_sites(variant)]
        nothing = torch.zeros(len(COLUMNS), 0, dtype=torch.float64)  # All there is where no module has a partner.
        batch, earlier = torch.cat([nothing, *sums], dim=1), self._totals.get(variant)
        self._totals[variant] = batch if earlier is None else _add_sums(earlier, batch)

    def sums(self, variant: int) -> pd.DataFrame:
        total = self._totals[variant]
        columns = {name: total[row].numpy() for row, name in enumerate(COLUMNS)}
        counts = {name: columns[name].astype("int64") for name in ("over_threshold", "tokens")}
        return self._labels[variant].assign(**(columns | counts))

    def _select_sites(self, side: int) -> list[InputSite]:
        missing: Mapping[str, str] = {} if side == REFERENCE else self._unpaired[side]
        return [site for site in self._sites if site.module not in missing]

    def _add(self, side: int, module: str, input_NH: Tensor) -> None:
        import torch

        check_rows(module, input_NH, self._batch)
        if input_NH.device not in self._valid:
            self._valid[input_NH.device] = self._batch.is_token(input_NH.device).flatten()
        valid_N = self._valid[input_NH.device]
        sums = [row.double() for row in self._kernel(input_NH, valid_N, self._threshold)]
        moments = torch.stack([*sums, torch.full_like(sums[0], sum(self._batch.lengths))])
        earlier = self._found.get((side, module))
        self._found[side, module] = moments if earlier is None else _add_sums(earlier, moments)

    def _sum_batch(self, side: int, site: InputSite) -> Tensor:
        """The sums of the batch; zero if the module was not called."""
        import torch

        sums = self._found.get((side, site.module))
        return torch.zeros(len(COLUMNS), site.width, dtype=torch.float64) if sums is None else sums.cpu()

    def _label(self, variant: int) -> pd.DataFrame:
        """The columns that identify the channel of a row."""
        import numpy as np
        import pandas as pd

        sides = [(name, site) for name in ("reference", "variant") for site in self._select_sites(variant)]
        widths = np.array([site.width for _, site in sides], dtype=np.int64)
        labels = {
            "side": np.repeat(np.array([name for name, _ in sides], dtype=object), widths),
            "module": np.repeat(np.array([site.module for _, site in sides], dtype=object), widths),
            "layer": np.repeat(np.array([site.layer for _, site in sides], dtype=np.int32), widths),
            "channel": np.concatenate([np.arange(0), *map(np.arange, widths)]).astype(np.int32),
        }
        return pd.DataFrame(labels).astype({"side": "str", "module": "str"})


def _add_sums(left: Tensor, right: Tensor) -> Tensor:
    """Add sums; the first row holds maxima. NaN stays NaN."""
    import torch

    total = left + right
    total[0] = torch.maximum(left[0], right[0])
    return total
