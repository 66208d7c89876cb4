"""Similarity of two texts by a sentence-embedding model in a local folder. Imported only if one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from harness.errors import ModelError
from harness.models.fingerprints import fingerprint_folder
from harness.models.trust import check_folder


class Embedding:
    """Means of the last hidden states over the tokens of a text (Reimers & Gurevych 2019)."""

    def __init__(self, folder: Path) -> None:
        """Load the embedding model. Raises ModelError for a folder that cannot be loaded, or that would run code or
        pickles."""
        check_folder(folder, fingerprint_folder(folder), trust_remote_code=False, manifest=False)
        model: Any = AutoModel
        tokenizer: Any = AutoTokenizer
        try:
            self._model = model.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()
            self._tokenizer = tokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise ModelError(
                f"{folder}: the embedding model cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def cosines(self, ones: Sequence[str], others: Sequence[str]) -> list[float]:
        """Cosine similarity of each pair: 1 for equal texts, 0 if one of them is empty."""
        differing = [index for index, (a, b) in enumerate(zip(ones, others, strict=True)) if a != b]
        spoken = [index for index in differing if ones[index].strip() and others[index].strip()]
        similarities = [1.0 if a == b else 0.0 for a, b in zip(ones, others, strict=True)]
        left, right = (self._means([texts[index] for index in spoken]) for texts in (ones, others))
        for index, a, b in zip(spoken, left, right, strict=True):
            similarities[index] = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        return similarities

    def _means(self, texts: Sequence[str]) -> list[Tensor]:
        """One vector per text, float64; each text alone, so that padding changes nothing."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        means = []
        with torch.no_grad():
            for text in texts:
                cut = {"truncation": True, "max_length": positions} if isinstance(positions, int) else {}
                given = self._tokenizer(text, return_tensors="pt", **cut)
                states_1TD = self._model(input_ids=given["input_ids"]).last_hidden_state
                means.append(states_1TD[0].double().mean(0))
        return means
