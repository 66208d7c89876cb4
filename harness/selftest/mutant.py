"""The backend that applies a variation of the library; variant files cannot name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.backends import Backend, Compressed
from harness.errors import BackendError, HarnessError
from harness.selftest.mutants import NotApplicable, library

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class MutantError(HarnessError):
    """A variation could not be made: a defect of the library, never a kill."""


class Mutant(Backend):
    """Applies one variation from the library of known-bad and harmless variants."""

    variation: str
    """Its name."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Change the copy. Raises NotApplicable if the model has nothing to change, MutantError if it failed."""
        make = library()[self.variation].in_memory
        assert make is not None  # noqa: S101 - variations of files have a folder instead of a step
        try:
            return make(model)
        except NotApplicable:
            raise
        except BackendError as error:
            # Must differ from a failed inspection of the result, which raises BackendError and counts as a kill.
            raise NotApplicable(str(error)) from error
        except Exception as error:
            raise MutantError(f"{self.variation}: {type(error).__name__}: {error}") from error
