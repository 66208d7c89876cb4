"""The table of number formats: one entry is all that a format takes."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from harness.backends.activations import Activations
from harness.backends.kv_cache import KvCache
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, HarnessError
from harness.modules.grid_check import check_grids
from harness.numerics import named_formats as table
from harness.numerics.formats import format_of, known_grid, stored_bits
from harness.numerics.grids import grid_of, minifloat
from harness.numerics.named_formats import NamedFormat, named_formats
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

FP6 = NamedFormat("fp6_e3m2", "6-bit floats", "float", 6, exponent_bits=3, fraction_bits=2, uses=("weights", "inputs"))


@pytest.fixture
def fp6(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with one entry more."""
    more = {**named_formats(), FP6.name: FP6}
    monkeypatch.setattr(table, "named_formats", lambda: more)
    for module in ("harness.numerics.grids", "harness.numerics.formats", "harness.backends._common.weights"):
        monkeypatch.setattr(f"{module}.named_formats", lambda: more)
    monkeypatch.setattr("harness.backends.activations.named_formats", lambda: more)
    grid_of.cache_clear()


@pytest.mark.parametrize("entry", named_formats().values(), ids=lambda entry: entry.name)
def test_every_entry_has_a_record_a_grid_and_a_size(entry: NamedFormat) -> None:
    record = entry.record(4 if entry.bits is None else None)
    form = format_of(record)
    assert record.name == ("int4" if entry.name == "int" else entry.name) == form.name
    assert form.grid.bits == record.bits
    assert known_grid(record) is not None
    assert stored_bits((64, 64), form) > 64 * 64 * form.grid.bits
    assert entry.summary


def test_floats_of_few_bits_are_those_of_torch_and_of_the_specification() -> None:
    """OCP MX, table 5: E3M2 goes up to 28 and down to 2^−4, E2M3 up to 7.5 and down to 1/8."""
    for exponent, fraction, largest, smallest in ((3, 2, 28.0, 2.0**-4), (2, 3, 7.5, 2.0**-3), (2, 1, 6.0, 0.5)):
        grid = minifloat("some", exponent, fraction)
        assert (grid.largest, min(value for value in grid.values if value > 0)) == (largest, smallest)
        assert len(grid.values) == 2 ** (1 + exponent + fraction) - 1
        assert list(grid.values) == sorted(-value for value in grid.values)
    every = torch.arange(128, dtype=torch.uint8).view(torch.float8_e5m2).float()
    finite = every[every.isfinite() & (every > 0)].tolist()
    assert [value for value in minifloat("e5m2", 5, 2).values if 0 < value <= max(finite)] == finite


def test_one_entry_is_taken_rounded_described_and_checked(fp6: None) -> None:
    step = RoundToNearest(format="fp6_e3m2", group_size=16, only=("*.up_proj",))
    model = tiny_llama()
    done = step.compress(model, tiny_tokenizer(), ())
    stated = {module.module: module for module in done.modules}
    first = next(iter(stated.values()))
    assert str(first.format) == "fp6_e3m2 in groups of 16"
    assert first.bits_per_weight == 6 + 16 / 16
    assert all(8 < count <= 63 for count in check_grids(model, stated).values())
    assert len(check_grids(model, stated)) == len(stated)
    layer = model.get_submodule(first.module)
    assert isinstance(layer, nn.Linear)
    layer.weight.data += 0.01 * torch.randn_like(layer.weight)
    with pytest.raises(BackendError, match="is declared as fp6_e3m2 in groups of 16, but"):
        check_grids(model, stated)


def test_uses_say_what_takes_a_format(fp6: None) -> None:
    assert str(Activations(format="fp6_e3m2").number_format()) == "fp6_e3m2 per token, dynamic"
    with pytest.raises(ValidationError, match="Input should be 'int', 'fp8_e4m3' or 'fp8_e5m2'"):
        KvCache(format="fp6_e3m2")


@pytest.mark.parametrize("name", ["fp9", "int4", "", "Int"])
def test_other_names_are_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ValidationError, match=r"'int', 'fp8_e4m3', .* or 'nvfp4'") as caught:
        RoundToNearest(format=name)
    assert caught.value.errors()[0]["type"] == "literal_error", "what the plan makes a hint from"


@pytest.mark.parametrize(
    ("name", "value"), [("fp6", FP6), ("nf4", named_formats()["nf4"]), ("fp6_e3m2", "no entry at all")]
)
def test_an_entry_point_that_is_no_new_format_is_refused(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint(name, "somewhere:THING", table.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _self: value)
    monkeypatch.setattr(table, "entry_points", lambda group: [point])
    with pytest.raises(HarnessError, match=rf"somewhere:THING: found .* expected a NamedFormat called '{name}'"):
        table.named_formats.__wrapped__()
