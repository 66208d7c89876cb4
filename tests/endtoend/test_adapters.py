"""An adapter on the reference: judged as another model, and the same one beside the weights as merged into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from harness.report.asked import describe_steps
from tests.helpers.checked_folders import Checked, check_folders, copy_pocket

pytest.importorskip("peft")

from tests.helpers.peft_adapters import save_lora


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    copy_pocket(tmp_path / "ref")
    return tmp_path


def adapt(base: Path, *targets: str, std: float = 0.2) -> None:
    """Write an adapter of ``base/ref`` to ``base/a``."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base / "ref", dtype=torch.float32)
    save_lora(model, base / "a", std=std, target_modules=list(targets))


def check_adapter(base: Path, entry: str = "") -> Checked:
    return check_folders(base, f"{{model: ./ref, adapter: ./a{entry}}}")


@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), ("lm_head",)], ids=["projections", "tied_head"])
def test_an_adapter_is_no_reference_and_the_same_model_merged(targets: tuple[str, ...], here: Path) -> None:
    adapt(here, *targets)
    beside, merged = check_adapter(here), check_adapter(here, ", merge: true, artifact: none")
    for found in (beside, merged):
        assert found.run, found.output
        assert "by construction" not in found.output
        assert not found.notes("same model")
        assert found.change("divergence.kl_mean") > 0.01
    for found, said in ((beside, "adapter a (attached)"), (merged, "adapter a (merged)")):
        assert describe_steps(found.run["asked"]) == [said]
    assert merged.change("divergence.kl_mean") == pytest.approx(beside.change("divergence.kl_mean"), rel=1e-3)
    assert any("has a weight of its own" in text for text in merged.notes("adapter")) == (targets == ("lm_head",))


def test_an_adapter_that_was_never_trained_passes(here: Path) -> None:
    adapt(here, "q_proj", std=0.0)
    found = check_adapter(here)
    assert found.code == 0, found.output
    assert found.change("divergence.kl_mean") == 0.0
