"""The fresh process: load an artifact as any user would, and say what it computes.

    python -m harness.artifacts.worker FOLDER

FOLDER holds the request and gets the answer (see ``exchange``). Progress goes to standard output, a line ``3 9`` at a
time; whatever libraries print goes to standard error. Exit codes: 0 answered, 2 refused with the reason, else a defect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from harness.artifacts.exchange import Answer, Exchange
from harness.artifacts.outputs import encoded, outputs
from harness.errors import HarnessError
from harness.models.adapters import attach_adapter
from harness.models.loading import load


def answer(exchange: Exchange, step: Callable[[int, int], None]) -> int:
    """Load what the request names and answer it; returns the exit code."""
    request, documents = exchange.get_request()
    steps = len(documents) + 2
    try:
        step(0, steps)
        loaded = load(request.spec, request.name)
        if request.adapter:
            loaded = attach_adapter(loaded, Path(request.adapter))
        ids = [documents[key] for key in sorted(documents, key=lambda key: int(key.rpartition("/")[2]))]
        try:
            found = outputs(loaded.model, ids, lambda done, _: step(done + 1, steps))
        except Exception as error:  # A library may raise anything; what was loaded cannot be run.
            raise HarnessError(f"it loads and cannot be run: {type(error).__name__}: {error}") from error
        text_ids = tuple(encoded(loaded.tokenizer, text) for text in request.texts)
    except HarnessError as error:
        exchange.put_refusal(str(error))
        return 2
    said = Answer(
        weights_sha256=loaded.identity.weights_sha256,
        config_sha256=loaded.identity.config_sha256,
        tokenizer_sha256=loaded.identity.tokenizer_sha256,
        text_ids=text_ids,
    )
    exchange.put_answer(said, found)
    return 0


def main() -> int:
    """Answer the request in the folder that the command line names."""
    torch.set_num_threads(1)
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def step(done: int, of: int) -> None:
        progress.write(f"{done} {of}\n")

    return answer(Exchange(Path(sys.argv[1])), step)


if __name__ == "__main__":
    sys.exit(main())
