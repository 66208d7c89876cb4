"""Declarations of the backend under test, and helpers that its cases share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from harness import plugins
from harness.backends import Backend
from harness.records import Served

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.testing.trials import ModelKind, Trial

Settings = Mapping[str, Any]


class Declared:
    """The backend under test and its expected properties."""

    backend: ClassVar[str]
    """Name of the backend in YAML files."""
    ladder: ClassVar[Sequence[Settings]]
    """Settings from fine to coarse; the first are used if any settings will do, and each step down must reduce
    quality."""
    close: ClassVar[float] = 0.01
    """Allowed loss of the finest settings: mean KL divergence from the reference, in nats per token."""
    alike: ClassVar[float] = 1e-3
    """How much the logits of a text may depend on the rest of its batch, in their standard deviations."""
    unchanged: ClassVar[Sequence[Settings]] = ()
    """Settings that leave the model's function unchanged, if there are any."""
    refused: ClassVar[Sequence[Settings]] = ()
    """Settings that must be refused, beyond unknown keys and wrong types."""
    config: ClassVar[Settings] = {}
    """Changes to the configuration of the Llama, for a backend that needs certain sizes."""
    device: ClassVar[str] = "cpu"
    """Device of the models."""
    reloads: ClassVar[Sequence[Settings]] = ()
    """Settings with which a saved and reloaded model computes the same, if there are any."""
    reloaded: ClassVar[float] = 1e-4
    """How much its logits may differ then, in their standard deviations: kernels may differ."""
    dtypes: ClassVar[Sequence[str]] = ("float32", "bfloat16")
    """Model dtypes that it supports; without bfloat16, it must refuse that dtype by name."""

    _trials: ClassVar[dict[tuple[str, ...], Trial]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._trials = {}

    def plugin(self) -> type[Backend]:
        """The class, as the harness loads it."""
        return plugins.load(Backend, self.backend)

    def needs(self, what: Served) -> None:
        """Skip the case if the backend declares that it does not support it."""
        if what not in self.plugin().serves:
            pytest.skip(f"the backend does not serve {what}")

    def step(self, settings: Settings | None = None) -> Backend:
        """The backend with the given settings, else the finest."""
        return self.plugin()(**(self.ladder[0] if settings is None else settings))

    def model(self, kind: ModelKind = "llama", dtype: str = "float32") -> PreTrainedModel:
        """A model to compress; the case is skipped if something that the backend needs is missing."""
        import torch

        from harness.testing import trials

        for library in self.plugin().requires:
            pytest.importorskip(library)
        if lack := self.step().lacks():
            pytest.skip(lack)
        return trials.make_model(kind, self.config, getattr(torch, dtype), self.device)

    def trial(self, settings: Settings | None = None, kind: ModelKind = "llama", dtype: str = "float32") -> Trial:
        """A model compressed with these settings; cached, so cases must not change it."""
        from harness.testing import trials

        step = self.step(settings)
        key = step.model_dump_json(), kind, dtype
        if key not in self._trials:
            self._trials[key] = trials.compress(step, self.model(kind, dtype))
        return self._trials[key]
