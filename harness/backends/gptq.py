"""GPTQ weight quantization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from harness.backends import Compressed
from harness.backends._common.stacks import merge_stacks
from harness.backends._common.weights import Replacing, WeightBackend, name_module_in_errors, untie_head
from harness.numerics.named_formats import WHOLE_TENSOR_SCALES
from harness.records import ModuleFormat, Note

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear
    from harness.modules.transforms.shared_inputs import Observe
    from harness.numerics.formats import Format, Quantized
    from harness.numerics.gptq import Hessian, PreparedHessian


MOST_NAMED = 64
"""How many layers a note names individually."""


class Gptq(WeightBackend):
    """Rounds linear weights column by column and compensates each error in the columns after it (GPTQ, calibrated).

    Block after block, on inputs computed by the already compressed blocks; within a block attention before its output
    projection before the MLP. Layers with the same input share their Hessian. Linear layers outside the blocks (a head,
    if it is not skipped) come last. An output channel whose error on the calibration data ends up larger than with
    rounding to nearest is rounded to nearest; so is a layer that no calibration document reached.
    """

    needs_calibration = True
    writes_in_place = False

    damping: Annotated[float, Field(gt=0, le=1, examples=[0.01])] = 0.01
    """Damping added to the diagonal of the Hessian, as a fraction of its mean; raised if the Hessian cannot be
    inverted."""
    act_order: bool = False
    """Quantize columns with the strongest inputs first. Groups then follow that order, and the checkpoint stores their
    index, which is counted; with static_groups, groups stay neighbours."""
    static_groups: bool = False
    """Compute group scales from the original weights instead of the compensated ones. Required for formats whose scales
    depend on the whole weight (nvfp4, double_quantize)."""
    block_size: Annotated[int, Field(ge=1)] = 128
    """Columns per lazy batch update; affects speed, not the result."""
    sequential: Literal["layer", "block"] = "layer"
    """``layer``: quantize the layers of a block in the order in which data passes them, each on inputs from the
    compressed layers before it (true_sequential in other implementations); ``block``: all layers of a block at once,
    which is faster."""

    @model_validator(mode="after")
    def _scales_are_known_in_time(self) -> Gptq:
        grouped = self.granularity == "group"
        if not self.static_groups and grouped and self.number_format().scales in WHOLE_TENSOR_SCALES:
            what = "double_quantize" if self.double_quantize else self.format
            raise ValueError(f"{what} needs static_groups: true; its scales depend on groups that come later")
        return self

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Replace the weight of every linear layer that is not skipped; raises BackendError naming the module."""
        from harness.modules.decoder_layers import observe_inputs, walk_blocks

        work = _CompressionState(self, dict(self.select_layers(model)))
        for block in walk_blocks(model, calibration):
            inside = [name for name, _ in block.linears() if name in work.chosen]
            work.quantize(inside, block.observe)
        outside = [name for name in work.chosen if name not in work.described]
        work.quantize(outside, lambda taps: observe_inputs(model, taps, calibration))
        untie_head(model, work.chosen)
        described = merge_stacks(work.described[name] for name in work.chosen)
        return Compressed(model, described, notes=tuple(work.notes()))


