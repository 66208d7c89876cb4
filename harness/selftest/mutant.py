"""The step that makes a variation of the library: a backend that no variant file can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.backends import Backend, Compressed
from harness.errors import BackendError, HarnessError
from harness.selftest.mutants import NotApplicable, library

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class NotMade(HarnessError):  # noqa: N818 - says what happened to a variation
    """A variation could not be made: a defect of the library, never a kill."""


class Mutant(Backend):
    """Makes one variation of the library of known-bad and harmless variants."""

    variation: str
    """Its name."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Change the copy; raises NotApplicable where the model has nothing to change, NotMade where it failed."""
        make = library()[self.variation].in_memory
        assert make is not None  # noqa: S101 - variations of files have a folder in place of a step
        try:
            return make(model)
        except NotApplicable:
            raise
        except BackendError as error:
            # Not to be taken for the inspection of what was made, which raises the same and counts as a kill.
            raise NotApplicable(str(error)) from error
        except Exception as error:
            raise NotMade(f"{self.variation}: {type(error).__name__}: {error}") from error
