"""Base class of backends that call a quantization library which replaces linear layers or their weights.

    chosen layers ─ checked ─▶ library ─▶ its modules ─ what do they keep? how do they multiply? ─▶ ModuleFormat

A backend declares which layers the library supports (``check``, ``dtypes``), calls the library (``hand_over``) and
declares the requested format (``number_format``, ``inputs``). Stored bytes, bits per weight and the GEMM kind are
determined by inspecting the modules that the library left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.backends import Compressed, Quantized
from harness.backends._common.linears import LinearBackend
from harness.backends._common.weights import untie_head
from harness.errors import BackendError, HarnessError
from harness.records import ModuleFormat, Note, NumberFormat

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear


class LibraryBackend(LinearBackend):
    """A backend whose library replaces linear layers or their weights."""

    quantizes = ("weights",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    """Weight dtypes that the library supports."""
    devices: ClassVar[tuple[str, ...]] = ()
    """Device types that the library supports; empty: any."""
    takes_conv1d: ClassVar[bool] = False
    """Whether the library supports GPT-2's Conv1D as well as nn.Linear."""

    def number_format(self, module: Linear) -> NumberFormat:
        """The weight format that the settings request for a layer, given the layer before quantization."""
        raise NotImplementedError

    def inputs(self) -> NumberFormat | None:
        """The format to which the layers round their inputs; None (the default): inputs are not quantized."""
        return None

    def check(self, module: Linear) -> str:
        """Why the library cannot quantize a layer, and what to do; empty if it can."""
        return ""

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """Let the library compress the named layers, in place or not; any exception becomes a BackendError."""
        raise NotImplementedError

    def checkpoint_config(self, left_out: Sequence[str]) -> Any:
        """The quantization config with which transformers loads the saved model.

        left_out: linear layers that were not quantized. None if transformers cannot load the result.
        """
        return None

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """Weights, and activations if the settings quantize inputs."""
        return (*self.quantizes, "activations") if self.inputs() else self.quantizes

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Pass every linear layer that is not skipped to the library, and inspect the result.

        Raises BackendError naming the module that the library does not support or left unchanged.
        """
        from harness.modules.linears import weight_of

        chosen, names = self.select_layers(model), list[str]()
        wanted, sizes, before = dict[str, NumberFormat](), dict[str, tuple[int, int]](), dict[str, object]()
        for name, module in chosen:
            self._check(name, module)
            names.append(name)
            wanted[name], before[name] = self.number_format(module), _mark(module)
            sizes[name] = weight_of(module).numel(), 0 if module.bias is None else module.bias.numel()
        untie_head(model, names)
        del chosen, module
        try:
            model = self.hand_over(model, names, tokenizer, calibration)
        except HarnessError:
            raise
        except Exception as error:  # A library may raise anything; the user must learn whose words these are.
            raise BackendError(f"{self.kind}: {type(error).__name__}: {error}") from error
        if same := [name for name in names if _mark(model.get_submodule(name)) == before[name]]:
            raise BackendError(
                f"{self.kind}: {same[0]} and {len(same) - 1} more were silently left unchanged by the library; "
                "skip them, or choose settings that fit their sizes"
            )
        found, inputs = self._describe(model, wanted, sizes), self.inputs()
        return Compressed(model, found, dict.fromkeys(names, inputs) if inputs else {}, notes=tuple(self._notes(found)))

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the folder that transformers loads: the library's format, or plain floats if all weights are plain
        floats.

        Raises BackendError if transformers cannot load either.
        """
        from transformers.quantizers.auto import AutoHfQuantizer

        from harness.modules.effective_weights import has_plain_weight
        from harness.modules.inspection import logical_weights

        layers = {name: module for name, module in model.named_modules() if logical_weights(module) is not None}
        plain = [name for name, module in layers.items() if has_plain_weight(module)]
        if len(plain) == len(layers):
            super().save(model, folder)
            return
        config = self.checkpoint_config(plain)
        if config is None:
            raise BackendError(
                f"{self.kind}: transformers cannot load the library's result with these settings, so there is no "
                "artifact to release; set artifact: none, or choose a step whose result can be saved"
            )
        shipped: Any = model
        # As from_pretrained leaves a model behind that it has quantized; taken back, for this one was not made so.
        shipped.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
        shipped.config.quantization_config = config
        try:
            shipped.save_pretrained(folder)
        finally:
            del shipped.hf_quantizer, shipped.config.quantization_config

    def replace_each(
        self, model: PreTrainedModel, names: Sequence[str], make: Callable[[nn.Module], nn.Module]
    ) -> PreTrainedModel:
        """Replace each named module by ``make(module)``, under all its names.

        One module at a time, so that little more than one layer is held twice. Raises BackendError naming the module.
        """
        places: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            places.setdefault(id(module), []).append(path)
        for name in names:
            old = model.get_submodule(name)
            try:
                new = make(old)
            except HarnessError:
                raise
            except Exception as error:  # As above.
                raise BackendError(f"{self.kind}: {name}: {type(error).__name__}: {error}") from error
            new.train(old.training)
            for path in places[id(old)]:
                if new is not old:
                    model.set_submodule(path, new)
        return model

    def _check(self, name: str, module: Linear) -> None:
        import torch

        from harness.modules.linears import weight_of

        weight, problem = weight_of(module), ""
        dtype, device = str(weight.dtype).removeprefix("torch."), weight.device.type
        if type(weight) is not torch.Tensor:
            problem = f"its weight is a {type(weight).__name__} already; give each step its own modules (only:, skip:)"
        elif not isinstance(module, torch.nn.Linear) and not self.takes_conv1d:
            problem = (
                f"is a {type(module).__name__}, the library supports nn.Linear only; skip it, or choose another backend"
            )
        elif dtype not in self.dtypes:
            problem = (
                f"its weight is {dtype}, and the library supports {', '.join(self.dtypes)}; set dtype: in reference:"
            )
        elif self.devices and device not in self.devices:
            problem = f"is on {device}, and the library supports {', '.join(self.devices)}; set device: in reference:"
        elif not bool(torch.isfinite(weight).all()):
            problem = "the weight contains NaN or infinity, so it cannot be quantized"
        if problem := problem or self.check(module):
            raise BackendError(f"{self.kind}: {name}: {problem}")

    def _describe(
        self, model: PreTrainedModel, wanted: Mapping[str, NumberFormat], sizes: Mapping[str, tuple[int, int]]
    ) -> tuple[ModuleFormat, ...]:
        """The formats after quantization, from the tensors that each module stores; shared tensors count once, with the
        first module."""
        from harness.modules.gemm_kind import multiplies_floats
        from harness.modules.inspection import Seen, measure_storage

        seen, formats = Seen(), list[ModuleFormat]()
        for name, requested in wanted.items():
            module, (weights, biases) = model.get_submodule(name), sizes[name]
            stored = measure_storage(module, seen)
            wide = stored.is_wider_than(requested.bits or 0, weights)
            real = not wide and not (self.inputs() and multiplies_floats(module))
            formats.append(
                ModuleFormat(
                    module=name,
                    type=type(module).__name__,
                    parameters=weights + biases,
                    stored_bytes=stored.weight + stored.bias,
                    bits_per_weight=8 * stored.weight / weights,
                    format=requested,
                    kernel="real" if real else "simulated",
                    backend=self.kind,
                )
            )
        return tuple(formats)

    def _notes(self, found: Sequence[ModuleFormat]) -> list[Note]:
        """A note if the library stores more bits than the declared format, or multiplies floats where integers are
        declared."""
        wide = [each for each in found if each.kernel == "simulated"]
        if not wide:
            return []
        first = wide[0]
        text = (
            f"{self.kind}: {len(wide)} of {len(found)} modules are declared as {first.format.name}, but on this "
            f"machine the library stores {first.bits_per_weight:.3g} bits per weight"
        ) + (" or multiplies floats" if self.inputs() else "")
        return [Note(topic="kernel", text=f"{text}: counted as simulated (first: {first.module})")]


def uneven_groups(module: Linear, group_size: int | None) -> str:
    """Why a library that needs full groups cannot quantize a layer; empty if the group size divides its inputs."""
    inputs = module.weight.shape[1]
    if not group_size or inputs % group_size == 0:
        return ""
    return f"its {inputs} inputs are not a multiple of group_size {group_size}; skip it, or choose another group size"


def _mark(module: nn.Module) -> object:
    """Equal before and after if a library left a layer unchanged: its class, its tensors, and their storage."""
    from harness.modules.inspection import named_tensors

    return type(module), sorted((name, each.data_ptr(), each._version) for name, each in named_tensors(module))