class _CompressionState:
    """Per-layer results and notes of one run."""

    def __init__(self, settings: Gptq, chosen: dict[str, Linear]) -> None:
        self.settings = settings
        self.chosen = chosen
        self.described: dict[str, ModuleFormat] = {}
        self._replacing = Replacing()
        self._unreached: list[str] = []
        self._few: list[str] = []
        self._damped: dict[str, float] = {}
        self._nearest: dict[str, int] = {}

    def quantize(self, names: Sequence[str], observe: Observe) -> None:
        """Quantize layers that data passes together, stage by stage."""
        from harness.modules.transforms.shared_inputs import SharedHessians, order_by_input

        if not names:
            return
        for stage in order_by_input(names, observe) if self.settings.sequential == "layer" else [list(names)]:
            inputs = SharedHessians(stage)
            known: dict[Hessian, tuple[Tensor, PreparedHessian]] = {}
            observe(inputs.taps())
            for name in stage:
                with name_module_in_errors(self.settings, name):
                    self._one(name, inputs[name], known)

    def notes(self) -> Iterator[Note]:
        """Notes for the reader of the report."""
        if names := self._unreached:
            listed = _list_some(names, most=MOST_NAMED)
            text = f"{listed}: no calibration document reached them, so they are rounded to nearest"
            yield Note(topic="gptq: not calibrated", text=text, level="warn")
        if names := self._few:
            text = (
                f"{_list_some(names)}: calibrated on fewer tokens than they have inputs; use more calibration documents"
            )
            yield Note(topic="gptq: little calibration", text=text, level="warn")
        if self._damped:
            most = max(self._damped.values())
            text = (
                f"{_list_some(list(self._damped))}: the Hessian had no Cholesky decomposition; damping was raised to "
            )
            yield Note(topic="gptq: damping", text=f"{text}{most:g} at most", level="warn")
        if self._nearest:
            rows = sum(self._nearest.values())
            layers = _list_some(list(self._nearest))
            text = f"{layers}: {rows} output channels are rounded to nearest, with a smaller error"
            yield Note(topic="gptq: rounded to nearest", text=text)

    def _one(self, name: str, hessian: Hessian | None, known: dict[Hessian, tuple[Tensor, PreparedHessian]]) -> None:
        from harness.modules.linears import weight_of

        module, settings = self.chosen[name], self.settings.for_module(name)
        form, index_bits = settings.weight_format(), 0
        if not self._replacing.replace_if_shared(module):
            weight_OI = weight_of(module)
            nearest = settings.round_weight(weight_OI)
            values_OI = nearest.values
            if hessian is None:
                self._unreached.append(name)
            else:
                values_OI, index_bits = self._solve(name, weight_OI, form, hessian, known, nearest)
            self._replacing.replace(module, values_OI)
        described = self.settings.describe(name, module)
        self.described[name] = _add_index(described, module.weight.numel(), index_bits)

    def _solve(
        self,
        name: str,
        weight_OI: Tensor,
        form: Format,
        hessian: Hessian,
        known: dict[Hessian, tuple[Tensor, PreparedHessian]],
        nearest: Quantized,
    ) -> tuple[Tensor, int]:
        """Quantized values [O, I], and the bits of the group index. known: a Hessian that was prepared before."""
        from harness.numerics.gptq import keep_nearest, prepare, solve

        mine = self.settings
        if hessian not in known:
            matrix_II = hessian.matrix
            known[hessian] = matrix_II, prepare(matrix_II, damping=mine.damping, act_order=mine.act_order)
        matrix_II, prepared = known[hessian]
        solution = solve(
            weight_OI,
            prepared,
            form,
            block=mine.block_size,
            static_groups=mine.static_groups,
            limits=mine.for_module(name).limits_of,
        )
        solution, rows_O = keep_nearest(solution, weight_OI, matrix_II, nearest)
        if hessian.count < len(matrix_II):
            self._few.append(name)
        if prepared.damping > mine.damping:
            self._damped[name] = prepared.damping
        if bool(rows_O.any()):
            self._nearest[name] = int(rows_O.sum())
        return solution.quantized.values, solution.index_bits


def _add_index(described: ModuleFormat, weights: int, index_bits: int) -> ModuleFormat:
    return described.model_copy(
        update={
            "format": described.format.model_copy(update={"act_order": bool(index_bits)}),
            "stored_bytes": described.stored_bytes + index_bits // 8,
            "bits_per_weight": described.bits_per_weight + index_bits / weights,
        }
    )


def _list_some(names: Sequence[str], most: int = 3) -> str:
    """The number of layers with the first names; experts of one stack are listed by number."""
    from harness.modules.experts import format_names

    listed = format_names(names[:most]) + (" …" if len(names) > most else "")
    return f"{len(names)} layer{'s' if len(names) > 1 else ''} ({listed})"
