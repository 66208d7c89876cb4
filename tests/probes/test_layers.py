"""The probe ``layers`` against numpy on outputs that plain hooks collect, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.lockstep.module_statistics import row_errors, row_errors_in_cache
from harness.probes.layers import Layers
from tests.helpers.pass_pairs import damaged, gemma2, gpt2, llama, make_documents, observe

MODELS = {"llama": llama, "gpt2": gpt2, "gemma2": gemma2}
SUMS = ["sum_squared_error", "sum_squared_reference", "sum_squared_variant", "dot", "max_abs_diff"]


def outputs_of(model: Any, ids: Any) -> dict[str, Any]:
    """Copies of what every module gives for one document, float64."""
    kept: dict[str, Any] = {}
    handles = []
    for name, module in model.named_modules():

        def hook(_module: Any, _arguments: Any, output: Any, name: str = name) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                kept[name] = tensor[0].double().clone().numpy()

        handles.append(module.register_forward_hook(hook))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(ids)[None])
    for handle in handles:
        handle.remove()
    return kept


def expected(reference: Any, variant: Any) -> list[float]:
    error = variant - reference
    sums = [(error**2).sum(), (reference**2).sum(), (variant**2).sum(), (reference * variant).sum()]
    return [*sums, np.abs(error).max()]


@pytest.mark.parametrize("name", MODELS)
def test_every_sum_agrees_with_plain_forwards_in_float64(tmp_path: Path, name: str) -> None:
    reference = MODELS[name]()
    variants = [damaged(reference, 0.03), damaged(reference, 0.2)]
    documents = make_documents()
    _, both = observe(tmp_path, reference, variants, documents, probes=(Layers(),))
    for variant, tables in zip(variants, both, strict=True):
        table = tables["layers"].set_index(["document", "module"])
        assert table.index.is_unique
        for document in documents:
            r, v = outputs_of(reference, document.ids), outputs_of(variant, document.ids)
            rows = table.loc[document.index]
            found = rows[SUMS].to_numpy()
            wanted = np.array([expected(r[module], v[module]) for module in rows.index])
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-7)
            assert rows["n"].tolist() == [r[module].size for module in rows.index]
            swapped = np.array([expected(v[module], r[module]) for module in rows.index])
            assert not np.allclose(found, swapped, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_attention_mlp_and_every_linear_layer_are_there_and_the_head_is_not(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    _, (tables,) = observe(tmp_path, model, [model], make_documents([9]), probes=(Layers(),))
    kinds = tables["layers"].groupby("kind", observed=True)["module"].apply(set).to_dict()
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    assert kinds["linear"] == linear
    blocks = {"llama": "model.layers", "gemma2": "model.layers", "gpt2": "transformer.h"}[name]
    assert kinds["block"] == {f"{blocks}.{i}" for i in range(2)}
    attention = "attn" if name == "gpt2" else "self_attn"
    assert kinds["attention"] == {f"{blocks}.{i}.{attention}" for i in range(2)}
    assert kinds["mlp"] == {f"{blocks}.{i}.mlp" for i in range(2)}


def test_depth_is_the_order_of_execution(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [llama()], make_documents([9, 5]), probes=(Layers(),))
    first = tables["layers"].query("document == 0").sort_values("depth")
    assert first["depth"].tolist() == list(range(20))
    names = [name.removeprefix("model.layers.") for name in first["module"]]
    assert names[:10] == [
        "0.self_attn.q_proj", "0.self_attn.k_proj", "0.self_attn.v_proj", "0.self_attn.o_proj", "0.self_attn",
        "0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj", "0.mlp", "0",
    ]  # fmt: skip
    assert names[-1] == "1"


class Reused(nn.Module):
    """Gives its linear layer's output and then overwrites it: what was kept of it would be wrong."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Any) -> Any:
        out = self.inner(hidden_states)
        return out.mul_(0.5).add_(1.0)


def test_outputs_that_later_code_overwrites_are_compared_as_they_were(tmp_path: Path) -> None:
    reference = llama()
    reference.model.layers[0].mlp = Reused(reference.model.layers[0].mlp)
    variant = damaged(reference)
    document = make_documents([12])[0]
    _, (tables,) = observe(tmp_path, reference, [variant], [document], probes=(Layers(),))
    table = tables["layers"].set_index("module")
    module = "model.layers.0.mlp.inner.down_proj"
    r, v = outputs_of(reference, document.ids)[module], outputs_of(variant, document.ids)[module]
    np.testing.assert_allclose(table.loc[module, SUMS].astype(float), expected(r, v), rtol=1e-3)
    outer = "model.layers.0.mlp"
    r, v = outputs_of(reference, document.ids)[outer], outputs_of(variant, document.ids)[outer]
    np.testing.assert_allclose(table.loc[outer, SUMS].astype(float), expected(r, v), rtol=1e-3)


def test_a_module_that_runs_twice_counts_both_times(tmp_path: Path) -> None:
    reference = llama(num_hidden_layers=2)
    reference.model.layers[1].mlp = reference.model.layers[0].mlp
    variant = damaged(reference)
    document = make_documents([12])[0]
    _, (tables,) = observe(tmp_path, reference, [variant], [document], probes=(Layers(),))
    table = tables["layers"].set_index("module")
    assert table.loc["model.layers.0.mlp.down_proj", "n"] == 2 * 12 * 32
    assert table.loc["model.layers.0.mlp", "n"] == 2 * 12 * 32
    assert table.loc["model.layers.0.self_attn.q_proj", "n"] == 12 * 32


def test_small_errors_of_large_values_do_not_cancel() -> None:
    reference = torch.full((3, 64), 1000.0)
    variant = reference + 0.01
    error = (variant - reference).double().square().sum(-1)
    for kernel in (row_errors, row_errors_in_cache):
        torch.testing.assert_close(kernel(reference, variant)[0].double(), error, rtol=1e-5, atol=0)


def test_pieces_give_what_the_whole_gives() -> None:
    torch.manual_seed(0)
    reference, variant = torch.randn(300, 1024), torch.randn(300, 1024)
    for whole, pieces in zip(row_errors(reference, variant), row_errors_in_cache(reference, variant), strict=True):
        assert torch.equal(whole, pieces)


def test_documents_are_rows_of_their_own(tmp_path: Path) -> None:
    _, (tables,) = observe(tmp_path, llama(), [damaged(llama())], probes=(Layers(),))
    counts = tables["layers"].groupby("document")["module"].count()
    assert counts.tolist() == [20] * 8
    kinds = tables["layers"].dtypes.astype(str).to_dict()
    assert kinds["document"] == kinds["depth"] == "int32"
    assert kinds["n"] == "int64"
    assert {kinds[name] for name in SUMS} == {"float64"}
    assert isinstance(tables["layers"], pd.DataFrame)
