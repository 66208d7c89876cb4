"""Base class of backends whose library fake-quantizes: weights stay floats, and codes are packed only when saved.

    chosen layers ─ checked ─▶ library ─▶ floats on the grid of a format ─▶ ModuleFormat of what would be stored

Such a result is ``simulated``. Bits and bytes are those of the codes, scales and zero points in the library's
checkpoint, as for the harness's own simulations; after the last step the grid check verifies that the weights lie on
the declared grid.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from harness.backends import Compressed
from harness.backends._common.library import LibraryBackend
from harness.errors import BackendError, HarnessError
from harness.records import CacheFormat, ModuleFormat, Note, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear


@dataclass(frozen=True)
class Simulated:
    """What a library did to one module.

    format: the format of its weight, if it was quantized. extra_bits: scales, zero points and indices of the whole
    module, as stored in the library's checkpoint. inputs: the format to which its input is rounded from this step on.
    """

    format: NumberFormat | None
    extra_bits: int = 0
    inputs: NumberFormat | None = None


@dataclass(frozen=True)
class Result:
    """What a library did to a model: by module name, to the cache, and notes for the reader."""

    model: PreTrainedModel
    modules: Mapping[str, Simulated]
    cache: CacheFormat | None = None
    notes: tuple[Note, ...] = ()


class SimulatingBackend(LibraryBackend):
    """A backend whose library leaves fake-quantized float weights."""

    def simulate(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> Result:
        """Let the library compress the named layers; exceptions become BackendErrors and its output is suppressed."""
        raise NotImplementedError

    def must_reach(self, names: Sequence[str]) -> Sequence[str]:
        """The layers that the library must have quantized; by default all."""
        return names

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Pass every linear layer that is not skipped to the library, and describe what it did to each.

        Raises BackendError naming the module that the library does not support or left unchanged.
        """
        names = []
        for name, module in self.select_layers(model):
            self._check(name, module)
            names.append(name)
        give_own_head(model, names)
        try:
            with preserve_global_state():
                done = self.simulate(model, names, tokenizer, calibration)
        except HarnessError:
            raise
        except Exception as error:  # A library may raise anything; the user must learn whose words these are.
            raise BackendError(f"{self.kind}: {type(error).__name__}: {error}") from error
        if left := [name for name in self.must_reach(names) if name not in done.modules]:
            raise BackendError(
                f"{self.kind}: {left[0]} and {len(left) - 1} more were silently left unchanged by the library; "
                "skip them, or choose settings that fit them"
            )
        return Compressed(
            done.model,
            tuple(
                self._describe_simulated(done.model, name, each.format, each.extra_bits)
                for name, each in done.modules.items()
                if each.format
            ),
            {name: each.inputs for name, each in done.modules.items() if each.inputs},
            done.cache,
            done.notes,
        )

    def _describe_simulated(
        self, model: nn.Module, name: str, number_format: NumberFormat, extra_bits: int
    ) -> ModuleFormat:
        from harness.modules.linears import weight_of

        module = cast("Linear", model.get_submodule(name))
        weights, bias = weight_of(module).numel(), module.bias
        bits = weights * (number_format.bits or 0) + extra_bits
        return ModuleFormat(
            module=name,
            type=type(module).__name__,
            parameters=weights + (0 if bias is None else bias.numel()),
            stored_bytes=-(-bits // 8) + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=bits / weights,
            format=number_format,
            kernel="simulated",
            backend=self.kind,
        )


def give_own_head(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Untie a head that is to be compressed from its embedding, because libraries would change the embedding with
    it."""
    from harness.modules.linears import output_head, replace_weight, weight_of

    head = output_head(model)
    if head is not None and head in names and model.config.tie_word_embeddings:
        module = cast("Linear", model.get_submodule(head))
        replace_weight(module, weight_of(module).clone())
        model.config.tie_word_embeddings = False


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore the global state that libraries change, and seed random numbers identically each time.

    Covers the random states of torch, numpy and Python, deterministic algorithms, tensor printing and the environment.
    Output is suppressed meanwhile.
    """
    import numpy as np
    import torch
    from torch import _tensor_str

    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    print_as: Any = torch.set_printoptions
    printing = {**vars(_tensor_str.PRINT_OPTS)}
    environment, python, numpy = dict(os.environ), random.getstate(), np.random.get_state()
    heard = io.StringIO()
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        print_as(**printing)
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
