"""Quantization-aware training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from harness.backends import Compressed, Quantized
from harness.backends._common.simulating import give_own_head
from harness.backends._common.stacks import merge_stacks
from harness.backends._common.training import TrainingBackend
from harness.backends._common.weights import WeightBackend, name_module_in_errors, untie_head
from harness.numerics.named_formats import Bits, InputFormatName, named_formats
from harness.records import Entry, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear
    from harness.training.data import Training
    from harness.training.examples import Batch
    from harness.training.loop import Trainable
    from harness.training.rounding import RoundedInput, RoundedWeights, Rounding

FIRST_TEXTS = 16
"""Training texts on which ranges of inputs begin."""


class Inputs(Entry):
    """The format to which the inputs of the layers are rounded, during the training and from then on."""

    format: InputFormatName = "int"
    """``int`` (with ``bits``), an FP8 float, or a block format (``mxfp4``, ``mxfp8_…``, ``nvfp4``)."""
    bits: Bits | None = None
    """Bits per code; required with format ``int``, not allowed with others."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: the grid spans the smallest to the largest value, and 0."""
    granularity: Literal["tensor", "token"] = "token"
    """The values that share a scale: the whole input, or the vector of one token."""
    dynamic: bool = True
    """true: compute the range of every input anew; false: a moving average of the training's inputs (granularity
    ``tensor`` only), or a learned step."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How far each batch moves a static range towards its own smallest and largest input."""

    @model_validator(mode="after")
    def _check_settings(self) -> Inputs:
        in_groups = named_formats()[self.format].group_size is not None
        if (self.format == "int") != (self.bits is not None):
            raise ValueError("bits belongs to format: int, and only to it; the other formats have their own")
        if self.format != "int" and not self.symmetric:
            raise ValueError(f"symmetric: false needs format: int; {self.format} has no zero point")
        if in_groups and (self.granularity != "token" or not self.dynamic):
            raise ValueError(f"{self.format} brings its own groups with dynamic scales; leave out granularity, dynamic")
        if not self.dynamic and self.granularity != "tensor":
            raise ValueError(
                "dynamic: false needs granularity: tensor; the scale of a future token is not known in advance"
            )
        return self

    def number_format(self) -> NumberFormat:
        """The format as it is described. Loads no torch."""
        fields: dict[str, Any] = {"symmetric": self.symmetric, "dynamic": self.dynamic}
        if named_formats()[self.format].group_size is None:
            fields["granularity"] = self.granularity
        return named_formats()[self.format].record(self.bits, **fields)


