"""The probe of timings: who is called when and with what; the clock itself is made in the tests."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.errors import DataError, ModelError
from harness.measures.latency import Latency
from harness.models.language_model import TransformersModel
from harness.probes import Context
from harness.probes import timings as module
from harness.probes.timings import Timings
from harness.system.disturbances import SWAPPING, Counters

SMALL = {"repeats": 2, "warmup": 1, "prompt_tokens": 6, "new_tokens": 3, "batch": 2}


@dataclass(frozen=True)
class Loaded:
    """Stands for harness.models.loading.LoadedModel."""

    name: str
    model: Any
    identity: Any = field(default_factory=lambda: SimpleNamespace(simulated=False))

    @property
    def language_model(self) -> TransformersModel:
        """The model as its engine gives it."""
        return TransformersModel(self.model)


@dataclass
class MemorySink:
    """Keeps the committed frame."""

    frames: dict[str, pd.DataFrame] = field(default_factory=dict)

    def done(self, unit: str) -> bool:
        return unit in self.frames

    def commit(self, unit: str, frames: Mapping[str, pd.DataFrame]) -> None:
        assert unit not in self.frames
        self.frames[unit] = frames["timings"]

    @property
    def rows(self) -> pd.DataFrame:
        return self.frames["timings"]


class Quiet:
    """Progress that nobody watches."""

    def step(self, what: str, done: int, of: int) -> None:
        assert done <= of


class Watched(LlamaForCausalLM):
    """A tiny model that writes down each call."""

    def __init__(self, name: str, calls: list[tuple[str, torch.Tensor, bool]], seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            initializer_range=0.5,
        )
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.eval()  # type: ignore[no-untyped-call]
        self.called, self.calls = name, calls

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **arguments: Any) -> Any:
        self.calls.append((self.called, input_ids.clone(), arguments.get("past_key_values") is not None))
        output = super().forward(input_ids=input_ids, logits_to_keep=logits_to_keep, **arguments)
        if "past_key_values" not in arguments:
            assert output.logits.shape[1] == (logits_to_keep or input_ids.shape[1])
        return output


@pytest.fixture
def calls() -> list[tuple[str, torch.Tensor, bool]]:
    return []


def observe(
    probe: Timings, calls: Any, *names: str, sinks: list[MemorySink] | None = None
) -> tuple[list[MemorySink], list[Loaded]]:
    loaded = [Loaded(name, Watched(name, calls, seed)) for seed, name in enumerate(("reference", *names))]
    sinks = sinks or [MemorySink() for _ in names]
    probe.observe(Context(loaded[0], loaded[1:], sinks, Quiet()))  # type: ignore[arg-type]
    return sinks, loaded


def test_calls_come_in_blocks_a_b_b_a_after_the_warm_up(calls: Any) -> None:
    observe(Timings(**SMALL), calls, "one", "two")
    prompts = [name for name, _, cached in calls if not cached]
    warmup, timed = prompts[:3], prompts[3:]
    assert warmup == ["reference", "one", "two"]
    one_repeat = ["reference", "one", "one", "reference", "reference", "two", "two", "reference"] + ["reference"] * 4
    assert timed == one_repeat * 2


def test_every_call_reads_the_same_ids_and_writes_the_same_number_of_tokens(calls: Any) -> None:
    observe(Timings(**SMALL), calls, "one")
    prompts = [ids for _, ids, cached in calls if not cached]
    steps = [ids for _, ids, cached in calls if cached]
    assert {tuple(ids.shape) for ids in prompts} == {(2, 6)}
    assert all(torch.equal(ids, prompts[0]) for ids in prompts)
    assert prompts[0].unique().numel() > 2
    assert {tuple(ids.shape) for ids in steps} == {(2, 1)}
    assert len(steps) == 3 * len(prompts)
    again: list[Any] = []
    observe(Timings(**SMALL), again, "one")
    assert torch.equal(again[0][1], prompts[0])


def test_writing_is_greedy(calls: Any) -> None:
    _, loaded = observe(Timings(**SMALL), calls, "one")
    sequence = calls[0][1]
    written = [ids for _, ids, cached in calls[:4] if cached]
    with torch.no_grad():
        for step in written:
            token = LlamaForCausalLM.forward(loaded[0].model, input_ids=sequence).logits[:, -1].argmax(-1, keepdim=True)
            assert torch.equal(step, token)
            sequence = torch.cat([sequence, token], dim=1)


def test_rows_say_who_was_timed_when_and_for_how_many_tokens(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock() -> Iterator[float]:
        now = 100.0
        while True:
            for pause in (1.0, 0.25, 4.0, 10.0):  # prefill, first token, decode, between calls
                yield now
                now += pause

    ticks = clock()
    monkeypatch.setattr("harness.probes.timings.time.perf_counter", lambda: next(ticks))
    rows = observe(Timings(**SMALL), calls, "one")[0][0].rows
    assert list(rows.columns) == [
        "phase",
        "repeat",
        "side",
        "order",
        "batch",
        "tokens",
        "seconds",
        "simulated",
        "disturbed",
        "unobservable",
    ]
    assert dict(rows.groupby("phase").seconds.unique().map(list)) == {
        "prefill": [1.0], "first_token": [1.25], "decode": [4.0]
    }  # fmt: skip
    assert dict(rows.groupby("phase").tokens.unique().map(list)) == {
        "prefill": [12],
        "first_token": [2],
        "decode": [6],
    }
    assert set(rows.batch) == {2}
    prefill = rows[rows.phase == "prefill"]
    sides = {repeat: list(part.sort_values("order").side) for repeat, part in prefill.groupby("repeat")}
    paired, floor = (
        ["reference", "variant", "variant", "reference"],
        ["reference", "floor", "floor", "reference"],
    )
    assert sides == {0: paired, 1: paired, 2: floor, 3: floor}


def test_all_variants_share_the_floor_and_a_finished_one_is_left_alone(calls: Any) -> None:
    (first, second), _ = observe(Timings(**SMALL), calls, "one", "two")
    one, other = (sink.rows[sink.rows.repeat >= 2].reset_index(drop=True) for sink in (first, second))
    pd.testing.assert_frame_equal(one, other)
    calls.clear()
    observe(Timings(**SMALL), calls, "one", "two", sinks=[first, fresh := MemorySink()])
    assert {name for name, _, _ in calls} == {"reference", "two"}
    assert len(fresh.rows) == len(second.rows)
    calls.clear()
    observe(Timings(**SMALL), calls, "one", "two", sinks=[first, fresh])
    assert calls == []


def test_what_happened_while_the_clock_ran_is_in_every_row(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter((Counters({SWAPPING: {"pswpin": 1}}), Counters({SWAPPING: {"pswpin": 2}})))
    monkeypatch.setattr(module, "read_counters", lambda: next(read))
    rows = observe(Timings(**SMALL), calls, "one")[0][0].rows
    assert set(rows.disturbed) == {"swapping"}
    assert Latency.columns is None or set(rows.columns) <= set(Latency.columns)  # or a run would not read them
    assert set(rows.unobservable) == {"thermal throttling, a change of the clock limits"}


def test_simulated_weights_are_marked(calls: Any) -> None:
    reference = Loaded("reference", Watched("reference", calls))
    sinks = [MemorySink(), MemorySink()]
    variants = [Loaded(str(s), Watched(str(s), calls), SimpleNamespace(simulated=s)) for s in (True, False)]
    Timings(**SMALL).observe(Context(reference, variants, sinks, Quiet()))  # type: ignore[arg-type]
    assert [sink.rows.simulated.unique().tolist() for sink in sinks] == [[True], [False]]


def test_a_model_without_cache_has_no_decode_times(calls: Any) -> None:
    class Forgetful(Watched):
        def forward(self, *args: Any, **arguments: Any) -> Any:
            output = super().forward(*args, **arguments)
            output.past_key_values = None
            return output

    for forgetful in ("reference", "one"):
        kinds = {"reference": Watched, "one": Watched} | {forgetful: Forgetful}
        reference, variant = (Loaded(name, kinds[name](name, calls)) for name in ("reference", "one"))
        sink = MemorySink()
        Timings(**SMALL).observe(Context(reference, [variant], [sink], Quiet()))  # type: ignore[arg-type, list-item]
        timed = sink.rows.groupby("repeat").phase.agg(set)
        assert timed[0] == {"prefill", "first_token"}
        assert ("decode" in timed[2]) == (forgetful == "one")


def test_a_prompt_without_room_is_an_error_before_any_call(calls: Any) -> None:
    with pytest.raises(DataError, match=r"is 18, but reference has only 16 positions"):
        observe(Timings(prompt_tokens=12, new_tokens=5), calls, "one")
    assert calls == []


def test_a_call_that_fails_names_the_model(calls: Any) -> None:
    class Broken(Watched):
        def forward(self, *args: Any, **arguments: Any) -> Any:
            raise RuntimeError("out of memory")

    reference, variant = Loaded("reference", Watched("reference", calls)), Loaded("one", Broken("one", calls))
    with pytest.raises(ModelError, match="one could not be called: out of memory"):
        Timings(**SMALL).observe(Context(reference, [variant], [MemorySink()], Quiet()))  # type: ignore[arg-type, list-item]
    assert gc.isenabled()


def test_random_states_and_garbage_collection_are_left_as_they_were(calls: Any) -> None:
    loaded = [Loaded(name, Watched(name, calls)) for name in ("reference", "one")]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy(), torch.get_rng_state())
    during: list[bool] = []
    loaded[1].model.register_forward_hook(lambda *_: during.append(gc.isenabled()))
    Timings(**SMALL).observe(Context(loaded[0], loaded[1:], [MemorySink()], Quiet()))  # type: ignore[arg-type, list-item]
    assert random.getstate() == before[0]
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert set(during) == {False}
    assert gc.isenabled()


def test_the_device_is_waited_for(calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(module, "_waiter", lambda device: lambda: waits.append(len(calls)))
    observe(Timings(**SMALL | {"repeats": 1, "warmup": 0}), calls, "one")
    per_call = waits[:3]
    assert per_call == [0, 1, 4]  # before the clock starts, after the prompt, after the last token
