"""The probe ``channels`` against numpy on inputs that plain hooks collect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.lockstep.module_statistics import channel_moments, channel_moments_in_cache
from harness.probes.channels import COLUMNS, Channels
from tests.helpers.pass_pairs import damaged, gpt2, llama, make_documents, observe

THRESHOLD = 1.5
MODELS = {"llama": llama, "gpt2": gpt2}


def inputs_of(model: Any, documents: Any) -> dict[str, Any]:
    """All rows that every linear layer reads, float64, the documents one after the other without padding."""
    kept: dict[str, list[Any]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):

            def hook(_module: Any, arguments: Any, name: str = name) -> None:
                kept.setdefault(name, []).append(arguments[0].flatten(0, -2).double().numpy())

            handles.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        for document in documents:
            model(input_ids=torch.from_numpy(document.ids)[None])
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(rows) for name, rows in kept.items()}


def expected(rows: Any) -> Any:
    """[6, H] in the order of COLUMNS."""
    size = np.abs(rows)
    over = (size >= THRESHOLD).sum(0)
    tokens = np.full(rows.shape[1], rows.shape[0])
    return np.stack([size.max(0), rows.sum(0), (rows**2).sum(0), (rows**4).sum(0), over, tokens])


@pytest.mark.parametrize("name", MODELS)
def test_every_channel_agrees_with_plain_forwards_in_float64(tmp_path: Path, name: str) -> None:
    reference = MODELS[name]()
    variants = [damaged(reference, 0.03), damaged(reference, 0.2)]
    documents = make_documents()
    _, both = observe(tmp_path, reference, variants, documents, probes=(Channels(threshold=THRESHOLD),))
    for variant, tables in zip(variants, both, strict=True):
        kept = {"reference": inputs_of(reference, documents), "variant": inputs_of(variant, documents)}
        for (side, module), rows in tables["channels"].groupby(["side", "module"]):
            wanted = expected(kept[str(side)][str(module)])
            found = rows.sort_values("channel")[list(COLUMNS)].to_numpy().T
            np.testing.assert_allclose(found[[0, 2, 3]], wanted[[0, 2, 3]], rtol=1e-4)
            np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
            assert np.abs(found[4] - wanted[4]).max() <= 1, "a value at the threshold may round to its other side"
            assert (found[5] == wanted[5]).all()
            other = expected(kept["reference" if side == "variant" else "variant"][str(module)])
            if module != next(iter(kept["reference"])) or name == "gpt2":
                assert not np.allclose(found[2], other[2], rtol=1e-4), "sides must not be mixed up"


def test_padding_would_be_seen(tmp_path: Path) -> None:
    """The comparison above fails when padding positions take part: they read the embedding of id 0."""
    reference, documents = llama(), make_documents([20, 4])
    _, (tables,) = observe(tmp_path, reference, [reference], documents, probes=(Channels(threshold=THRESHOLD),))
    module = "model.layers.0.self_attn.q_proj"
    found = tables["channels"].query("side == 'reference' and module == @module")["sum_squares"]
    right = expected(inputs_of(reference, documents)[module])[2]
    np.testing.assert_allclose(found, right, rtol=1e-4)
    padded = [make_documents([20, 20])[0], make_documents([20, 20])[1]]
    padded[1].ids[:4], padded[1].ids[4:] = documents[1].ids, 0
    assert not np.allclose(found, expected(inputs_of(reference, padded)[module])[2], rtol=1e-4)


def test_layers_that_read_the_same_tensor_are_one_input(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], make_documents([9]), probes=(Channels(),))
    table = tables["channels"].query("side == 'variant'").drop_duplicates("module")
    per_block = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]
    assert table["module"].tolist() == [f"model.layers.{i}.{name}" for i in range(2) for name in per_block]
    assert table["layer"].tolist() == [0] * 4 + [1] * 4
    widths = tables["channels"].groupby(["side", "module"])["channel"].agg(["min", "max", "count"])
    assert (widths["min"] == 0).all()
    assert (widths["max"] + 1 == widths["count"]).all()


def test_the_columns_are_those_that_measures_read(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], make_documents([9]), probes=(Channels(),))
    kinds = tables["channels"].dtypes.astype(str).to_dict()
    assert list(kinds) == ["side", "module", "layer", "channel", *COLUMNS]
    assert kinds["layer"] == kinds["channel"] == "int32"
    assert kinds["over_threshold"] == kinds["tokens"] == "int64"
    assert {kinds[name] for name in COLUMNS[:4]} == {"float64"}


def test_running_sums_are_one_file_however_many_batches_there_were(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], probes=(Channels(),), batch_tokens=1)
    assert len(list((tmp_path / "0" / "s").glob("*.channels.parquet"))) == 1
    assert (tables["channels"]["tokens"] == sum(len(d.ids) for d in make_documents())).all()


def test_the_threshold_must_be_above_zero() -> None:
    assert Channels().threshold == 6.0
    for wrong in (0.0, -1.0):
        with pytest.raises(ValidationError):
            Channels(threshold=wrong)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 60),
    width=st.integers(1, 40),
    threshold=st.floats(0.1, 3.0),
)
def test_moments_of_any_values(seed: int, rows: int, width: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(rows, width)) * rng.lognormal(size=width)).astype(np.float32)
    valid = rng.random(rows) < 0.7
    values[~valid] = rng.choice([np.nan, np.inf, 1e30])
    kept = values[valid].astype(np.float64)
    size = np.abs(kept)
    over = (size >= np.float32(threshold)).sum(0)
    wanted = [size.max(0, initial=0.0), kept.sum(0), (kept**2).sum(0), (kept**4).sum(0), over]
    for kernel in (channel_moments, channel_moments_in_cache):
        found = kernel(torch.from_numpy(values), torch.from_numpy(valid), float(np.float32(threshold)))
        for column, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(column, right, rtol=1e-4, atol=1e-4)


def test_what_is_not_a_number_stays_in_its_channel() -> None:
    values, valid = torch.randn(2000, 300), torch.ones(2000, dtype=torch.bool)
    values[5, 2] = float("nan")
    for kernel in (channel_moments, channel_moments_in_cache):
        for column in kernel(values, valid, 6.0)[:4]:
            assert column.isnan().nonzero().tolist() == [[2]]


def test_sides_are_equal_frames_for_equal_models(tmp_path: Path) -> None:
    model = llama()
    _, (tables,) = observe(tmp_path, model, [model], probes=(Channels(),))
    one, other = (frame.drop(columns="side").reset_index(drop=True) for _, frame in tables["channels"].groupby("side"))
    pd.testing.assert_frame_equal(one, other)
