"""wandb.json: the run logged to Weights & Biases, and where. Needs the extra ``wandb``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from harness.errors import MissingDependencyError, WriteError
from harness.records import Run
from harness.report.tracking import describe, write_receipt
from harness.tables.access import Tables
from harness.writers import Writer


class Wandb(Writer):
    """wandb.json: logs metrics, settings and verdict to Weights & Biases, and notes where (extra wandb)."""

    file_name: ClassVar[str] = "wandb.json"
    project: str = "lm-shipcheck"
    """Name of the project."""
    entity: str = ""
    """User or team; empty: the default of the account."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` keeps everything in the run folder, for `wandb sync`."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Log the run, anew or over what was logged of it before, and write wandb.json. Raises WriteError."""
        try:
            import wandb
        except ImportError as error:
            raise MissingDependencyError("wandb", "the writer wandb", 'pip install "lm-shipcheck[wandb]"') from error
        logged = describe(run, folder)
        try:
            with wandb.init(
                project=self.project,
                entity=self.entity or None,
                id=logged.id,
                name=logged.name,
                config=dict(logged.parameters),
                dir=str(folder),
                mode=self.mode,
                resume="allow",
                settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
            ) as started:
                started.summary.update({**logged.metrics, **logged.tags})
                place = started.url or ""
        except Exception as error:  # a server may answer anything
            raise WriteError(f"Weights & Biases did not take the run: {type(error).__name__}: {error}") from error
        receipt = {"project": self.project, "mode": self.mode, "id": logged.id, "url": place}
        return write_receipt(folder / self.file_name, receipt)
