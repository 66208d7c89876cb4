"""The fresh process: loads an artifact as any user would, and reports its outputs.

    echo FOLDER | python -m harness.artifacts.worker

FOLDER holds the request and receives the answer (see ``exchange``); what is imported is imported before it is read.
Progress goes to standard output as lines ``3 9``; output of libraries goes to standard error. Exit codes: 0 answered,
2 refused with a reason, otherwise a defect.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from harness.artifacts.exchange import Answer, Exchange
from harness.errors import HarnessError
from harness.system.lean_imports import import_transformers


def import_libraries() -> None:
    """Import what takes long and every answer needs."""
    import_transformers()
    importlib.import_module("harness.models.loading")


def answer_request(exchange: Exchange, step: Callable[[int, int], None]) -> int:
    """Load the requested artifact and write the answer; returns the exit code."""
    from harness.artifacts.outputs import encode_text, model_outputs
    from harness.models.adapters import attach_adapter
    from harness.models.loading import load

    request, documents = exchange.get_request()
    steps = len(documents) + 2
    try:
        step(0, steps)
        loaded = load(request.spec, request.name)
        if request.adapter:
            loaded = attach_adapter(loaded, Path(request.adapter))
        ids = [documents[key] for key in sorted(documents, key=lambda key: int(key.rpartition("/")[2]))]
        try:
            outputs = model_outputs(loaded.model, ids, lambda done, _: step(done + 1, steps))
        except Exception as error:  # A library may raise anything; then the loaded model cannot be run.
            raise HarnessError(f"it loads but cannot be run: {type(error).__name__}: {error}") from error
        text_ids = tuple(encode_text(loaded.tokenizer, text) for text in request.texts)
    except HarnessError as error:
        exchange.put_refusal(str(error))
        return 2
    said = Answer(
        weights_sha256=loaded.identity.weights_sha256,
        config_sha256=loaded.identity.config_sha256,
        tokenizer_sha256=loaded.identity.tokenizer_sha256,
        text_ids=text_ids,
    )
    exchange.put_answer(said, outputs)
    return 0


def main() -> int:
    """Answer the request in the folder that the first line of the input names; without one there is nothing to do."""
    import torch

    torch.set_num_threads(1)
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_libraries()

    def step(done: int, of: int) -> None:
        progress.write(f"{done} {of}\n")

    folder = sys.stdin.readline().rstrip("\n")
    return answer_request(Exchange(Path(folder)), step) if folder else 0


if __name__ == "__main__":
    sys.exit(main())
