"""mlflow.json: the run logged to MLflow, and where. Needs the extra ``mlflow``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import MissingDependencyError, WriteError
from harness.records import Run
from harness.report.tracking import Logged, describe, write_receipt
from harness.tables.access import Tables
from harness.writers import Writer

_TAG = "lm_shipcheck.id"
_AT_ONCE = 500
"""MLflow takes 1,000 metrics in one batch, 100 parameters and 100 tags."""


class Mlflow(Writer):
    """mlflow.json: logs metrics, settings and verdict to MLflow, and notes where (extra mlflow)."""

    file_name: ClassVar[str] = "mlflow.json"
    tracking_uri: str = ""
    """Server or folder; empty: as the environment variable MLFLOW_TRACKING_URI says."""
    experiment: str = "lm-shipcheck"
    """Name of the experiment; it is made if there is none."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Log the run, anew or over what was logged of it before, and write mlflow.json. Raises WriteError."""
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingDependencyError("mlflow", "the writer mlflow", 'pip install "lm-shipcheck[mlflow]"') from error
        logged = describe(run, folder)
        try:
            client = MlflowClient(tracking_uri=self.tracking_uri or None)
            experiment = client.get_experiment_by_name(self.experiment)
            place = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
            run_id = _find_or_start(client, place, logged)
            _log(client, run_id, logged)
        except Exception as error:  # a server may answer anything
            raise WriteError(f"MLflow did not take the run: {type(error).__name__}: {error}") from error
        return write_receipt(
            folder / self.file_name, {"experiment": self.experiment, "run_id": run_id, "id": logged.id}
        )


def _find_or_start(client: Any, experiment: str, logged: Logged) -> str:
    found = client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{logged.id}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, tags={_TAG: logged.id}, run_name=logged.name)
    return str(run.info.run_id)


def _log(client: Any, run_id: str, logged: Logged) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(key, value, 0, 0) for key, value in _name_safely(logged.metrics).items()]
    for start in range(0, len(metrics), _AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + _AT_ONCE])
    parameters = [Param(key, value) for key, value in logged.parameters.items()]
    tags = [RunTag(key, value) for key, value in logged.tags.items()]
    client.log_batch(run_id, params=parameters, tags=tags)
    client.set_terminated(run_id, "FINISHED")


def _name_safely(metrics: Any) -> dict[str, float]:
    """Names of the characters that MLflow takes, without "/", which it reads as a path; those that become alike are
    numbered."""
    safe: dict[str, float] = {}
    for name, value in metrics.items():
        key = base = re.sub(r"[^A-Za-z0-9_.\- ]", "_", name)[:200].strip(". ") or "metric"
        count = 1
        while key in safe:
            count += 1
            key = f"{base}_{count}"
        safe[key] = value
    return safe
