"""Adapters as peft saves them, with weights that were moved as training moves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

PROJECTIONS = ["q_proj", "v_proj", "down_proj"]


def save_lora(
    model: PreTrainedModel,
    folder: Path,
    *,
    std: float = 0.2,
    seed: int = 0,
    everywhere: bool = False,
    embeddings: Any = "auto",
    **config: Any,
) -> Path:
    """A LoRA adapter of ``model`` (which is changed) in ``folder``. std: of its last matrices, 0 before training.

    everywhere: whether all that training moves is moved, as far. embeddings: whether peft saves those of the base, too.
    """
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(**(settings | config)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name or (everywhere and parameter.requires_grad):
            torch.nn.init.normal_(parameter, std=std)
    adapted.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder
