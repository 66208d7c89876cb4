"""Base class of backends that work on linear layers: the settings ``only`` and ``skip``, and the choice of layers."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from harness.backends import Backend
from harness.errors import BackendError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.modules.linears import Linear


class LinearBackend(Backend):
    """A backend that quantizes some or all linear layers of a model."""

    takes_experts: ClassVar[bool] = False
    """Whether the matrices of stacked experts count as linear layers, too; patterns match the name of the stack."""

    only: tuple[str, ...] = Field(default=(), examples=[["*.mlp.*"]])
    """Names or glob patterns of the linear layers to quantize; empty (the default): all."""
    skip: tuple[str, ...] = ("lm_head",)
    """Names or glob patterns of linear layers to leave in full precision; ``lm_head`` is the output head, whatever its
    name."""

    def select_layers(self, model: PreTrainedModel) -> list[tuple[str, Linear]]:
        """Name and module of every linear layer to quantize, in the order of ``named_modules``, experts' matrices last.

        Raises BackendError for patterns that match nothing, and if no layer remains.
        """
        from harness.modules.experts import stack_name
        from harness.modules.linears import linears, matrices, output_head

        everything, head = list(matrices(model) if self.takes_experts else linears(model)), output_head(model)
        called = {name: {name, "lm_head"} if name == head else {stack_name(name)} for name, _ in everything}
        patterns = {pattern: match_modules(called, pattern) for pattern in self._patterns()}
        unused = [pattern for pattern, found in patterns.items() if not found and pattern != "lm_head"]
        if unused:
            known = ", ".join(name for name, _ in everything[:8]) or "none"
            raise BackendError(
                f"{self.kind}: {unused} match no linear layer of {type(model).__name__} (it has {known} …)"
            )
        skipped = set().union(*(patterns[pattern] for pattern in self.skip))
        wanted = set().union(*(patterns[pattern] for pattern in self.only)) if self.only else called.keys()
        chosen = [(name, module) for name, module in everything if name in wanted and name not in skipped]
        if not chosen:
            raise BackendError(
                f"{self.kind}: {len(everything)} linear layers in {type(model).__name__}, none left to quantize"
            )
        return chosen

    def _patterns(self) -> Iterator[str]:
        yield from self.skip
        yield from self.only


def match_modules(called: dict[str, set[str]], pattern: str) -> set[str]:
    """The modules one of whose names matches a pattern."""
    return {name for name, names in called.items() if any(fnmatchcase(each, pattern) for each in names)}
