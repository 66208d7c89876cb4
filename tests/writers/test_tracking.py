"""Logging to MLflow and Weights & Biases, both without a network: what is logged, once a run, and what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness.errors import MissingDependencyError, WriteError
from harness.report.display import clean
from harness.report.tracking import describe
from harness.writers.mlflow import Mlflow
from harness.writers.wandb import Wandb
from tests.helpers.hostile import HOSTILE, rename_everything, small
from tests.helpers.made_run import Made


@pytest.mark.parametrize(("writer", "library"), [(Mlflow(), "mlflow"), (Wandb(), "wandb")])
def test_a_missing_library_says_what_to_install(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Mlflow | Wandb, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.tracking", None)
    with pytest.raises(MissingDependencyError, match=rf'install with: pip install "lm-shipcheck\[{library}\]"'):
        writer.write(made["pass"].run, made["pass"].tables, tmp_path)


def test_a_run_has_one_id_and_another_run_another(made: dict[str, Made]) -> None:
    run = made["fail"].run
    later = run.model_copy(update={"clock": run.clock.model_copy(update={"started": "2026-11-23T08:00:00+00:00"})})
    assert describe(run, Path("a")).id == describe(run, Path("b")).id
    assert describe(run, Path("a")).id != describe(later, Path("a")).id


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store of MLflow in a folder."""
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "store").as_uri()


def test_mlflow_holds_the_numbers_and_the_verdict_once(made: dict[str, Made], tmp_path: Path, store: str) -> None:
    from mlflow.tracking import MlflowClient

    run, writer = made["fail"].run, Mlflow(tracking_uri=store)
    writer.write(run, made["fail"].tables, tmp_path)
    first = json.loads((tmp_path / "mlflow.json").read_text())
    writer.write(run, made["fail"].tables, tmp_path)
    assert json.loads((tmp_path / "mlflow.json").read_text()) == first
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("lm-shipcheck")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_id == first["run_id"]
    ratio = next(m for m in run.measurements if m.name == "perplexity.ratio")
    assert logged.data.metrics["perplexity.ratio.change"] == ratio.change
    assert logged.data.tags["verdict"] == "fail"
    assert logged.data.params["reference"] == "pocket"


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_mlflow_takes_hostile_names(tmp_path: Path, store: str, text: str) -> None:
    Mlflow(tracking_uri=store).write(rename_everything(text), small().tables, tmp_path)
    assert json.loads((tmp_path / "mlflow.json").read_text())["run_id"]


def test_a_server_that_does_not_answer_is_a_write_error(
    made: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(WriteError, match="MLflow did not take the run"):
        Mlflow(tracking_uri="http://127.0.0.1:9").write(made["pass"].run, made["pass"].tables, tmp_path)


def test_wandb_keeps_the_run_for_later_where_it_is_offline(made: dict[str, Made], tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    path = Wandb(mode="offline").write(made["fail"].run, made["fail"].tables, tmp_path)
    receipt = json.loads(path.read_text())
    assert receipt["id"] == describe(made["fail"].run, tmp_path).id
    (logged,) = tmp_path.glob(f"wandb/offline-run-*/run-{receipt['id']}.wandb")
    content = logged.read_bytes()
    for part in (b"perplexity.ratio.change", b"class_of_failure", b"pocket-w4-g32"):
        assert part in content


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_wandb_takes_hostile_names(tmp_path: Path, text: str) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    run = rename_everything(text)
    path = Wandb(mode="offline").write(run, small().tables, tmp_path)
    receipt = json.loads(path.read_text())
    (logged,) = tmp_path.glob(f"wandb/offline-run-*/run-{receipt['id']}.wandb")
    assert clean(text, 200)[:60].encode() in logged.read_bytes()
    assert b"hf_aaaaaaaaaaaaaaaa" not in logged.read_bytes()
