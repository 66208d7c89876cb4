"""AWQ: activation-aware weight quantization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field

from harness.backends import Compressed
from harness.backends._common.stacks import merge_stacks
from harness.backends._common.weights import Replacing, WeightBackend, name_module_in_errors, untie_head
from harness.records import ModuleFormat, Note

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.decoder_layers import Block
    from harness.modules.linears import Linear
    from harness.modules.transforms.folding import Folding
    from harness.numerics.awq import Scaling
    from harness.numerics.ranges import Limits

    Chosen = dict[str, Linear]


class Awq(WeightBackend):
    """Scales up salient weights, clips outliers, then rounds; both searches minimise the output error (AWQ).

    Two searches on calibration documents (Lin et al. 2023, arXiv 2306.00978). First, for linear layers that share their
    input, a scale mean|x|^α per input channel, folded into the preceding norm or linear layer. Its error is measured at
    the output of the smallest module that contains all these layers (the whole attention, the whole MLP, or the single
    layer), as in the authors' implementation, so that softmax and gates are taken into account. Second, for every layer
    except queries and keys, the clipping range of every block of weights. As in the authors' implementation, every
    decoder block gets the outputs of the unquantized blocks before it. No scaling and no clipping are always among the
    candidates, so neither search ends with a larger error than plain rounding on the objective it minimises. Layers
    into whose inputs nothing can be folded, and experts stacked in one parameter, are clipped and rounded only; layers
    that no calibration document reached are rounded only, and named in a note. If several heads share their values
    (GQA), these are scaled too, with one scale per shared value channel.
    """

    needs_calibration = True

    scale_grid: Annotated[int, Field(ge=0)] = 20
    """Grid steps of α between 0 and 1; 0: no scaling."""
    duo_scaling: bool = False
    """Divide the scales by the mean size of the weights to the power 1 − α, as later implementations do."""
    clip: bool = True
    """Search the clipping range of every block of weights; the search starts from ``range``."""
    clip_grid: Annotated[int, Field(ge=1)] = 20
    """Candidate ranges go from the full range of a block down to half of it, in steps of 1/clip_grid."""
    clip_tokens: Annotated[int, Field(ge=1)] = 512
    """Number of calibration tokens, evenly spaced, on which clipping ranges are compared."""
    no_clip: tuple[str, ...] = ("*.q_*", "*.k_*", "*query*", "*key*", "*qkv*", "*.c_attn")
    """Patterns of layers that are not clipped; default: queries and keys, whose outputs multiply each other."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Scale, clip and replace the weight of every linear layer that is not skipped; raises BackendError naming the
        module."""
        import torch

        with torch.no_grad():
            return self._compress(model, calibration)

    def _compress(self, model: PreTrainedModel, calibration: Sequence[Tensor]) -> Compressed:
        from harness.modules.decoder_layers import observe_inputs, walk_blocks
        from harness.modules.transforms.folding import find_foldings

        chosen = dict(self.select_layers(model))
        for name, module in chosen.items():
            self._check(name, module)
        foldings = find_foldings(model, calibration).accepted if self.scale_grid else ()
        stride = max(1, sum(map(len, calibration)) // self.clip_tokens)
        work = _CompressionState(self, chosen, stride)
        for block in walk_blocks(model, calibration):
            work.round_pending()  # The block before has passed on its outputs by now.
            work.scale(block, [each for each in foldings if each.readers[0].startswith(f"{block.name}.")])
            work.clip([name for name, _ in block.linears()], block.observe)
        work.round_pending()
        outside = [name for name in chosen if name not in work.formats]
        work.clip(outside, lambda taps: observe_inputs(model, taps, calibration))
        work.round_pending()
        described = merge_stacks(work.formats[name] for name in chosen)
        untie_head(model, chosen)
        notes = [self._note(work.scalings, len(chosen)), *self._note_unreached(work.unreached)]
        return Compressed(model, described, notes=tuple(notes))

    def clips(self, name: str) -> bool:
        """Whether the clipping range of a module is searched."""
        from harness.modules.experts import stack_name

        name = stack_name(name)
        return self.clip and not any(fnmatchcase(name, pattern) for pattern in self.no_clip)

    def limits(self, name: str, weight_OI: Tensor) -> Limits | None:
        """The limits given by ``range``, without a search; raises BackendError for weights that have none."""
        settings = self.for_module(name)
        with name_module_in_errors(self, name):
            return settings.limits_of(weight_OI, settings.weight_format())

    def round(self, name: str, weight_OI: Tensor, limits: Limits | None) -> Tensor:
        """Round the weight of a module to its format; raises BackendError if that is impossible."""
        from harness.numerics.formats import quantize

        with name_module_in_errors(self, name):
            return quantize(weight_OI, self.for_module(name).weight_format(), limits).values

    def _check(self, name: str, module: Linear) -> None:
        """Refuse non-finite weights before they spoil the inputs of all later modules."""
        from harness.modules.linears import weight_of
        from harness.numerics.formats import check_tensor

        with name_module_in_errors(self, name):
            check_tensor(weight_of(module))

    def _note(self, scalings: Sequence[tuple[int, Scaling]], modules: int) -> Note:
        scaled = sum(count for count, _ in scalings)
        exponents = [scaling.exponent for _, scaling in scalings if scaling.exponent is not None]
        mean = f", mean alpha {sum(exponents) / len(exponents):.2f}" if exponents else ""
        text = (
            f"{self.kind}: {scaled} of {modules} linear layers in {len(scalings)} groups could be scaled; "
            f"{len(exponents)} groups were{mean}"
        )
        return Note(topic="scaling", text=text)

    def _note_unreached(self, names: Sequence[str]) -> Iterator[Note]:
        from harness.modules.experts import format_names

        if names:
            text = (
                f"{len(names)} linear layers received no calibration token, so their ranges could not be searched: "
                f"{format_names(names)}"
            )
            yield Note(topic="awq: not calibrated", text=text, level="warn")

    def _patterns(self) -> Iterator[str]:
        yield from super()._patterns()
        if "no_clip" in self.model_fields_set:
            yield from self.no_clip


class _CompressionState:
    """The state of one compression: scales and limits that are decided but not applied yet, and statistics for the
    notes."""

    def __init__(self, step: Awq, chosen: Chosen, stride: int) -> None:
        self.formats: dict[str, ModuleFormat] = {}
        self.scalings: list[tuple[int, Scaling]] = []
        self.unreached: list[str] = []
        self._step, self._chosen, self._stride = step, chosen, stride
        self._pending: dict[str, Limits | None] = {}
        self._clipped: set[str] = set()
        self._replacing = Replacing()

    def scale(self, block: Block, foldings: Sequence[Folding]) -> None:
        """Search and fold the scale of every group of layers in the block that share their inputs."""
        from harness.modules.transforms.folding import fold

        # Those into linear layers first: they change rows of layers that the others then round.
        for folding in reversed(foldings):
            concerned = [name for name in folding.readers if name in self._chosen]
            if concerned:
                found = _search(self._step, block, folding, self._chosen)
                fold(block.module, _relate_to_block(block, folding), found.scale)
                self.scalings.append((len(concerned), found))

    def clip(self, names: Iterable[str], observe: Callable[[dict[str, Callable[[Tensor], None]]], None]) -> None:
        """Choose the limits of modules; the next ``round_pending`` applies them."""
        from harness.modules.linears import weight_of
        from harness.numerics.awq import search_clip

        step = self._step
        wanted = [name for name in names if name in self._chosen]
        samples = {name: _RowSampler(self._stride) for name in wanted if step.clips(name)}
        if samples:
            observe({name: sample.take for name, sample in samples.items()})
        for name in wanted:
            weight = weight_of(self._chosen[name])
            start = step.limits(name, weight)
            sample = samples[name].rows() if name in samples else None
            if sample is None:
                self._pending[name] = start
                self.unreached += [name] if name in samples else []
                continue
            with name_module_in_errors(step, name):
                form = step.for_module(name).weight_format()
                self._pending[name] = search_clip(weight, sample, form, start, step.clip_grid)
            self._clipped.add(name)

    def round_pending(self) -> None:
        """Round every module whose limits are decided."""
        from harness.modules.linears import weight_of

        step = self._step
        for name, limits in self._pending.items():
            module = self._chosen[name]
            if not self._replacing.replace_if_shared(module):
                self._replacing.replace(module, step.round(name, weight_of(module), limits))
            described = step.describe(name, module)
            if name in self._clipped:
                clipped = described.format.model_copy(update={"ranges": "output_error", "percentile": None})
                described = described.model_copy(update={"format": clipped})
            self.formats[name] = described
        self._pending.clear()


class _RowSampler:
    """Samples every n-th row of all inputs of a module."""

    def __init__(self, stride: int) -> None:
        self._stride, self._seen = stride, 0
        self._rows: list[Tensor] = []

    def take(self, inputs_NI: Tensor) -> None:
        self._rows.append(inputs_NI[-self._seen % self._stride :: self._stride].clone())
        self._seen += len(inputs_NI)

    def rows(self) -> Tensor | None:
        """The sampled rows [N, I]; None for a module that was never called."""
        import torch

        return torch.cat(self._rows) if self._rows else None


def _relate_to_block(block: Block, folding: Folding) -> Folding:
    """The folding with module names relative to the block."""
    from dataclasses import replace

    cut = len(block.name) + 1
    return replace(folding, source=folding.source[cut:], readers=tuple(name[cut:] for name in folding.readers))


def _search(step: Awq, block: Block, folding: Folding, chosen: Chosen) -> Scaling:
    """The best scale of the readers by the output error of the smallest module of ``block`` that contains them all."""
    from harness.modules.linears import weight_of
    from harness.numerics.awq import gram_error, relative_size, search_scale

    inside = _relate_to_block(block, folding)
    readers = [cast("Linear", block.module.get_submodule(name)) for name in inside.readers]
    weights = [weight_of(reader).clone() for reader in readers]
    forms = [step.for_module(name).weight_format() for name in folding.readers]
    inputs = _InputStatistics(products=len(readers) == 1)
    block.observe({folding.readers[0]: inputs.take})
    mean_I = folding.pool_shared(inputs.total / inputs.seen, "mean")
    relative = folding.pool_shared(relative_size(weights, forms), "mean") if step.duo_scaling else None

    def make_rounding(name: str) -> Callable[[Tensor], Tensor]:
        if name not in chosen:
            return lambda weight_OI: weight_OI
        return lambda weight_OI: step.round(name, weight_OI, step.limits(name, weight_OI))

    def own_error(replaced: Sequence[Tensor]) -> float:
        return gram_error(inputs.gram, weights, replaced)

    error = own_error if inputs.products else _module_error(block, inside.readers)
    return search_scale(
        mean_I, weights, [make_rounding(name) for name in folding.readers], error, step.scale_grid, relative
    )


def _module_error(block: Block, names: Sequence[str]) -> Callable[[Sequence[Tensor]], float]:
    """Squared output error of the innermost module that contains all the named layers, with the given weights in
    them."""
    from harness.modules.transforms.replay import Replay

    readers = [cast("Linear", block.module.get_submodule(name)) for name in names]
    replay = Replay(block, _smallest_module(block, names))
    expected = list(replay.outputs())

    def error(replaced: Sequence[Tensor]) -> float:
        with _replace_weights(readers, replaced):
            pairs = zip(expected, replay.outputs(), strict=True)
            return sum((was.float() - now.float()).square().sum().item() for was, now in pairs)

    return error


class _InputStatistics:
    """Sum of absolute inputs per channel over all calibration tokens, and with ``products`` XᵀX."""

    def __init__(self, products: bool) -> None:
        self.products, self.seen = products, 0
        self.total: Tensor
        self.gram: Tensor

    def take(self, inputs_NI: Tensor) -> None:
        x_NI = inputs_NI.float()
        size_I = x_NI.abs().sum(dim=0)
        self.total = self.total + size_I if self.seen else size_I
        if self.products:
            gram_II = x_NI.T @ x_NI
            self.gram = self.gram + gram_II if self.seen else gram_II
        self.seen += len(x_NI)


def _smallest_module(block: Block, names: Sequence[str]) -> str:
    """Name of the innermost module that contains all the named ones and is itself called; empty for the block."""
    from torch import nn

    parts = list(zip(*(name.split(".") for name in names), strict=False))
    common = [step[0] for step in parts if len(set(step)) == 1]
    while common and isinstance(block.module.get_submodule(".".join(common)), nn.ModuleList | nn.ModuleDict):
        common.pop()
    return ".".join(common)


@contextmanager
def _replace_weights(modules: Sequence[Linear], weights: Sequence[Tensor]) -> Iterator[None]:
    """Temporarily replace the weights [O, I] of modules."""
    from harness.modules.linears import weight_of

    own = [weight_of(module).clone() for module in modules]
    try:
        for module, weight in zip(modules, weights, strict=True):
            weight_of(module).copy_(weight)
        yield
    finally:
        for module, weight in zip(modules, own, strict=True):
            weight_of(module).copy_(weight)
