"""Every backend keeps the contract: the kit that outside packages use, run over all that are found."""

from __future__ import annotations

import torch

from harness.plugins import names
from harness.testing import BackendConformance

torch.set_num_threads(1)


class TestRoundToNearest(BackendConformance):
    backend = "round_to_nearest"
    ladder = ({"bits": 8}, {"bits": 4, "symmetric": False}, {"bits": 3, "granularity": "channel"}, {"bits": 2})
    refused = ({}, {"bits": 1}, {"bits": 4, "format": "nf4"}, {"bits": 4, "granularity": "channel", "group_size": 8})


class TestGptq(BackendConformance):
    backend = "gptq"
    ladder = ({"bits": 8}, {"bits": 4, "act_order": True}, {"bits": 2})
    refused = ({}, {"bits": 4, "damping": 0.0}, {"format": "nvfp4"})


class TestAwq(BackendConformance):
    backend = "awq"
    ladder = ({"bits": 8, "scale_grid": 4}, {"bits": 4, "scale_grid": 4}, {"bits": 2, "scale_grid": 4})
    refused = ({}, {"bits": 4, "clip_grid": 0})


class TestDenseAndSparse(BackendConformance):
    backend = "dense_and_sparse"
    ladder = ({"bits": 5}, {"bits": 4}, {"bits": 3}, {"bits": 2})
    refused = ({}, {"bits": 4, "outliers": 0.6})


class TestMixedPrecision(BackendConformance):
    backend = "mixed_precision"
    ladder = (
        {"bits": (4, 8), "target_bits_per_weight": 8.4, "sensitivity": "output_error"},
        {"bits": (2, 4), "target_bits_per_weight": 4.0},
        {"bits": (2, 4), "target_bits_per_weight": 3.0},
    )
    refused = ({"bits": (4,)}, {"bits": (4, 4), "target_bits_per_weight": 5.0})


class TestSmoothQuant(BackendConformance):
    backend = "smoothquant"
    ladder = ({},)
    unchanged = ({"into": "norms_and_linears", "alpha": 0.75},)
    refused = ({"alpha": 1.5},)


class TestLlmInt8(BackendConformance):
    backend = "llm_int8"
    ladder = ({"threshold": 2.0}, {"threshold": 50.0})
    alike = 0.1  # A column is an outlier for all rows of a call, as in the paper.
    refused = ({"threshold": 0.0},)


class TestActivations(BackendConformance):
    backend = "activations"
    ladder = ({"bits": 8}, {"bits": 4}, {"bits": 2})
    refused = ({}, {"bits": 8, "dynamic": False}, {"bits": 8, "range": "mse"})


class TestCalibratedActivations(BackendConformance):
    backend = "activations"
    ladder = tuple({"bits": bits, "granularity": "tensor", "dynamic": False} for bits in (8, 4, 2))
    close = 0.03  # One range for all tokens, one of whose channels stands out.


class TestKvCache(BackendConformance):
    backend = "kv_cache"
    ladder = tuple({"bits": bits, "residual": 0, "group_size": 8} for bits in (8, 4, 2))
    unchanged = ({"bits": 2, "residual": 64},)
    refused = ({}, {"bits": 4, "keys": "unscaled"})


def test_every_backend_is_here() -> None:
    here = {each.backend for each in BackendConformance.__subclasses__() if each.__module__ == __name__}
    missing = set(names("backends")) - here
    assert not missing, f"add a class with backend and ladder for {', '.join(sorted(missing))} to {__file__}"