class Qat(TrainingBackend, WeightBackend):
    """Trains the model while linear weights, and inputs of these layers if asked, are rounded, then converts it.

    The forward pass computes with rounded values, the backward pass with the straight-through estimator: gradients pass
    where the grid reaches, and are 0 outside. With ``learned_steps`` the step sizes are parameters as well (LSQ, Esser
    et al. 2020, arXiv 1902.08153). Weights are trained in float32 towards the reference's predictions
    (self-distillation), the texts themselves, or both. What comes out lies on the same grid as with round_to_nearest.
    """

    activations: Inputs | None = Field(default=None, examples=[{"bits": 8, "granularity": "tensor"}])
    """Rounding of the layers' inputs, during the training and from then on; null: inputs stay as they are."""
    learned_steps: bool = False
    """Learn the step size of every block, and of static inputs, beside the weights (LSQ). Needs scales that are plain
    floats, and ``range: min_max``."""
    hard_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the cross-entropy on the texts themselves; the rest is the KL divergence from the reference."""
    update: Literal["all", "quantized"] = "all"
    """``all``: every parameter of the model is trained; ``quantized``: only the weights that are rounded."""

    @model_validator(mode="after")
    def _steps_can_be_learned(self) -> Qat:
        scales = {each.number_format().scales for each in self.variations()} if self.learned_steps else set()
        if scales - {"float"}:
            raise ValueError("learned_steps needs scales that are plain floats, so no double_quantize, MX or NV format")
        if self.learned_steps and any(each.range != "min_max" for each in self.variations()):
            raise ValueError("learned_steps needs range: min_max; the steps find their own range")
        return self

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """Weights, and activations if asked."""
        return ("weights", "activations") if self.activations else ("weights",)

    def extra_activations(self, parameters: int) -> int:
        """Rounded weights, where the grid reaches them and, if steps are learned, by how much each was rounded."""
        return parameters * (9 if self.learned_steps else 5)

    def train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training) -> Compressed:
        """Train with rounded weights and inputs, then round for good; raises BackendError naming the module."""
        from harness.modules.activations import round_inputs
        from harness.training.fitting import fit
        from harness.training.loop import Task
        from harness.training.precision import float32_parameters, refuse_packed
        from harness.training.rounding import RoundedWeights

        refuse_packed(self.kind, model)
        layers = self.select_layers(model)
        give_own_head(model, [name for name, _ in layers])
        with float32_parameters(model), ExitStack() as undone:
            inputs = self._round_inputs(model, layers, training)
            weights = RoundedWeights(layers, self._rounding_of)
            undone.callback(weights.remove)
            for name, each in inputs.items():
                undone.callback(each.attach(model.get_submodule(name)))
            trainable, state = self._collect(model, weights, inputs)
            rounded = sum(each.numel() for each in weights.parameters.values())
            keeps = self.extra_activations(rounded)
            fit(Task(self.kind, model, trainable, self._loss, self.settings(), state, keeps=keeps), self, training)
            weights.convert()
        for name, each in inputs.items():
            round_inputs(model.get_submodule(name), each.form, each.limits(), model.device)
        untie_head(model, (name for name, _ in layers))
        described = merge_stacks(self.describe(name, module) for name, module in layers)
        rounds = {} if self.activations is None else dict.fromkeys(inputs, self.activations.number_format())
        return Compressed(model, described, rounds)

    def _rounding_of(self, name: str, weight_OI: Tensor) -> Rounding:
        """The rounding of one layer's weight. Raises BackendError naming it for a weight that cannot be rounded."""
        from harness.numerics.formats import quantize
        from harness.training.fake_quantize import LearnedSteps, round_through

        settings = self.for_module(name)
        form = settings.weight_format()
        with name_module_in_errors(self, name):
            quantize(weight_OI, form)
            if self.learned_steps:
                return LearnedSteps.of_values(weight_OI, form)
        return lambda weight_OI: round_through(weight_OI, form, settings.limits_of(weight_OI, form))

    def _round_inputs(
        self, model: PreTrainedModel, layers: Sequence[tuple[str, Linear]], training: Training
    ) -> dict[str, RoundedInput]:
        """The rounding of every layer's input by name; static ones begin with what the first texts show."""
        import torch

        from harness.modules.decoder_layers import observe_inputs
        from harness.modules.experts import ExpertMatrix
        from harness.modules.linears import weight_of
        from harness.numerics.formats import format_of
        from harness.training.fake_quantize import LearnedSteps
        from harness.training.rounding import RoundedInput

        if self.activations is None:
            return {}
        form, momentum = format_of(self.activations.number_format()), self.activations.momentum
        names = [name for name, layer in layers if not isinstance(layer, ExpertMatrix)]
        if self.activations.dynamic:
            return {name: RoundedInput(form) for name in names}
        ends = {name: torch.zeros(2, device=model.device) for name in names}
        sizes: dict[str, list[Tensor]] = {name: [] for name in names}

        def see(name: str, x_NI: Tensor) -> None:
            low, high = x_NI.aminmax()
            ends[name] = torch.stack([torch.minimum(ends[name][0], low), torch.maximum(ends[name][1], high)])
            sizes[name].append(x_NI.abs().float().mean())

        observe_inputs(model, {name: partial(see, name) for name in names}, training.texts[:FIRST_TEXTS])
        if not self.learned_steps or not self.activations.symmetric:
            return {name: RoundedInput(form, ends[name], momentum) for name in names}
        learned = {}
        for name in names:
            width, mean = weight_of(cast("Linear", model.get_submodule(name))).shape[1], torch.stack(sizes[name]).mean()
            learned[name] = RoundedInput(form, learned=LearnedSteps.of_values(mean[None], form, shared=width))
        return learned

    def _collect(
        self, model: PreTrainedModel, weights: RoundedWeights, inputs: Mapping[str, RoundedInput]
    ) -> tuple[dict[str, Trainable], dict[str, Tensor]]:
        """What is trained by name, and the ranges that move along."""
        from harness.training.loop import Trainable

        steps = {id(each.scale) for each in weights.steps}
        rounded = weights.parameters.keys()
        trainable = {
            name: Trainable(each, decays=id(each) not in steps)
            for name, each in model.named_parameters()
            if self.update == "all" or id(each) in steps or id(each) in rounded
        }
        for name, each in inputs.items():
            if each.learned is not None:
                trainable[f"{name}.input_step"] = Trainable(each.learned.scale, decays=False)
        ends = {f"{name}.input_range": each.ends for name, each in inputs.items() if each.ends is not None}
        return trainable, ends

    def _loss(self, student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """α·CE + (1 − α)·KL(reference ‖ student), α: ``hard_labels``."""
        from torch.nn.utils import parametrize

        from harness.training.losses import mean_kl, mean_nll, predict

        hard, named = self.hard_labels, dict[str, Any]()
        with parametrize.cached():
            logits_NV = batch.logits(student)
        if hard:
            named["nll"] = hard * mean_nll(logits_NV, batch.targets)
        if hard < 1:
            named["kl"] = (1 - hard) * mean_kl(predict(teacher, batch), logits_NV)
        return named
