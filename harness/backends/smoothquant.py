"""SmoothQuant: migrates quantization difficulty from activations to weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field

from harness.backends import Backend, Compressed
from harness.backends._common.weights import name_module_in_errors
from harness.errors import BackendError
from harness.records import Note

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear
    from harness.modules.transforms.folding import Folding

SMALLEST = 1e-5
"""Lower bound of the scales, as in the authors' implementation; smaller ones would only add noise."""


class SmoothQuant(Backend):
    """Moves activation outliers into the weights, before later steps quantize both (SmoothQuant).

    Every input channel j of the layers that read a norm gets the scale s_j = max|X_j|^α / max|W_j|^(1−α); the norm's
    gain and bias are divided by it, the weights multiplied (Xiao et al. 2022, arXiv 2211.10438, equation 4). The model
    computes the same function, up to rounding in its dtype; nothing is quantized yet. Maxima of activations are taken
    over all calibration tokens, those of weights over all layers that read the norm. Norms that a residual or a router
    also reads are left out and counted in a note. Channels without activations or without weights stay unchanged.
    """

    needs_calibration = True

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Migration strength α from 0 (all difficulty stays in the activations) to 1 (all of it moves to the weights)."""
    into: Literal["norms", "norms_and_linears"] = "norms"
    """Where scales are folded: into norms, as in the paper, or also into linear layers (values for the attention
    output, the up projection for the down projection) wherever that is exact."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Fold the scales in place; raises BackendError if nothing can be folded or numbers are not finite."""
        from harness.modules.decoder_layers import observe_inputs
        from harness.modules.linears import linears, weight_of
        from harness.modules.transforms.folding import find_foldings, fold
        from harness.numerics.formats import check_tensor

        for name, module in linears(model):
            with name_module_in_errors(self, name):
                check_tensor(weight_of(module))
        foldings = find_foldings(model, calibration)
        wanted = [each for each in foldings.accepted if each.into_norm or self.into == "norms_and_linears"]
        if not wanted:
            raise BackendError(
                f"{self.kind}: {type(model).__name__} has no norm into which a scale can be folded; remove the step"
            )
        largest: dict[str, Tensor] = {}
        # All readers of one source see the same tensor, so the first speaks for them.
        taps = {each.readers[0]: _maximum(largest, each.readers[0]) for each in wanted}
        observe_inputs(model, taps, calibration)
        for each in wanted:
            readers = [cast("Linear", model.get_submodule(name)) for name in each.readers]
            weights_I = readers[0].weight.new_zeros(weight_of(readers[0]).shape[1])
            for reader in readers:
                weights_I = weights_I.maximum(weight_of(reader).abs().amax(dim=0))
            inputs_I = each.pool_shared(largest[each.readers[0]], "amax")
            with name_module_in_errors(self, each.source):
                fold(model, each, smoothing_scale(inputs_I, each.pool_shared(weights_I, "amax"), self.alpha))
        return Compressed(model, notes=self._notes(wanted, foldings.rejected))

    def _notes(self, folded: Sequence[Folding], left_out: Sequence[str]) -> tuple[Note, ...]:
        norms = sum(each.into_norm for each in folded)
        sources = f"{norms} norms" + (f" and {len(folded) - norms} linear layers" if len(folded) > norms else "")
        readers = sum(len(each.readers) for each in folded)
        text = f"{self.kind}: alpha {self.alpha:g}, scales of {readers} linear layers folded into {sources}"
        notes = [Note(topic="smoothing", text=text)]
        if left_out:
            text = f"{self.kind}: {len(left_out)} norms were left unchanged (first: {left_out[0]}): not only linear "
            notes.append(Note(topic="smoothing", text=text + "layers read them, or a weight is shared", level="warn"))
        return tuple(notes)


def smoothing_scale(inputs_I: Tensor, weights_I: Tensor, alpha: float) -> Tensor:
    """max|X_j|^α / max|W_j|^(1−α) in float64, 1 where one of the maxima is 0; both are given [I]."""
    inputs, weights = inputs_I.double(), weights_I.double()
    alive = (inputs != 0) & (weights != 0)
    scale = (inputs.pow(alpha) / weights.pow(1 - alpha)).clamp(min=SMALLEST)
    return scale.where(alive, inputs.new_ones(()))


def _maximum(largest: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def tap(inputs_NI: Tensor) -> None:
        found = inputs_NI.abs().amax(dim=0)
        largest[name] = largest[name].maximum(found) if name in largest else found

    return tap
