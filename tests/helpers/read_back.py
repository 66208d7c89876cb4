"""Reading an artifact back without a fresh process, for tests of everything around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from harness.artifacts.exchange import Answer, Exchange, Request
from harness.artifacts.reloading import ReloadError
from harness.artifacts.saving import discard
from harness.artifacts.worker import answer_request


def here(
    request: Request, documents: Mapping[str, Tensor], place: Path, progress: object
) -> tuple[Answer, dict[str, Tensor]]:
    """What a fresh process would find, found in this one."""
    place.mkdir()
    exchange = Exchange(place)
    exchange.put_request(request, dict(documents))
    code = answer_request(exchange, lambda done, of: None)
    reason = exchange.get_refusal()
    found = None if code else exchange.get_answer()
    discard(place)
    if found is None:
        raise ReloadError(reason)
    return found
