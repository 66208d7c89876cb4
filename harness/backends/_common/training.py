"""Base class of backends that train: the settings of the optimization, and what they are given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.backends import Backend, Compressed, Materials
from harness.errors import BackendError
from harness.training.memory import FLOAT32, Shapes, bytes_of_moments
from harness.training.settings import Optimization

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.training.data import Training


class TrainingBackend(Optimization, Backend):
    """A backend that trains the model on the texts of the variant file's ``training:`` section (see
    ``harness/training/__init__.py``)."""

    trains = True

    @abstractmethod
    def train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training) -> Compressed:
        """Train ``model`` in place with ``harness.training.fitting.fit``, or return another one.

        Raises BackendError naming backend and module for weights that cannot be trained.
        """

    def shrink(self, parameters: int, shapes: Shapes | None) -> tuple[int, Shapes | None]:
        """Parameters and shapes of the model that is trained, by those of the reference; the same unless the step makes
        a student. Called while planning, so it must not import a model library."""
        return parameters, shapes

    def forecast_memory(self, parameters: int, width: int, shapes: Shapes | None) -> dict[str, int]:
        """Bytes by part for a student of ``parameters``, activations apart: by default all of them are trained, in
        float32, with two moments each.

        width: bytes of a weight of the variant. shapes: those that its config.json tells; None where that is not known.
        A part "base" is what the variant itself takes while it is trained.
        """
        return {
            "trainable": FLOAT32 * parameters,
            "gradients": FLOAT32 * parameters,
            "optimizer": bytes_of_moments(parameters),
        }

    def extra_activations(self, parameters: int) -> int:
        """Bytes that the step keeps for the backward pass, beside what the model itself does."""
        return 0

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, materials: Materials) -> Compressed:
        """See Backend.apply."""
        if materials.training is None:
            raise BackendError(f"{self.kind}: needs texts to train on; add a training: section to the variant file")
        return self.train(model, tokenizer, materials.training)

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """See Backend.compress: calibration documents alone are nothing to train on."""
        return self.apply(model, tokenizer, Materials(calibration))
