"""Subprocess that quantizes a model with GPTQModel in that library's environment; it imports nothing of the harness.

    python -I -u gptqmodel_worker.py FOLDER

``isolated.py`` describes the files that the worker reads from the folder and writes into it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO


def main(folder: Path) -> None:
    """Quantize the model in the folder and save the checkpoint there."""
    progress = _own_output()
    settings = json.loads((folder / "settings.json").read_text())
    names = settings.pop("modules")
    documents = json.loads((folder / "calibration.json").read_text())
    progress.write("loading the library\n")
    _quantize(folder, settings, names, documents, progress)


def _own_output() -> TextIO:
    """Reserve standard output for progress: whatever libraries print goes to standard error from now on."""
    own = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return own


def _quantize(folder: Path, settings: dict[str, Any], names: list[str], documents: list[Any], progress: TextIO) -> None:
    count = os.cpu_count() or 1
    if count < 8:
        # Imported on few processors, the library plans for more threads than it then allows itself, and fails.
        os.cpu_count = lambda: 8
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(count)
    made_from: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = made_from.from_config(AutoConfig.from_pretrained(folder / "model"))
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    left: dict[str, Any] = {f"-:^{re.escape(name)}$": {} for name in linear if name not in names and name != head}
    made = GPTQModel.load(
        str(folder / "model"), QuantizeConfig(**settings, lm_head=head in names, dynamic=left or None), device="cpu"
    )
    progress.write(f"quantizing {len(names)} layers on {len(documents)} documents\n")
    ids = [{"input_ids": each, "attention_mask": [1] * len(each)} for each in documents]
    made.quantize(ids, batch_size=1)
    made.save(str(folder / "checkpoint"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
