"""What backends that hand a model to a library have in common.

    chosen layers ─ checked ─▶ library ─▶ its modules ─ what do they keep? how do they multiply? ─▶ ModuleFormat

A backend of this kind says what it takes (``check``, ``dtypes``), hands the model over (``hand_over``) and says which
format it asked for (``number_format``, ``inputs``). Bytes, bits, and the kind of kernel are found by inspection.
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
    """A backend that lets a library replace linear layers, or their weights."""

    quantizes = ("weights",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    """Dtypes of weights that the library takes."""
    devices: ClassVar[tuple[str, ...]] = ()
    """Types of devices on which it works; none: any."""
    takes_conv1d: ClassVar[bool] = False
    """Whether it takes the Conv1D of GPT-2 beside nn.Linear."""

    def number_format(self, module: Linear) -> NumberFormat:
        """The format of weights that the settings ask for, in a layer as it was before."""
        raise NotImplementedError

    def inputs(self) -> NumberFormat | None:
        """The format to which the layers round their inputs; None, the default: they do not."""
        return None

    def check(self, module: Linear) -> str:
        """Why the library cannot take a layer, and what to do; empty if it can."""
        return ""

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """Let the library compress the named layers of the model, in place or not; whatever it raises is wrapped."""
        raise NotImplementedError

    def checkpoint_config(self, left_out: Sequence[str]) -> Any:
        """What tells transformers how to load the folder of a compressed model: one of its quantization configs.

        left_out: linear layers that are as they were. None where transformers cannot load what the library makes.
        """
        return None

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """Activations too where the settings say something of inputs."""
        return (*self.quantizes, "activations") if self.inputs() else self.quantizes

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Hand over every linear layer that is not skipped, and look at what came back.

        Raises BackendError naming the module that the library cannot take or left as it was.
        """
        from harness.modules.linears import weight_of

        chosen, names = self.chosen(model), list[str]()
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
                f"{self.kind}: {same[0]} and {len(same) - 1} more were left as they were by the library, without a "
                "word; skip them, or take settings that fit their sizes"
            )
        found, inputs = self._describe(model, wanted, sizes), self.inputs()
        return Compressed(model, found, dict.fromkeys(names, inputs) if inputs else {}, notes=tuple(self._notes(found)))

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the folder that transformers loads: with the library, or as it is where all weights are plain floats.

        Raises BackendError where there is none.
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
                f"{self.kind}: transformers cannot load what the library makes with these settings: there is nothing "
                "to ship; set artifact: none, or take a step that can be saved"
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
        """Put ``make(module)`` in the place of each named module, under all its names.

        One at a time, so that little more than one layer is held twice. Raises BackendError naming the module.
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
            problem = f"is a {type(module).__name__}, the library takes nn.Linear only; skip it, or take another step"
        elif dtype not in self.dtypes:
            problem = f"its weight is {dtype}, and the library takes {', '.join(self.dtypes)}; set dtype: in reference:"
        elif self.devices and device not in self.devices:
            problem = f"lies on {device}, and the library works on {', '.join(self.devices)}; set device: in reference:"
        elif not bool(torch.isfinite(weight).all()):
            problem = "the weight holds NaN or infinity; nothing sensible can be computed from it"
        if problem := problem or self.check(module):
            raise BackendError(f"{self.kind}: {name}: {problem}")

    def _describe(
        self, model: PreTrainedModel, wanted: Mapping[str, NumberFormat], sizes: Mapping[str, tuple[int, int]]
    ) -> tuple[ModuleFormat, ...]:
        """What is there now, from the tensors that each module keeps; shared ones count with the first to have them."""
        from harness.modules.gemm_kind import multiplies_floats
        from harness.modules.inspection import Seen, measure_storage

        seen, formats = Seen(), list[ModuleFormat]()
        for name, requested in wanted.items():
            module, (weights, biases) = model.get_submodule(name), sizes[name]
            stored = measure_storage(module, seen)
            wide = stored.wider_than(requested.bits or 0, weights)
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
        """Where the library keeps more bits than the format has, or computes in floats what it calls integers."""
        wide = [each for each in found if each.kernel == "simulated"]
        if not wide:
            return []
        first = wide[0]
        text = (
            f"{self.kind}: {len(wide)} of {len(found)} modules are declared as {first.format.name}, and on this "
            f"machine the library keeps {first.bits_per_weight:.3g} bits a weight"
        ) + (" or multiplies floats" if self.inputs() else "")
        return [Note(topic="kernel", text=f"{text}: called simulated ({first.module} first)")]


def uneven_groups(module: Linear, group_size: int | None) -> str:
    """Why a library that fills no last group cannot take a layer; empty where groups divide its inputs."""
    inputs = module.weight.shape[1]
    if not group_size or inputs % group_size == 0:
        return ""
    return f"its {inputs} inputs are no multiple of group_size {group_size}; skip it, or take another size"


def _mark(module: nn.Module) -> object:
    """Equal before and after where a library left a layer alone: its class, its tensors, and where they lie."""
    from harness.modules.inspection import named_tensors

    return type(module), sorted((name, each.data_ptr(), each._version) for name, each in named_tensors(module))
