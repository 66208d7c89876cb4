"""Measures how the reference model responds to compression: the table on its card.

Round-to-nearest, symmetric, simulated in float32 on every linear layer inside the decoder layers; the
embedding, which is also the output projection, stays as it is. Legend: O outputs, I inputs of a weight.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import LlamaForCausalLM

from harness.numerics.formats import Format, quantize
from harness.numerics.granularity import Blocks
from harness.numerics.grids import integer
from harness.pocket.plant import Plant, apply_plant, draw_plant
from harness.pocket.probe import exact_rates
from harness.pocket.world import Document, documents

LOSSLESS = 5e-5
"""Largest KL divergence, in nats per token, that 8-bit weights may cost with one channel planted."""
Z95 = 1.959963984540054


def quantize_weight(weight_OI: Tensor, bits: int, group: int | None) -> Tensor:
    """Round a weight to nearest; `group`: inputs that share a scale, 0 for a whole row, None for the whole tensor."""
    blocks = Blocks("tensor") if group is None else Blocks("group", group) if group else Blocks("channel")
    return quantize(weight_OI, Format(integer(bits), blocks)).values


def inner_linears(model: LlamaForCausalLM) -> Iterator[nn.Linear]:
    """The linear layers inside the decoder layers."""
    return (module for module in model.model.layers.modules() if isinstance(module, nn.Linear))


def _round_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (quantize(inputs[0], Format(integer(8), Blocks("tensor"))).values,)


@dataclass(frozen=True)
class Recipe:
    """A compression recipe: bits of the weights, group (see `quantize_weight`), INT8 activations, SmoothQuant."""

    name: str
    bits: int
    group: int | None
    activations: bool = False
    smooth: bool = False


PLAIN = Recipe("INT8 per channel", 8, 0)
ROUNDED = Recipe("INT8 per channel, activations INT8 per tensor", 8, 0, activations=True)
RECIPES = (
    PLAIN,
    Recipe("INT8 per tensor", 8, None),
    Recipe("INT4 group 32", 4, 32),
    Recipe("INT4 group 128", 4, 128),
    Recipe("INT4 per channel", 4, 0),
    Recipe("INT4 per tensor", 4, None),
    Recipe("INT3 group 32", 3, 32),
    Recipe("INT3 per channel", 3, 0),
    Recipe("INT2 per channel", 2, 0),
    ROUNDED,
    Recipe("the same after SmoothQuant 0.5", 8, 0, activations=True, smooth=True),
)


@torch.no_grad()
def smooth(model: LlamaForCausalLM, calibration: list[Tensor], alpha: float = 0.5) -> None:
    """Move activation outliers into the weights (Xiao et al. 2023), folded into the norms; in place."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            peaks = _channel_peaks(model, norm, calibration)
            columns = torch.stack([reader.weight.abs().amax(0) for reader in readers]).amax(0)
            factor = (peaks.pow(alpha) / columns.clamp_min(1e-8).pow(1.0 - alpha)).clamp_min(1e-8)
            norm.weight /= factor
            for reader in readers:
                reader.weight *= factor


def _channel_peaks(model: LlamaForCausalLM, norm: nn.Module, calibration: list[Tensor]) -> Tensor:
    """The largest absolute output of a norm in each channel."""
    seen: list[Tensor] = []
    hook = norm.register_forward_hook(lambda _, __, output: seen.append(output.abs().amax((0, 1))))
    for ids in calibration:
        model(ids)
    hook.remove()
    return torch.stack(seen).amax(0)


@torch.no_grad()
def compress(model: LlamaForCausalLM, recipe: Recipe, calibration: list[Tensor]) -> LlamaForCausalLM:
    """A compressed copy of the model."""
    variant = copy.deepcopy(model)
    if recipe.smooth:
        smooth(variant, calibration)
    for linear in inner_linears(variant):
        linear.weight.copy_(quantize_weight(linear.weight, recipe.bits, recipe.group))
        if recipe.activations:
            linear.register_forward_pre_hook(_round_input)
    return variant


@dataclass(frozen=True)
class Change:
    """Effect of a variant: change of NLL per token in nats with its 95 % interval, KL, top-1 agreement."""

    nll_delta: float
    low: float
    high: float
    perplexity: float
    kl: float
    agreement: float


@dataclass(frozen=True)
class Response:
    """Effect of a recipe: the change on documents, the scores of the tasks."""

    name: str
    change: Change
    tasks: dict[str, float]


def clustered_interval(deltas: Tensor, counts: Tensor) -> tuple[float, float, float]:
    """Mean change per token and its 95 % interval from per-document sums, documents being independent.

    The ratio of sums with its linearized variance over clusters (Cochran 1977, section 6.3).
    """
    mean = deltas.sum() / counts.sum()
    residuals = deltas - mean * counts
    clusters = len(deltas)
    error = math.sqrt(residuals.pow(2).sum().item() * clusters / (clusters - 1)) / counts.sum().item()
    return mean.item(), mean.item() - Z95 * error, mean.item() + Z95 * error


