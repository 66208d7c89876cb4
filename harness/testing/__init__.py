"""Conformance tests for plugin authors: the contract of a plugin family as pytest cases.

    from harness.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"
        ladder = ({"bits": 8}, {"bits": 4}, {"bits": 2})

Needs pytest; torch is imported by the cases that use it.
"""

import pytest

pytest.register_assert_rewrite(
    "harness.testing.settings_cases", "harness.testing.model_cases", "harness.testing.trials"
)

from harness.testing.backends import BackendConformance  # noqa: E402 - its asserts are rewritten on import

__all__ = ["BackendConformance"]
