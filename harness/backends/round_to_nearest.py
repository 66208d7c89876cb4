"""Round-to-nearest weight quantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.backends import Compressed
from harness.backends._common.stacks import merge_stacks
from harness.backends._common.weights import Replacing, WeightBackend, name_module_in_errors, untie_head
from harness.progress import track
from harness.records import ModuleFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RoundToNearest(WeightBackend):
    """Rounds linear weights to the nearest value of a number format, with a scale per tensor, channel, group or block.

    Needs no calibration. The rounded values are held in the model's own dtype (the kernel is simulated); bits are
    reported for packed codes, scales and zero points. Embeddings are never changed; a head tied to an embedding gets
    its own weight. The matrices of stacked experts are rounded one by one.
    """

    writes_in_place = False

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Replace the weight of every linear layer that is not skipped; raises BackendError naming the
        module."""
        from harness.modules.linears import weight_of

        replacing, described = Replacing(), list[ModuleFormat]()
        for name, module in track("round_to_nearest", self.select_layers(model)):
            settings = self.for_module(name)
            if not replacing.replace_if_shared(module):
                with name_module_in_errors(self, name):
                    replacing.replace(module, settings.round_weight(weight_of(module)).values)
            described.append(self.describe(name, module))
        untie_head(model, (module.module for module in described))
        return Compressed(model, merge_stacks(described))
