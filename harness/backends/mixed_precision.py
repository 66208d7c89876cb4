"""Mixed precision: chooses the bits of every layer by its measured sensitivity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Compressed
from harness.backends._common.linears import LinearBackend
from harness.backends._common.weights import Granularity, RangeMethod, name_module_in_errors
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.numerics.named_formats import Bits
from harness.records import Note

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.transforms.single_changes import Change, ChangedWeight
    from harness.numerics.allocation import Allocation


class MixedPrecision(LinearBackend):
    """Chooses the bits of every linear layer by measured sensitivity, under a target for size or for quality.

    The sensitivity of a layer at a bit width is the loss caused by rounding that layer alone. Of all assignments of
    bits to layers, the one with the least summed sensitivity under the size target is found exactly; the only
    assumption is that the losses add up (as in HAWQ-V3, Yao et al. 2021, arXiv 2011.10680). The weights are then
    rounded to nearest, and the note "recipe" contains the step that reproduces the result without calibration. A stack
    of experts counts as one layer. Measuring costs one forward pass per layer, bit width and calibration document with
    ``kl`` (of the blocks from that layer on), and with ``output_error`` one per bit width and document.
    """

    quantizes = ("weights",)
    needs_calibration = True
    takes_experts = True

    bits: tuple[Bits, ...] = Field(min_length=1)
    """Candidate bit widths of a layer."""
    target_bits_per_weight: Annotated[float, Field(gt=0, examples=[4.25])] | None = None
    """Upper limit of the mean bits per weight of the chosen layers: codes, scales and zero points."""
    max_sensitivity: Annotated[float, Field(gt=0, examples=[0.01])] | None = None
    """Upper limit of the summed sensitivities; the smallest size that satisfies it is chosen."""
    sensitivity: Literal["kl", "output_error"] = "kl"
    """``kl``: KL divergence of the model's predictions from the unquantized ones, in nats per token. ``output_error``:
    squared error of the layer's own output, relative to that output; cheaper, but blind to its effect on the model."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: the grid spans the smallest to the largest weight, and 0."""
    granularity: Granularity = "group"
    """The values that share a scale: the whole tensor, an output channel, ``group_size`` neighbours within it, or a
    square block."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = None
    """Inputs that share a scale, default 32 (128 for blocks); only with ``group`` and ``block``."""
    full_range: bool = False
    """Use codes from −2^(bits−1) instead of −2^(bits−1)+1; symmetric integers only."""
    range: RangeMethod = "min_max"
    """Method that sets the clipping range of the weights that share a scale."""
    percentile: Annotated[float, Field(gt=50, le=100, examples=[99.9])] | None = None
    """Percentage of values inside the range, default 99.9; only with range ``percentile``."""
    double_quantize: bool = False
    """Quantize the scales to 8 bits as well, as in QLoRA."""

    @model_validator(mode="after")
    def _check_settings(self) -> MixedPrecision:
        if self.target_bits_per_weight is None and self.max_sensitivity is None:
            raise ValueError(
                "target_bits_per_weight or max_sensitivity is required: a limit of the size, or of the loss"
            )
        if len(set(self.bits)) < len(self.bits):
            raise ValueError(f"bits has a number twice: {list(self.bits)}")
        for bits in self.bits:
            self._rounding_step(bits)
        return self

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Measure, choose, and round every linear layer that is not skipped.

        Raises BackendError for weights that cannot be rounded, and for a target that cannot be met.
        """
        from harness.modules.experts import stack_name
        from harness.modules.transforms.single_changes import (
            group_by_weight,
            measure_divergences,
            measure_output_errors,
            merge_stacks,
        )

        every = merge_stacks(group_by_weight(self.select_layers(model)))
        sizes_UC = [self._sizes(unit) for unit in every]
        measure = measure_divergences if self.sensitivity == "kl" else measure_output_errors
        costs_UC = measure(model, every, [self._change(bits) for bits in self.bits], calibration).tolist()
        weights = sum(weight.numel() for unit in every for weight in unit.weights)
        allocation = self._allocate(costs_UC, sizes_UC, weights)
        chosen = {
            stack_name(name): self.bits[option]
            for unit, option in zip(every, allocation.options, strict=True)
            for name in unit.names
        }
        recipe = self._recipe(chosen)
        done = recipe.compress(model, tokenizer, ())
        modules = tuple(module.model_copy(update={"backend": self.kind}) for module in done.modules)
        return Compressed(done.model, modules, notes=(self._summary(chosen, allocation, weights), _recipe_note(recipe)))

    def _rounding_step(self, bits: int, overrides: Sequence[dict[str, Any]] = ()) -> RoundToNearest:
        """The step that rounds every chosen layer to the given bits."""
        same = set(RoundToNearest.model_fields) - {"bits", "overrides"}
        settings = {name: getattr(self, name) for name in self.model_fields_set & same}
        given = {"overrides": tuple(overrides)} if overrides else {}
        return RoundToNearest.model_validate({"bits": bits, **settings, **given})

    def _change(self, bits: int) -> Change:
        """The weight rounded by `RoundToNearest`."""
        from harness.numerics.formats import cast

        settings = self._rounding_step(bits)

        def change(weight_OI: Tensor) -> Tensor:
            return cast(settings.round_weight(weight_OI).values, weight_OI.dtype)

        return change

    def _sizes(self, unit: ChangedWeight) -> list[int]:
        """Stored bits of a unit for every candidate bit width."""
        from harness.numerics.formats import check_tensor, stored_bits

        forms = [self._rounding_step(bits).weight_format() for bits in self.bits]
        with name_module_in_errors(self, unit.names[0]):
            shapes = [tuple(check_tensor(weight).shape) for weight in unit.weights]
            return [sum(stored_bits(shape, form) for shape in shapes) for form in forms]

    def _allocate(self, costs: list[list[float]], sizes: list[list[int]], weights: int) -> Allocation:
        import numpy as np

        from harness.numerics.allocation import minimize_cost, minimize_size

        costs_UC, sizes_UC = np.array(costs), np.array(sizes, np.int64)
        wanted = self.target_bits_per_weight
        largest = sum(map(max, sizes)) if wanted is None else int(wanted * weights)
        if self.max_sensitivity is None:
            choice = minimize_cost(costs_UC, sizes_UC, largest)
        else:
            choice = minimize_size(costs_UC, sizes_UC, self.max_sensitivity)
        if choice is not None and choice.size <= largest:
            return choice
        least = sum(map(min, sizes)) / weights
        reached = [f"with bits {list(self.bits)} the layers take at least {least:.4g} bits per weight, scales included"]
        if best := minimize_cost(costs_UC, sizes_UC, largest):
            limit = "whatever the size" if wanted is None else f"within {wanted:g} bits per weight"
            reached.append(
                f"{limit} the sensitivities add up to {best.cost:.4g}, above the limit of {self.max_sensitivity:g}"
            )
        elif broken := int((~np.isfinite(costs_UC)).all(1).sum()):
            reached.append(f"{broken} layers make the model output NaN or infinity at every bit width")
        raise BackendError(
            f"{self.kind}: no choice of bits meets the target: {'; '.join(reached)}. "
            "Relax the target, or add larger bit widths"
        )

    def _recipe(self, chosen: Mapping[str, int]) -> RoundToNearest:
        """The step that assigns the chosen bits: the most frequent ones as default, the others by name."""
        (usual, _), *_ = Counter(chosen.values()).most_common(1)
        others = sorted(set(chosen.values()) - {usual})
        named = {other: tuple(name for name, bits in chosen.items() if bits == other) for other in others}
        return self._rounding_step(usual, [{"modules": names, "bits": other} for other, names in named.items()])

    def _summary(self, chosen: Mapping[str, int], found: Allocation, weights: int) -> Note:
        counts = Counter(chosen.values())
        layers = ", ".join(f"{counts[bits]} layers at {bits} bits" for bits in sorted(counts))
        what = "nats per token" if self.sensitivity == "kl" else "relative squared error"
        text = (
            f"{layers}; {found.size / weights:.4f} bits per weight with scales; the sensitivities, each measured "
            f"alone, add up to {found.cost:.4g} ({what})"
        )
        return Note(topic="allocation", text=text)


def _recipe_note(recipe: RoundToNearest) -> Note:
    """The step as YAML, to paste under ``compress:``."""
    import yaml

    step = {"backend": recipe.kind, **recipe.model_dump(mode="json", exclude_unset=True)}
    return Note(topic="recipe", text=yaml.safe_dump([step], sort_keys=False, allow_unicode=True))
