"""Shared by the tests of the embedded model: one thread, and its tokenizer as the training uses it."""

from __future__ import annotations

import os

import pytest
import torch
from tokenizers import Tokenizer

from harness.pocket import MODEL_DIR


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
