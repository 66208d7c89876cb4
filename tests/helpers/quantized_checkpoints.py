"""Small checkpoints that came quantized, each made by the library itself. Functions return the folder they wrote."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.helpers.tiny_models import tiny_tokenizer

Save = Callable[[Path, Path], Path]
"""From the folder of a model in full precision, and the folder to write."""


def quietly(save: Save) -> Save:
    """The same function, without what libraries print."""

    def quiet(source: Path, folder: Path) -> Path:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return save(source, folder)

    return quiet


def loaded(source: Path, **settings: Any) -> PreTrainedModel:
    """The model of a folder, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, local_files_only=True, **settings
    )
    model.eval()
    return model


def written(model: Any, folder: Path, **settings: Any) -> Path:
    """Model and tokenizer in ``folder``."""
    model.save_pretrained(folder, **settings)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@quietly
def save_int8(source: Path, folder: Path) -> Path:
    """bitsandbytes, LLM.int8()."""
    from transformers import BitsAndBytesConfig

    return written(loaded(source, quantization_config=BitsAndBytesConfig(load_in_8bit=True)), folder)


@quietly
def save_nf4(source: Path, folder: Path) -> Path:
    """bitsandbytes, NF4, saved before any forward pass."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return written(loaded(source, quantization_config=settings), folder)


@quietly
def save_torchao_int8(source: Path, folder: Path) -> Path:
    """torchao, INT8 weights by channel."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return written(loaded(source, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())), folder)


@quietly
def save_torchao_w8a8(source: Path, folder: Path) -> Path:
    """torchao, INT8 weights by channel and INT8 inputs by token."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    return written(loaded(source, quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig())), folder)


def _compressed_tensors(scheme: str) -> Save:
    @quietly
    def save(source: Path, folder: Path) -> Path:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        model = loaded(source)
        model.config._name_or_path = str(source)
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
        groups = {"g": {"targets": ["Linear"], "weights": weights}}
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        if scheme == "W4A16":
            recipe = QuantizationModifier(config_groups=groups, ignore=["lm_head"])
        oneshot(model=model, tokenizer=tiny_tokenizer(), recipe=recipe)
        return written(model, folder, save_compressed=True)

    return save


save_w4a16 = _compressed_tensors("W4A16")
"""llm-compressor, 4-bit codes packed into int32, groups of 16."""
save_w8a8 = _compressed_tensors("W8A8")
"""llm-compressor, INT8 weights by channel and INT8 inputs by token."""
save_fp8 = _compressed_tensors("FP8_DYNAMIC")
"""llm-compressor, FP8 weights by channel and FP8 inputs by token."""


def _auto_round(layout: str, symmetric: bool = True) -> Save:
    @quietly
    def save(source: Path, folder: Path) -> Path:
        from auto_round import AutoRound

        model = loaded(source)
        texts = [torch.randint(1, 96, (1, 32), generator=torch.Generator().manual_seed(0)) for _ in range(4)]
        rounding = AutoRound(
            model,
            tiny_tokenizer(),
            scheme={"bits": 4, "group_size": 16, "sym": symmetric, "data_type": "int", "act_bits": 16},
            iters=0,
            nsamples=4,
            seqlen=32,
            batch_size=1,
            dataset=texts,
            device_map="cpu",
            enable_torch_compile=False,
            disable_opt_rtn=True,
        )
        rounding.quantize_and_save(str(folder), format=layout)
        place = folder if (folder / "config.json").exists() else next(folder.glob("**/config.json")).parent
        tiny_tokenizer().save_pretrained(place)
        return place

    return save


save_auto_round = _auto_round("auto_round")
"""auto-round, 4-bit codes in groups of 16, rounded to nearest, in its own format."""
save_auto_gptq = _auto_round("auto_gptq")
"""The same in the format of GPTQ."""
save_auto_gptq_asymmetric = _auto_round("auto_gptq", symmetric=False)
save_auto_awq = _auto_round("auto_awq")
"""The same in the format of AWQ."""
save_auto_awq_asymmetric = _auto_round("auto_awq", symmetric=False)


@quietly
def save_block_fp8(source: Path, folder: Path) -> Path:
    """FP8 in blocks as DeepSeek ships it (``quant_method: fp8``), written by hand: codes and inverse scales."""
    import json

    from safetensors.torch import load_file, save_file

    size = 16
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if "_proj.weight" in name]:
        weight = tensors[name]
        rows, inputs = weight.shape
        blocks = weight.view(rows // size, size, inputs // size, size).transpose(1, 2)
        scale = blocks.abs().amax((2, 3)) / 448
        codes = (blocks / scale[:, :, None, None]).to(torch.float8_e4m3fn)
        tensors[name] = codes.transpose(1, 2).reshape(rows, inputs).contiguous()
        tensors[f"{name}_scale_inv"] = scale.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    config["quantization_config"] = quantization | {"weight_block_size": [size, size]}
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    return folder
