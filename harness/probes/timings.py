"""The probe ``timings``: prefill and decode times of reference and variant, in alternating blocks."""

from __future__ import annotations

import gc
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness.errors import DataError, ModelError
from harness.probes import Context, Probe
from harness.system.disturbances import read_counters

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from harness.progress import Progress

Positive = Annotated[int, Field(gt=0)]
SEED = 0
UNIT = "timings"
Row = dict[str, Any]


class Timings(Probe):
    """Times prefill, the first token, and decoding of further tokens with the key-value cache.

    A call processes one prompt and generates a fixed number of tokens greedily, and yields all three times. Calls come
    in blocks A B B A, so that a machine that slows down or heats up affects both sides equally; blocks of the reference
    against itself (side ``floor``) are interleaved and show the timing noise.
    """

    runs = "alone"
    reads = "nothing"
    needs = ("cache",)

    repeats: Positive = Field(default=20, description="timing blocks A B B A, each with two calls per side")
    warmup: Annotated[int, Field(ge=0)] = Field(default=2, description="untimed warm-up calls of each model")
    prompt_tokens: Positive = Field(
        default=128, description="prompt length in tokens; random ids, the same in every run"
    )
    new_tokens: Positive = Field(default=32, description="tokens generated greedily after the first one")
    batch: Positive = Field(default=1, description="batch size: prompts per call")

    def observe(self, context: Context) -> None:
        """Commit one unit per variant. Raises DataError for a prompt that exceeds a model's positions, and where a
        debugger or profiler slows every call."""
        pairs = zip(context.variants, context.sinks, strict=True)
        waiting = [(variant, sink) for variant, sink in pairs if not sink.done(UNIT)]
        if not waiting:
            return
        if sys.gettrace() is not None or sys.getprofile() is not None:
            raise DataError(
                "timings: a debugger, tracer or profiler is attached to this process (sys.settrace), and times would "
                "be its own; run without it, or leave out the measure latency"
            )
        models = [context.reference, *(variant for variant, _ in waiting)]
        for loaded in models:
            self._check_room(loaded)
        ids = self._prompt(models)
        calls = [_TimedCall(loaded, ids, self.new_tokens, _keeps_logits(models)) for loaded in models]
        with _pause_garbage_collection():
            for _ in range(self.warmup):
                for call in calls:
                    call.seconds()
            before = read_counters()
            rows = self._blocks(calls[0], calls[1:], context.progress)
            happened = before.changes_until(read_counters())
        seen = {"disturbed": ", ".join(happened), "unobservable": ", ".join(before.unobservable())}
        for (variant, sink), (paired, floor) in zip(waiting, rows, strict=True):
            sink.commit(UNIT, {"timings": self._frame([*paired, *floor], variant.identity.simulated).assign(**seen)})

    def _blocks(
        self, reference: _TimedCall, variants: Sequence[_TimedCall], progress: Progress
    ) -> list[tuple[list[Row], list[Row]]]:
        """Rows of each variant, and those of the reference against itself, which all variants share."""
        paired: list[list[Row]] = [[] for _ in variants]
        floor: list[Row] = []
        for repeat in range(self.repeats):
            progress.step("timings", repeat, self.repeats)
            for rows, variant in zip(paired, variants, strict=True):
                rows += self._block(reference, variant, "variant", repeat)
            floor += self._block(reference, reference, "floor", self.repeats + repeat)
        progress.step("timings", self.repeats, self.repeats)
        return [(rows, floor) for rows in paired]

    def _block(self, first: _TimedCall, second: _TimedCall, side: str, repeat: int) -> list[Row]:
        """Rows of one block A B B A."""
        order = (("reference", first), (side, second), (side, second), ("reference", first))
        tokens = {"prefill": self.prompt_tokens, "first_token": 1, "decode": self.new_tokens}
        taken = [(name, call.seconds()) for name, call in order]
        return [
            {
                "phase": phase,
                "repeat": repeat,
                "side": name,
                "order": number,
                "tokens": self.batch * tokens[phase],
                "seconds": times[phase],
            }
            for number, (name, times) in enumerate(taken)
            for phase in times
            if all(phase in others for _, others in taken)
        ]

    def _prompt(self, models: Sequence[LoadedModel]) -> Tensor:
        """Token ids [batch, prompt_tokens] that are valid for every model, the same in each run."""
        import numpy as np
        import torch

        known = min(loaded.language_model.token_ids for loaded in models)
        drawn = np.random.default_rng(SEED).integers(known, size=(self.batch, self.prompt_tokens))
        return torch.from_numpy(drawn)

    def _check_room(self, loaded: LoadedModel) -> None:
        room = loaded.language_model.positions
        wanted = self.prompt_tokens + self.new_tokens + 1
        if room is not None and wanted > room:
            raise DataError(
                f"timings: prompt_tokens + new_tokens + 1 is {wanted}, but {loaded.name} has only "
                f"{room} positions; set smaller values"
            )

    def _frame(self, rows: list[Row], simulated: bool) -> pd.DataFrame:
        import pandas as pd

        whole = {"repeat": "int32", "order": "int32", "batch": "int32", "tokens": "int64"}
        frame = pd.DataFrame(rows).assign(batch=self.batch, simulated=simulated).astype(whole)
        return frame[["phase", "repeat", "side", "order", "batch", "tokens", "seconds", "simulated"]]


class _TimedCall:
    """One prefill and a fixed number of generated tokens by one model; end-of-text does not stop it."""

    def __init__(self, loaded: LoadedModel, ids: Tensor, new_tokens: int, last_logits_alone: bool) -> None:
        self._name, self._model = loaded.name, loaded.language_model.for_transformers()
        self._ids, self._new_tokens = ids.to(loaded.language_model.device), new_tokens
        self._arguments: dict[str, Any] = {"logits_to_keep": 1} if last_logits_alone else {}

    def seconds(self) -> dict[str, float]:
        """Seconds by phase; no ``decode`` without a cache. Raises ModelError when a call fails."""
        import torch

        try:
            with torch.no_grad():
                return self._time_call()
        except RuntimeError as error:  # out of memory is one, too
            raise ModelError(f"timings: {self._name} could not be called: {error}") from error

    def _time_call(self) -> dict[str, float]:
        wait = _waiter(self._ids.device)
        wait()
        start = time.perf_counter()
        output = self._model(input_ids=self._ids, use_cache=True, **self._arguments)
        wait()
        read = time.perf_counter()
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        token.tolist()  # the user has the token only when the processor has it
        first = time.perf_counter()
        seconds = {"prefill": read - start, "first_token": first - start}
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return seconds
        for _ in range(self._new_tokens):
            output = self._model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, output.logits[:, -1].argmax(dim=-1, keepdim=True)
        token.tolist()
        wait()
        return seconds | {"decode": time.perf_counter() - first}


def _keeps_logits(models: Sequence[LoadedModel]) -> bool:
    """Whether every model can skip the logits of all tokens but the last, as servers do."""
    driven = [loaded.language_model.for_transformers() for loaded in models]
    return all("logits_to_keep" in inspect.signature(model.forward).parameters for model in driven)


def _waiter(device: Any) -> Any:
    """The function that waits until all work on the device is done."""
    import torch

    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Disable garbage collection while the clock runs."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
