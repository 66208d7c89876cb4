"""Every backend keeps the contract: the kit that outside packages use, run over all that are found."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backends import Backend
from harness.plugins import names
from harness.testing import BackendConformance
from harness.testing.declared import Settings
from tests.helpers.int8_products import may_saturate

torch.set_num_threads(1)


class TestRoundToNearest(BackendConformance):
    backend = "round_to_nearest"
    ladder = ({"bits": 8}, {"bits": 4, "symmetric": False}, {"bits": 3, "granularity": "channel"}, {"bits": 2})
    refused = ({}, {"bits": 1}, {"bits": 4, "format": "nf4"}, {"bits": 4, "granularity": "channel", "group_size": 8})
    reloads = ladder


class TestQat(BackendConformance):
    backend = "qat"
    ladder = (
        {"bits": 8, "batch": 8, "evaluations": 1},
        {"bits": 4, "batch": 8, "evaluations": 1, "learned_steps": True},
        {"bits": 2, "batch": 8, "evaluations": 1},
    )
    refused = ({}, {"bits": 4, "batch": 0}, {"bits": 4, "range": "mse", "learned_steps": True})
    reloads = ladder[1:2]


class TestGptq(BackendConformance):
    backend = "gptq"
    ladder = ({"bits": 8}, {"bits": 4, "act_order": True}, {"bits": 2})
    refused = ({}, {"bits": 4, "damping": 0.0}, {"format": "nvfp4"})
    reloads = ladder[1:2]


class TestAwq(BackendConformance):
    backend = "awq"
    ladder = ({"bits": 8, "scale_grid": 4}, {"bits": 4, "scale_grid": 4}, {"bits": 2, "scale_grid": 4})
    refused = ({}, {"bits": 4, "clip_grid": 0})
    reloads = ladder[1:2]


class TestDenseAndSparse(BackendConformance):
    backend = "dense_and_sparse"
    ladder = ({"bits": 5}, {"bits": 4}, {"bits": 3}, {"bits": 2})
    refused = ({}, {"bits": 4, "outliers": 0.6})
    reloads = ladder[1:2]


class TestMixedPrecision(BackendConformance):
    backend = "mixed_precision"
    ladder = (
        {"bits": (4, 8), "target_bits_per_weight": 8.4, "sensitivity": "output_error"},
        {"bits": (2, 4), "target_bits_per_weight": 4.0},
        {"bits": (2, 4), "target_bits_per_weight": 3.0},
    )
    refused = ({"bits": (4,)}, {"bits": (4, 4), "target_bits_per_weight": 5.0})
    reloads = ladder[1:2]


class TestQlora(BackendConformance):
    backend = "qlora"
    ladder = (
        {"r": 4, "batch": 4, "group_size": 16},
        {"r": 4, "batch": 4, "group_size": 64, "dora": True},
        {"r": 4, "batch": 4, "group_size": 128},
    )
    close = 0.15  # Its finest grid is one of 4 bits.
    refused = ({"r": 0}, {"base": "bitsandbytes", "group_size": 48})
    reloads = ladder[1:2]


class TestQloraOnBitsandbytes(BackendConformance):
    backend = "qlora"
    ladder = ({"r": 4, "batch": 4, "base": "bitsandbytes"},)
    config: ClassVar[Settings] = {"intermediate_size": 128}  # As for the library itself, below.
    close = 0.25  # As above, in groups of 64.
    reloads = ladder
    reloaded = 0.5  # As for the library itself.


class TestSmoothQuant(BackendConformance):
    backend = "smoothquant"
    ladder = ({},)
    unchanged = ({"into": "norms_and_linears", "alpha": 0.75},)
    refused = ({"alpha": 1.5},)
    reloads = ladder


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


class TestTorchao(BackendConformance):
    backend = "torchao"
    ladder = (
        {"method": "int8_weight_only"},
        {"method": "intx_weight_only", "bits": 4, "group_size": 16},
        {"method": "intx_weight_only", "bits": 2},
    )
    refused = ({}, {"method": "intx_weight_only"}, {"method": "int8_weight_only", "bits": 8})
    reloads = ladder


@may_saturate
class TestTorchaoInputs(BackendConformance):
    backend = "torchao"
    ladder = (
        {"method": "int8_dynamic_activation_int8_weight"},
        {"method": "int8_dynamic_activation_intx_weight", "bits": 4, "group_size": 16, "symmetric": False},
        {"method": "int8_dynamic_activation_intx_weight", "bits": 2, "group_size": 16, "symmetric": False},
    )
    alike = 0.05  # The largest input of every token lies between two codes, so that the last bit of a sum decides.
    reloads = ladder[:2]


class TestTorchaoFloat8(BackendConformance):
    backend = "torchao"
    ladder = ({"method": "float8_weight_only"},)
    close = 0.03
    reloads = ladder


class TestBitsandbytes(BackendConformance):
    backend = "bitsandbytes"
    ladder = ({"method": "nf4"}, {"method": "nf4", "double_quantize": True, "group_size": 256})
    close = 0.25  # There is no finer one with 4 bits.
    config: ClassVar[Settings] = {"intermediate_size": 128}  # Its kernel for loaded models takes multiples of 32.
    refused = ({}, {"method": "nf4", "threshold": 6.0}, {"method": "llm_int8", "double_quantize": True})
    reloads = ({"method": "nf4"}, {"method": "nf4", "double_quantize": True})
    reloaded = 0.5  # Loaded, its weights are packed for a kernel in bfloat16 where the processor has one.


class TestBitsandbytesInt8(BackendConformance):
    backend = "bitsandbytes"
    ladder = ({"method": "llm_int8", "threshold": 2.0}, {"method": "llm_int8", "threshold": 0.0})
    alike = 0.1  # A column is an outlier for all rows of a call, as in the paper.
    reloads = ladder


class TestQuanto(BackendConformance):
    backend = "quanto"
    ladder = ({"weights": "int8"}, {"weights": "fp8_e4m3"}, {"weights": "int4"}, {"weights": "int2"})
    refused = ({}, {"weights": "int8", "group_size": 32}, {"weights": "int4", "activations": "int8"})


@may_saturate
class TestQuantoInputs(BackendConformance):
    backend = "quanto"
    ladder = ({"weights": "int8", "activations": "int8"},)
    close = 0.03  # One range for all tokens, one of whose channels stands out.


class TestHqq(BackendConformance):
    backend = "hqq"
    ladder = tuple({"bits": bits, "group_size": 16} for bits in (8, 4, 3, 2, 1))
    refused = ({}, {"bits": 5}, {"bits": 4, "group_size": 4})


class TestPytorchDynamicInt8(BackendConformance):
    backend = "pytorch_dynamic_int8"
    ladder = ({"granularity": "channel"}, {"granularity": "tensor"})
    dtypes = ("float32",)
    close = 0.07  # One range of 128 codes for all tokens of a call, one of whose channels stands out.
    alike = 2.0  # As above.
    refused = ({"granularity": "group"},)


class TestLlmCompressor(BackendConformance):
    backend = "llmcompressor"
    reloads = ({"bits": 8, "group_size": 16, "method": "gptq"}, {"bits": 4, "group_size": 16, "method": "awq"})
    ladder = (
        {"bits": 8, "group_size": 16, "method": "gptq"},
        {"bits": 4, "group_size": 16, "method": "awq"},
        {"bits": 3, "group_size": 16, "symmetric": False},
        {"bits": 2, "group_size": 16},
    )
    refused = ({}, {"scheme": "W8A8", "bits": 8}, {"recipe": "any", "bits": 4}, {"kv_cache": "int8", "smoothing": 0.5})


class TestLlmCompressorInputs(BackendConformance):
    backend = "llmcompressor"
    reloads = ({"scheme": "W8A8", "smoothing": 0.5},)
    ladder = ({"scheme": "W8A8", "smoothing": 0.5}, {"scheme": "W4A8", "group_size": 16})
    alike = 0.05  # What lies in the middle between two codes of an input falls to either side.


class TestLlmCompressorFloat8(BackendConformance):
    backend = "llmcompressor"
    ladder = ({"scheme": "FP8"},)
    close = 0.05  # Three bits of fraction, and one range for all tokens, one of whose channels stands out.


class TestLlmCompressorCache(BackendConformance):
    backend = "llmcompressor"
    ladder = ({"kv_cache": "int8"}, {"kv_cache": "fp8"})
    reloads = ({"kv_cache": "int8"},)


class TestModelopt(BackendConformance):
    backend = "modelopt"
    ladder = (
        {"scheme": "int8_weights"},
        {"scheme": "int4_awq", "group_size": 16},
        {"scheme": "int4", "group_size": 16},
    )
    refused = ({}, {"scheme": "fp8", "group_size": 16})


class TestModeloptInputs(BackendConformance):
    backend = "modelopt"
    ladder = ({"scheme": "int8"}, {"scheme": "fp8"})
    close = 0.03  # One range for all tokens, one of whose channels stands out.


class TestAutoround(BackendConformance):
    backend = "autoround"
    reloads = ({"bits": 4, "group_size": 16, "iterations": 5},)
    ladder = (
        {"bits": 8, "group_size": 16, "iterations": 0},
        {"bits": 4, "group_size": 16, "iterations": 5},
        {"bits": 2, "group_size": 16, "iterations": 5},
    )
    config = {"intermediate_size": 128}  # noqa: RUF012 - as the kit declares it
    refused = ({}, {"bits": 9}, {"bits": 4, "iterations": 0, "seed": 1})


class TestGptqModel(BackendConformance):
    backend = "gptqmodel"
    ladder = tuple({"bits": bits, "group_size": 32} for bits in (8, 4, 3, 2))
    config = {"intermediate_size": 128}  # noqa: RUF012 - as the kit declares it
    refused = ({}, {"bits": 5}, {"bits": 4, "timeout": 0.0})


class TestDistill(BackendConformance):
    backend = "distill"
    ladder = ({"learning_rate": 1e-5}, {"student": {"layers": (1,)}})
    unchanged = ({"learning_rate": 1e-9},)
    refused = (
        {"student": {}},
        {"student": {"layers": "third"}},
        {"student": {"layers": "halve", "config": "x"}},
        {"objectives": ()},
        {"objectives": ({"objective": "logits"},)},
        {"objectives": ({"objective": "preference", "student_samples": 0},)},
    )


def test_every_backend_is_here() -> None:
    here = {each.backend for each in BackendConformance.__subclasses__() if each.__module__ == __name__}
    missing = set(names(Backend)) - here
    assert not missing, f"add a class with backend and ladder for {', '.join(sorted(missing))} to {__file__}"
