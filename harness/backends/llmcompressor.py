"""Quantization with the library llm-compressor."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Quantized
from harness.backends._common.simulating import Result, Simulated, SimulatingBackend, preserve_global_state
from harness.numerics.named_formats import named_formats
from harness.records import CacheFormat, Note, NumberFormat

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STATIC = ("FP8", "NVFP4")
"""Schemes whose activation ranges need calibration documents."""
_WEIGHTS_ALONE = re.compile(r".*A16(_ASYM)?")
_EXPECTED = ("Calibrating", "on CPU", "No accelerator", "tokenizer parallelism", "Calibration pipeline is set")
"""Warnings that the library gives on every machine without a GPU and that do not concern the result."""
Scheme = Literal[
    "W8A8", "W8A16", "W7A8", "W7A16", "W6A8", "W6A16", "W5A8", "W5A16", "W4A16", "W4A16_ASYM", "W4A8", "W4A4", "W4AFP8",
    "W3A16", "W3A8", "W3A4", "W2A16", "W2A8", "W2A4", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "NVFP4A16", "MXFP4",
    "MXFP4A16", "MXFP8", "MXFP8A16",
]  # fmt: skip


class LlmCompressor(SimulatingBackend):
    """Quantizes with the library llm-compressor: rounding, GPTQ, AWQ, SmoothQuant, FP8, KV cache, or a whole recipe.

    The library computes with floats: it rounds weights once, and inputs and cache at every use; its checkpoint stores
    codes for kernels of other runtimes. The KV cache has one range for all tokens, from the calibration documents. Each
    document is run alone and uncut, in the order given.
    """

    requires = ("llmcompressor",)
    extra = "llmcompressor"
    paths = ("recipe",)

    recipe: str | None = Field(default=None, examples=["./recipe.yaml"])
    """Path of a recipe file of the library (YAML), passed unchanged. It selects the layers itself; no other setting may
    be given, and calibration documents are always needed."""
    scheme: Scheme | None = None
    """A named scheme of the library, for weights and (other than A16) inputs."""
    bits: Annotated[int, Field(ge=2, le=8, examples=[4])] | None = None
    """Bits of integer weights, instead of a scheme."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = None
    """Inputs that share a scale. Default: with ``bits`` the whole output channel, with a grouped scheme 128."""
    symmetric: bool | None = None
    """Only with ``bits``: true (the default): codes around 0 without a zero point; false: with one."""
    method: Literal["round", "gptq", "awq"] = "round"
    """Rounding method of the weights."""
    smoothing: Annotated[float, Field(gt=0, lt=1, examples=[0.5])] | None = None
    """SmoothQuant strength (0 to 1): first move outliers of inputs into weights; not given: no smoothing."""
    kv_cache: Literal["int8", "fp8"] | None = None
    """Quantize keys and values, with one range each per layer."""
    act_order: bool | None = None
    """Only with gptq: quantize columns with the strongest inputs first, with groups of neighbours; default true."""
    damping: Annotated[float, Field(gt=0, le=1, examples=[0.01])] | None = None
    """Only with gptq: damping added to the diagonal of the Hessian, as a fraction of its mean; default 0.01."""

    @model_validator(mode="after")
    def _check_settings(self) -> LlmCompressor:
        if self.recipe is not None:
            fields = {name: field.default for name, field in type(self).model_fields.items() if name != "recipe"}
            if more := sorted(name for name, default in fields.items() if getattr(self, name) != default):
                raise ValueError(f"a recipe contains all settings itself; leave out {', '.join(more)}")
            return self
        if self.scheme and self.bits:
            raise ValueError("scheme and bits both set the weight format; give one of them")
        if not (self.scheme or self.bits or self.kv_cache):
            raise ValueError("one of recipe, scheme, bits and kv_cache is needed")
        weights = bool(self.scheme or self.bits)
        if not weights and (self.method != "round" or self.smoothing or self.group_size):
            raise ValueError("method, smoothing and group_size concern weights and need a scheme or bits")
        groups = self.scheme is not None and self.scheme.startswith("W") and self.scheme != "W8A8"
        if self.scheme and (self.symmetric is not None or (self.group_size and not groups)):
            raise ValueError(
                f"{self.scheme} fixes granularity and symmetry itself; leave them out, or give bits instead of a scheme"
            )
        if (self.act_order is not None or self.damping is not None) and self.method != "gptq":
            raise ValueError("act_order and damping belong to method: gptq")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether the step needs calibration documents with these settings."""
        learns = self.method != "round" or self.smoothing or self.kv_cache or self.scheme in _STATIC
        return bool(learns) or self.recipe is not None

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """What the step quantizes with these settings; of a recipe only weights are known."""
        if self.recipe is not None:
            return ("weights",)
        wanted: dict[Quantized, bool] = {
            "weights": bool(self.scheme or self.bits),
            "activations": self.scheme is not None and not _WEIGHTS_ALONE.fullmatch(self.scheme),
            "cache": self.kv_cache is not None,
        }
        return tuple(what for what, whether in wanted.items() if whether)

    def must_reach(self, names: Sequence[str]) -> Sequence[str]:
        """All layers, if the settings select the layers; none with a recipe."""
        return names if self.scheme or self.bits else ()

    def simulate(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> Result:
        """Run the library's ``oneshot`` with the recipe, round the weights permanently, and describe every module."""
        # Read when the library is first imported: what matters of what it says becomes notes.
        os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
        from llmcompressor import oneshot
        from llmcompressor.core import create_session
        from torch.utils.data import DataLoader

        # batch_size None: every document is a batch of its own, neither cut nor padded nor moved.
        documents = [{"input_ids": ids[None], "attention_mask": ids[None].new_ones(1, len(ids))} for ids in calibration]
        loader: Any = DataLoader(documents, batch_size=None) if documents else None  # type: ignore[arg-type]
        recipe = self.recipe or self._modifiers(model, names)
        with create_session(), _folder_of(model), _disable_pinning(), _warnings() as warnings:
            oneshot(model=model, tokenizer=tokenizer, recipe=recipe, dataset=loader, shuffle_calibration_samples=False)
        _clear(model)
        schemes = {name: done for name, module in model.named_modules() if (done := _settle(module))}
        notes = tuple(Note(topic=self.kind, text=text, level="warn") for text in warnings)
        return Result(model, schemes, _cache(model, self.kind), notes)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the library's checkpoint: packed codes and scales, in the format compressed-tensors."""
        from llmcompressor.core import create_session
        from llmcompressor.transformers.compression.compressed_tensors_utils import modify_save_pretrained

        shipped: Any = copy.deepcopy(model)  # Packing changes the model that is packed.
        with preserve_global_state(), create_session(), _folder_of(shipped):
            modify_save_pretrained(shipped)
            shipped.save_pretrained(str(folder))

    def _modifiers(self, model: PreTrainedModel, names: Sequence[str]) -> list[Any]:
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        from harness.modules.linears import linears

        common: dict[str, Any] = {"ignore": [name for name, _ in linears(model) if name not in names]}
        if scheme := self._scheme():
            common["config_groups"] = {"group_0": scheme}
        if self.kv_cache:
            kind = "int" if self.kv_cache == "int8" else "float"
            common["kv_cache_scheme"] = {"num_bits": 8, "type": kind, "strategy": "tensor", "symmetric": True}
        steps: list[Any] = [SmoothQuantModifier(smoothing_strength=self.smoothing)] if self.smoothing else []
        if self.method == "gptq":
            order = None if self.act_order is False else "static"
            return [*steps, GPTQModifier(dampening_frac=self.damping or 0.01, actorder=order, **common)]
        return [*steps, *([AWQModifier()] if self.method == "awq" else []), QuantizationModifier(**common)]

    def _scheme(self) -> Any:
        """The library's own record of the format of weights and inputs; None without one."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

        if self.scheme:
            scheme = preset_name_to_scheme(self.scheme, ["Linear"])
            if self.group_size:
                scheme.weights.group_size = self.group_size
            return scheme
        if self.bits is None:
            return None
        shared = {"strategy": "group", "group_size": self.group_size} if self.group_size else {"strategy": "channel"}
        weights = QuantizationArgs(num_bits=self.bits, type="int", symmetric=self.symmetric is not False, **shared)
        return QuantizationScheme(targets=["Linear"], weights=weights)


def _clear(model: nn.Module) -> None:
    """Remove what the library attached to a model for calibration and saving: other tensors, other functions."""
    from compressed_tensors.offload import remove_dispatch

    # Copied with the model, it would save the one that it was made for.
    vars(model).pop("save_pretrained", None)
    remove_dispatch(model)
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # Put there for a while and back again, it hides the class's own.


def _settle(module: nn.Module) -> Simulated | None:
    """Round the weight of a module permanently, and describe what the library did; None if nothing.

    A module frozen by the library keeps its original weight and rounds it at every call. The rounded weight gives the
    same products, and it is the one that is measured and compared.
    """
    import torch
    from compressed_tensors.quantization import QuantizationStatus, forward_quantize

    scheme = getattr(module, "quantization_scheme", None)
    if scheme is None or not isinstance(module, torch.nn.Linear):
        return None
    if scheme.weights is not None:
        with torch.no_grad():
            module.weight.data = forward_quantize(module, module.weight.data, "weight", scheme.weights)
    for name, args in (("weight", scheme.weights), ("input", scheme.input_activations)):
        if args is not None and args.symmetric and hasattr(module, f"{name}_zero_point"):
            delattr(module, f"{name}_zero_point")  # All are 0, and no checkpoint holds them.
    if scheme.input_activations is None and scheme.output_activations is None:
        vars(module).pop("forward", None)  # Nothing is left to be rounded when it is called.
    if scheme.weights is None and scheme.input_activations is None:
        del module.quantization_scheme, module.quantization_status
        return None
    module.quantization_status = QuantizationStatus.DECOMPRESSED
    inputs = None if scheme.input_activations is None else _input_format(scheme.input_activations)
    stated, extra = (None, 0) if scheme.weights is None else _weight_format(module, scheme.weights)
    return Simulated(stated, extra, inputs)


def _weight_format(module: Any, weights: Any) -> tuple[NumberFormat, int]:
    """The format of a module's weight, and the bits of its scales and zero points in the library's checkpoint."""
    scale = module.weight_scale
    tiny = weights.scale_dtype is not None and weights.scale_dtype.itemsize == 1
    bits = scale.numel() * (8 if tiny else 8 * scale.element_size())
    bits += 0 if weights.symmetric else module.weight_zero_point.numel() * weights.num_bits
    bits += 32 if hasattr(module, "weight_global_scale") else 0
    ranges = "min_max" if "minmax" in (weights.observer or "minmax") else weights.observer
    order = weights.strategy == "group" and weights.actorder == "group"
    return _number_format(weights).model_copy(update={"ranges": ranges, "act_order": order}), bits


def _input_format(args: Any) -> NumberFormat:
    return _number_format(args).model_copy(update={"dynamic": bool(args.dynamic)})


def _number_format(args: Any) -> NumberFormat:
    """Convert the library's record of a format to ours."""
    named = named_formats()
    powers = args.strategy == "group" and args.scale_dtype is not None and not args.scale_dtype.is_floating_point
    if args.type == "int":
        described = named["int"].record(args.num_bits)
    elif args.strategy == "tensor_group":
        described = named["nvfp4"].record()
    elif args.num_bits == 8:
        described = named["mxfp8_e4m3" if powers else "fp8_e4m3"].record()
    else:
        described = (
            named["mxfp4"].record()
            if powers
            else NumberFormat(type="float", bits=args.num_bits, element="fp4", scales="float")
        )
    strategy = str(getattr(args.strategy, "value", args.strategy))
    strategy = {"tensor_group": "group", "attn_head": "head"}.get(strategy, strategy)
    size = {"block": (args.block_structure or [None])[0], "group": args.group_size}.get(strategy)
    return described.model_copy(update={"granularity": strategy, "group_size": size, "symmetric": bool(args.symmetric)})


