"""What no document reaches: NaN in experts and rows, towers, heads that a class leaves in the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.helpers.checked_folders import SIZES, change_tensors, check_folders, copy_pocket, save, with_tower

DOWN = "model.layers.0.mlp.experts.down_proj"
HEAD = ("mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight")
TOWER = "model.vision_tower"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def mixtral() -> Any:
    """Routes every token to one of the first two of four experts."""
    routed: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 1}
    model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, **routed)).eval()
    for layer in model.model.layers:
        gate = layer.mlp.gate.weight.data
        gate[1], gate[2:] = -gate[0], 0
    return model


def with_unread_head(folder: Path) -> None:
    """A model whose class leaves the head for a further token in the files."""
    linear = {f"linear_{name}": 2 for name in ("num_key_heads", "num_value_heads")}
    linear |= {f"linear_{name}": 16 for name in ("key_head_dim", "value_head_dim")}
    text: dict[str, Any] = SIZES | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]} | linear
    model = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**text))
    chance = torch.Generator().manual_seed(1)
    head = {HEAD[0]: torch.randn(64, 128, generator=chance), HEAD[1]: torch.randn(128, 64, generator=chance)}
    for side in ("ref", "var"):
        change_tensors(save(model, folder / side), lambda held: held.update(head))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_expert_that_no_token_reaches_must_be_finite(value: float, here: Path) -> None:
    model = mixtral()
    save(model, here / "ref")
    model.model.layers[0].mlp.experts.down_proj.data[3] = value
    save(model, here / "var")
    found = check_folders(here)
    assert found.code == 1, found.output
    assert f"1 tensor holds NaN or infinity ({DOWN}, expert 3)" in found.output
    assert found.failed() == ["coverage.non_finite", "coverage.untouched_changed", "every weight is finite"]


def test_rows_that_no_document_looks_up_must_be_finite(here: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(copy_pocket(here / "base"), dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    save(model, here / "ref")
    model.model.embed_tokens.weight.data[1400:1410] = float("nan")
    save(model, here / "var")
    found = check_folders(here)
    assert found.code == 1, found.output
    assert "model.embed_tokens.weight, rows 1400–1409" in found.output


def test_a_reference_that_is_not_finite_is_refused(here: Path) -> None:
    model = mixtral()
    save(model, here / "var")
    model.model.layers[1].mlp.experts.gate_up_proj.data[2, 0, 0] = float("nan")
    save(model, here / "ref")
    found = check_folders(here)
    assert found.code == 2, found.output
    assert "model.layers.1.mlp.experts.gate_up_proj, expert 2" in found.output
    assert "export the reference again" in found.output


def test_the_very_same_infinities_on_both_sides_are_said_and_fail_nothing(here: Path) -> None:
    model = mixtral()
    model.model.layers[0].mlp.experts.down_proj.data[3, 0] = float("-inf")
    for side in ("ref", "var"):
        save(model, here / side)
    found = check_folders(here)
    assert found.code == 0, found.output
    assert any("the very same on both sides" in text for text in found.notes("non-finite weights"))


def scale(held: dict[str, Tensor]) -> None:
    held.update({name: each * 100 for name, each in held.items() if "vision" in name})


def negate_one(held: dict[str, Tensor]) -> None:
    name = next(name for name in sorted(held) if "vision" in name and name.endswith("fc1.weight"))
    held[name] = -held[name]


def other_projector(held: dict[str, Tensor]) -> None:
    held.update({name: each + 1 for name, each in held.items() if "projector" in name and "norm" not in name})


@pytest.mark.parametrize(
    ("damage", "named"),
    [(scale, TOWER), (negate_one, "fc1"), (other_projector, "model.multi_modal_projector")],
)
def test_a_tower_that_no_text_runs_must_not_differ(
    damage: Callable[[dict[str, Tensor]], None], named: str, here: Path
) -> None:
    model = with_tower()
    for side in ("ref", "var"):
        save(model, here / side)
    change_tensors(here / "var", damage)
    found = check_folders(here)
    assert found.code == 1, found.output
    assert found.failed() == ["coverage.untouched_changed"]
    (text,) = found.notes("untouched")
    assert named in text.partition("differ from the reference")[2]


def round_tower(held: dict[str, Tensor]) -> None:
    held.update({name: each.bfloat16() for name, each in held.items() if "vision" in name})


@pytest.mark.parametrize("change", [None, round_tower])
def test_an_equal_tower_is_told_as_a_share(change: Callable[[dict[str, Tensor]], None] | None, here: Path) -> None:
    model = with_tower()
    for side in ("ref", "var"):
        save(model, here / side)
    if change is not None:
        change_tensors(here / "var", change)
    found = check_folders(here)
    assert found.code == 0, found.output
    (text,) = found.notes("untouched")
    assert "model.vision_tower" in text
    assert "equal on both sides" in text
    held = sum(each.numel() for name, each in model.named_parameters() if "vision" in name or "projector" in name)
    share = next(m["variant"] for m in found.run["measurements"] if m["name"] == "coverage.untouched_parameters")
    embedding, total = model.get_input_embeddings().weight.numel(), sum(each.numel() for each in model.parameters())
    assert held / total <= share < (held + embedding) / total


def test_an_unread_head_must_be_finite(here: Path) -> None:
    with_unread_head(here)
    change_tensors(here / "var", lambda held: held.update({HEAD[0]: held[HEAD[0]] * float("nan")}))
    found = check_folders(here)
    assert found.code == 1, found.output
    assert "mtp.fc.weight" in found.output
    assert "every weight is finite" in found.failed()
    assert not any("same bytes" in text for text in found.notes("same model"))


def test_an_unread_head_must_not_differ(here: Path) -> None:
    with_unread_head(here)
    assert check_folders(here).code == 0
    change_tensors(here / "var", lambda held: held.update({HEAD[1]: held[HEAD[1]] * 2}))
    found = check_folders(here)
    assert found.code == 1, found.output
    assert found.failed() == ["coverage.untouched_changed"]
    assert any("mtp (1 tensor in the files)" in text for text in found.notes("untouched"))


def test_an_unread_head_that_is_gone_is_a_warning(here: Path) -> None:
    with_unread_head(here)

    def remove(held: dict[str, Tensor]) -> None:
        for name in HEAD:
            del held[name]

    change_tensors(here / "var", remove)
    found = check_folders(here)
    assert found.code == 0, found.output
    assert found.failed("warn") == ["coverage.missing"]
    assert any("its files lack what no text runs" in text for text in found.notes("untouched"))