@torch.no_grad()
def log_probabilities(model: LlamaForCausalLM, ids_1T: Tensor) -> Tensor:
    """Log-probabilities (T - 1, V) of every token after the first."""
    return log_softmax(model(ids_1T).logits[0, :-1].float(), -1)


def encode(tokenizer: Tokenizer, pages: list[Document]) -> list[Tensor]:
    """Token ids (1, T) of each document, <s> to </s>."""
    end = tokenizer.token_to_id("</s>")
    return [torch.tensor([[*encoding.ids, end]]) for encoding in tokenizer.encode_batch([page.text for page in pages])]


def token_nlls(model: LlamaForCausalLM, documents_ids: list[Tensor]) -> list[float]:
    """Sum of the negative log-likelihoods of each document in nats, </s> included."""
    return [-log_probabilities(model, ids).gather(1, ids[0, 1:, None]).sum().item() for ids in documents_ids]


@dataclass(frozen=True)
class Baseline:
    """The float32 model and its log-probabilities on documents, shared by all variants."""

    model: LlamaForCausalLM
    tokenizer: Tokenizer
    ids: list[Tensor]
    log_probabilities: list[Tensor]
    calibration: list[Tensor]


def baseline(model: LlamaForCausalLM, tokenizer: Tokenizer, count: int, split: str = "heldout") -> Baseline:
    """Run the model over `count` documents of a split."""
    ids = encode(tokenizer, documents(split, count))
    calibration = encode(tokenizer, documents("calibration", 32))
    return Baseline(model, tokenizer, ids, [log_probabilities(model, each) for each in ids], calibration)


def choose_plant(model: LlamaForCausalLM, tokenizer: Tokenizer, screened: int = 12, confirmed: int = 400) -> Plant:
    """Plant two channels for which 8-bit activations lose most while 8-bit weights lose nothing.

    Channels differ in their natural size. Each is tested alone on ``screened`` calibration documents; channels whose
    weights cost at most LOSSLESS are ranked by the cost of activations. Among the pairs of the first eight, in this
    order, the first one is taken whose 95 % interval of the weights' loss on ``confirmed`` calibration documents
    contains zero; if none does, the first pair.
    """
    shape = model.config

    def plant(*channels: int) -> Plant:
        return draw_plant(int(shape.num_key_value_heads or 0), int(shape.head_dim or 0), tuple(sorted(channels)))

    def change(base: Baseline, plant: Plant, recipe: Recipe) -> Change:
        planted = copy.deepcopy(model)
        apply_plant(planted, plant)
        return compare(base, compress(planted, recipe, base.calibration))

    few = baseline(model, tokenizer, screened, "calibration")
    order = []
    for channel in range(shape.hidden_size):
        weights, inputs = (change(few, plant(channel), recipe).kl for recipe in (PLAIN, ROUNDED))
        order.append((weights > LOSSLESS, weights if weights > LOSSLESS else -inputs, channel))
    plants = [plant(*channels) for channels in itertools.combinations([each[-1] for each in sorted(order)[:8]], 2)]
    many = baseline(model, tokenizer, confirmed, "calibration")
    return next((each for each in plants if change(many, each, PLAIN).low <= 0), plants[0])


@torch.no_grad()
def compare(base: Baseline, variant: LlamaForCausalLM) -> Change:
    """Compare a variant with the float32 model, paired by document."""
    deltas, counts, losses, kl, agreed = [], [], 0.0, 0.0, 0
    for ids, reference in zip(base.ids, base.log_probabilities, strict=True):
        changed, targets = log_probabilities(variant, ids), ids[0, 1:, None]
        deltas.append((reference - changed).gather(1, targets).double().sum())
        counts.append(len(targets))
        losses -= changed.gather(1, targets).double().sum().item()
        kl += (reference.exp() * (reference - changed)).double().sum().item()
        agreed += int((reference.argmax(-1) == changed.argmax(-1)).sum())
    tokens = sum(counts)
    delta, low, high = clustered_interval(torch.stack(deltas), torch.tensor(counts, dtype=torch.float64))
    return Change(delta, low, high, math.exp(losses / tokens), kl / tokens, agreed / tokens)


def measure(base: Baseline, recipe: Recipe, items: int) -> Response:
    """Compress the model; compare it on the documents and on `items` items of each task."""
    variant = compress(base.model, recipe, base.calibration)
    return Response(recipe.name, compare(base, variant), exact_rates(logits_of(variant), base.tokenizer, items))


def logits_of(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor]:
    """The logits of a transformers model as a plain function of token ids."""

    def logits(ids_BT: Tensor) -> Tensor:
        output: Tensor = model(ids_BT).logits
        return output

    return logits
