"""What is declared of a backend, and what its cases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from harness import plugins
from harness.backends import Backend
from harness.records import Served

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.testing.trials import Kind, Trial

Settings = Mapping[str, Any]


class Declared:
    """Which backend it is and what is expected of it."""

    backend: ClassVar[str]
    """The name under which YAML files know it."""
    ladder: ClassVar[Sequence[Settings]]
    """Settings from fine to coarse; the first are used wherever one will do, and a step down must cost quality."""
    close: ClassVar[float] = 0.01
    """How much the finest settings may cost: mean KL divergence from the reference, in nats a token."""
    alike: ClassVar[float] = 1e-3
    """How much the logits of a text may move with what is computed beside it, in their standard deviations."""
    unchanged: ClassVar[Sequence[Settings]] = ()
    """Settings with which the model computes what it did before, if there are any."""
    refused: ClassVar[Sequence[Settings]] = ()
    """Settings that make no sense, beyond unknown keys and wrong types."""
    config: ClassVar[Settings] = {}
    """Changes to the configuration of the Llama, for a backend that needs certain sizes."""
    device: ClassVar[str] = "cpu"
    """Where the models are."""
    reloads: ClassVar[Sequence[Settings]] = ()
    """Settings with which a model that was saved and loaded again computes the same, if there are any."""
    reloaded: ClassVar[float] = 1e-4
    """How much its logits may move then, in their standard deviations: kernels may be others."""
    dtypes: ClassVar[Sequence[str]] = ("float32", "bfloat16")
    """Dtypes of models that it takes; without bfloat16, it must refuse that by name."""

    _trials: ClassVar[dict[tuple[str, ...], Trial]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._trials = {}

    def plugin(self) -> type[Backend]:
        """The class, as the harness finds it."""
        return plugins.load(Backend, self.backend)

    def needs(self, what: Served) -> None:
        """Skip what the backend says that it does not serve."""
        if what not in self.plugin().serves:
            pytest.skip(f"the backend does not serve {what}")

    def step(self, settings: Settings | None = None) -> Backend:
        """The backend with some settings, else the finest."""
        return self.plugin()(**(self.ladder[0] if settings is None else settings))

    def model(self, kind: Kind = "llama", dtype: str = "float32") -> PreTrainedModel:
        """A model to compress; the case is skipped where something that the backend needs is missing."""
        import torch

        from harness.testing import trials

        for library in self.plugin().requires:
            pytest.importorskip(library)
        if lack := self.step().lacks():
            pytest.skip(lack)
        return trials.make_model(kind, self.config, getattr(torch, dtype), self.device)

    def trial(self, settings: Settings | None = None, kind: Kind = "llama", dtype: str = "float32") -> Trial:
        """What the settings make of a model; computed once, so cases must leave it as it is."""
        from harness.testing import trials

        step = self.step(settings)
        key = step.model_dump_json(), kind, dtype
        if key not in self._trials:
            self._trials[key] = trials.compress(step, self.model(kind, dtype))
        return self._trials[key]
