"""The contract of backends, as pytest cases on models of a few thousand weights."""

from __future__ import annotations

from harness.testing.model_cases import ModelCases
from harness.testing.settings_cases import SettingsCases


class BackendConformance(SettingsCases, ModelCases):
    """Cases for one backend: derive a class whose name starts with Test and set which backend it tests.

    The models are a Llama and a GPT-2 with random weights, two blocks each, in float32 unless a case says otherwise.
    Cases that do not apply to a backend are skipped with the reason.
    """
