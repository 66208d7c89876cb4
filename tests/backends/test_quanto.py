"""optimum-quanto: what it does by hand, its grids beside ours, what is counted, and its calibrated inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import harness
from harness.backends.quanto import Quanto
from harness.errors import BackendError
from harness.testing import trials
from tests.helpers.library_layers import MIDDLE, agree, by_hand, compressed, effective, formats, logits, step, variant
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama

quanto: Any = pytest.importorskip("optimum.quanto", exc_type=ImportError)

NAMES = {"int8": "qint8", "int4": "qint4", "int2": "qint2", "fp8_e4m3": "qfloat8_e4m3fn", "fp8_e5m2": "qfloat8_e5m2"}


@pytest.mark.parametrize("weights", NAMES)
def test_it_is_what_the_library_does(weights: str) -> None:
    def change(model: Any) -> None:
        quanto.quantize(model, weights=NAMES[weights], exclude="lm_head")
        quanto.freeze(model)

    done = compressed(tiny_llama(tied=False), "quanto", weights=weights)
    assert torch.equal(logits(done.model), logits(by_hand(change)))


@pytest.mark.parametrize(
    ("weights", "ours"),
    [
        ("int8", {"bits": 8, "granularity": "channel"}),
        ("fp8_e4m3", {"format": "fp8_e4m3", "granularity": "channel"}),
        ("fp8_e5m2", {"format": "fp8_e5m2", "granularity": "channel"}),
    ],
)
def test_its_8_bit_grids_are_ours(weights: str, ours: dict[str, Any]) -> None:
    model = tiny_llama(tied=False)
    found = compressed(model, "quanto", weights=weights).model.get_submodule(MIDDLE)
    simulated = compressed(model, "round_to_nearest", **ours).model.get_submodule(MIDDLE)
    steps = model.get_parameter(f"{MIDDLE}.weight").abs().max() / (127 if weights == "int8" else 4)
    assert agree(effective(found), effective(simulated), steps) < 1e-3


def test_its_4_bit_grid_begins_at_the_smallest_weight_wherever_zero_is() -> None:
    """Ours rounds the zero point to a code and keeps 0 exact; the library adds the smallest weight as it is."""
    weight = tiny_llama(tied=False).get_parameter(f"{MIDDLE}.weight").detach()
    found = effective(compressed(tiny_llama(tied=False), "quanto", weights="int4").model.get_submodule(MIDDLE))
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    step = (high - low) / 15
    expected = ((weight - low) / step).round() * step + low
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_bytes_and_bits_are_those_of_the_tensors() -> None:
    model, ranges = tiny_llama(tied=False), 2 * 4  # Of inputs and outputs; kept also where they are not used.
    int8 = formats(compressed(model, "quanto", weights="int8"))[MIDDLE]
    assert int8.stored_bytes == 64 * 112 + 4 * 112 + ranges
    assert (int8.format.name, int8.format.granularity, int8.format.symmetric, int8.kernel) == (
        "int8",
        "channel",
        True,
        "real",
    )
    int4 = formats(compressed(model, "quanto", weights="int4", group_size=16))[MIDDLE]
    assert int4.stored_bytes == 64 * 112 // 2 + 2 * 4 * 64 * 112 // 16 + ranges
    assert (int4.format.name, int4.format.granularity, int4.format.group_size, int4.kernel) == (
        "int4",
        "group",
        16,
        "real",
    )


def test_it_takes_the_largest_group_that_fits() -> None:
    model = tiny_llama(tied=False, intermediate_size=192)
    found = formats(compressed(model, "quanto", weights="int4"))
    down, up = found["model.layers.0.mlp.down_proj"], found["model.layers.0.mlp.up_proj"]
    assert (down.format.granularity, down.format.group_size) == ("group", 96)
    assert (up.format.granularity, up.format.group_size) == ("channel", None)
    assert down.stored_bytes == 64 * 192 // 2 + 2 * 4 * 64 * 192 // 96 + 8


def test_inputs_keep_the_range_of_the_documents() -> None:
    done = variant("quanto", weights="int8", activations="int8")
    (found,) = [each for each in done.identity.modules if each.module == MIDDLE]
    assert str(found.activations) == "int8 per tensor, static (min_max)"
    module: Any = done.model.get_submodule(MIDDLE)
    assert module.input_scale != 1
    seen: list[Any] = []
    module.register_forward_hook(lambda _module, inputs, output: seen.append(output))
    logits(done.model)
    assert type(seen[0]) is Tensor, "outputs would reach probes in the library's type of tensor"
    wide = module.input_scale * 127 * torch.ones(1, 64)
    assert torch.allclose(module(3 * wide), module(wide)), "what is beyond the range should be cut"


def test_without_documents_inputs_are_refused() -> None:
    asked = step("quanto", weights="int8", activations="int8")
    with pytest.raises(BackendError, match="quanto: needs calibration documents"):
        trials.as_variant(asked, tiny_llama(), ())


def test_layers_that_it_cannot_take_are_named() -> None:
    with pytest.raises(BackendError, match=r"quanto: model.layers.0.mlp.down_proj: its 112 inputs are not a multiple"):
        compressed(tiny_llama(tied=False), "quanto", weights="int4", group_size=32)
    with pytest.raises(BackendError, match=r"quanto: transformer\.h\.0\S*: is a Conv1D"):
        compressed(tiny_gpt2(), "quanto", weights="int8")


REFUSED: tuple[dict[str, Any], ...] = (
    {},
    {"weights": "int3"},
    {"weights": "int8", "group_size": 32},
    {"weights": "int4", "activations": "int8"},
)


@pytest.mark.parametrize("fields", REFUSED)
def test_settings_that_do_not_fit_together_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Quanto(**fields)


def test_nothing_runs_models_where_its_tensors_of_4_bits_fail() -> None:
    model = compressed(tiny_llama(tied=False), "quanto", weights="int4").model
    with pytest.raises(RuntimeError, match="inference tensor"), torch.inference_mode():
        model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    sources = Path(harness.__file__).parent.rglob("*.py")
    assert not [str(file) for file in sources if "torch.inference_mode" in file.read_text(encoding="utf-8")]