def _cache(model: nn.Module, kind: str) -> CacheFormat | None:
    """The format of keys and values, if attention modules quantize the cache."""
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if hasattr(module, "kv_cache") and scheme is not None:
            kept, bits = _input_format(scheme.input_activations), scheme.input_activations.num_bits
            return CacheFormat(
                keys=kept, values=kept, bits_per_value=bits, residual=0, kernel="simulated", backend=kind
            )
    return None


@contextmanager
def _folder_of(model: PreTrainedModel) -> Iterator[None]:
    """The library reads the configuration again from the folder the model came from; provide one if there is none."""
    config: Any = model.config
    before = config._name_or_path
    with tempfile.TemporaryDirectory(prefix="harness-llmcompressor-") as folder:
        config.save_pretrained(folder)
        config._name_or_path = folder
        try:
            yield
        finally:
            config._name_or_path = before


@contextmanager
def _disable_pinning() -> Iterator[None]:
    """AWQ pins its cache in memory for an accelerator; disable that if there is no accelerator and torch refuses."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    cache: Any = IntermediatesCache
    before = vars(IntermediatesCache)["_pin_intermediate"]
    cache._pin_intermediate = classmethod(lambda cls, value: None)
    try:
        yield
    finally:
        cache._pin_intermediate = before


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Warnings of the library that the reader must know: layers that GPTQ could not solve, for example."""
    from loguru import logger

    found: list[str] = []

    def hear(message: Any) -> None:
        text = " ".join(message.record["message"].split())
        # Its metrics have a level of their own, above that of warnings.
        meant = message.record["level"].name != "METRIC" and not any(each in text for each in _EXPECTED)
        if meant and text not in found:
            found.append(text)

    handle = logger.add(hear, level="WARNING", filter="llmcompressor")
    try:
        yield found
    finally:
        logger.remove(handle)
