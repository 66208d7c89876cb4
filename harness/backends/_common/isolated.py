"""Base class of backends whose library conflicts with the harness's dependencies: it runs in its own environment.

    model, token ids, settings ─▶ folder ─▶ <python of that environment> worker.py folder ─▶ checkpoint ─▶ model

The worker is a single file that imports its library, torch and transformers, and nothing of the harness. It reads

    model/              config.json, weights and tokenizer files, as transformers saves them
    settings.json       the settings that the backend's ``job`` returns, and under ``modules`` the layers to quantize
    calibration.json    token ids, one list per document

and saves the library's own checkpoint in checkpoint/, in a format that ``harness.models.packed_integers`` reads.

Its standard output is shown as progress; its standard error becomes part of the BackendError if it fails. The library's
kernels are not used for evaluation, so the result is ``simulated``: the codes of the checkpoint are dequantized to
floats. That checkpoint is also the artifact.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from weakref import WeakKeyDictionary

from pydantic import Field

from harness.backends import Compressed
from harness.backends._common.library import LibraryBackend
from harness.backends._common.simulating import give_own_head
from harness.errors import BackendError, HarnessError
from harness.records import ModuleFormat
from harness.system.subprocesses import run_process

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHECKPOINTS: WeakKeyDictionary[nn.Module, tempfile.TemporaryDirectory[str]] = WeakKeyDictionary()
"""Checkpoints that workers wrote, kept as long as the model made from each is alive."""


class IsolatedBackend(LibraryBackend):
    """A backend whose library runs as a subprocess in its own Python environment."""

    library: ClassVar[str]
    """Name of the library; it names the environment's folder and the variable that points to its interpreter."""
    worker: ClassVar[Path]
    """Path of the worker script."""
    create: ClassVar[str]
    """Shell commands that create the environment."""
    paths = ("python",)

    python: str | None = Field(default=None, examples=[".venv-gptqmodel/bin/python"])
    """Python interpreter of the environment that has the library. Default: the variable HARNESS_<LIBRARY>_PYTHON, else
    .venv-<library>/bin/python in the working directory."""
    timeout: Annotated[float, Field(gt=0)] = 7200.0
    """Timeout of the worker in seconds."""

    @abstractmethod
    def job(self) -> Mapping[str, Any]:
        """The settings that the worker needs, as plain JSON data."""

    def interpreter(self) -> Path:
        """Path where the environment's interpreter is expected."""
        default = f".venv-{self.library}/bin/python"
        return Path(self.python or os.environ.get(f"HARNESS_{self.library.upper()}_PYTHON") or default).absolute()

    def lacks(self) -> str:
        """Why the environment cannot be used and how to create it; empty if it exists."""
        python = self.interpreter()
        if os.access(python, os.X_OK) and python.is_file():
            return ""
        return (
            f"its library runs in a separate environment, and {python} is not an executable; "
            f"create the environment with: {self.create}; to use another interpreter, "
            f"set python: or HARNESS_{self.library.upper()}_PYTHON"
        )

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Run the worker and load the dequantized weights of its checkpoint into the model.

        Raises BackendError if the environment is missing, the worker fails or times out, or its checkpoint does not fit
        the model.
        """
        if problem := self.lacks():
            raise BackendError(f"{self.kind}: {problem}")
        names = []
        for name, module in self.select_layers(model):
            self._check(name, module)
            names.append(name)
        give_own_head(model, names)
        folder = tempfile.TemporaryDirectory(prefix=f"harness-{self.kind}-")
        job = Path(folder.name)
        try:
            self._write(job, model, tokenizer, calibration, names)
            command = [str(self.interpreter()), "-I", "-u", str(self.worker), folder.name]
            run_worker(self.kind, command, job, self.timeout, _show)
            formats = self._take_over(job / "checkpoint", model, names)
        except BaseException:
            folder.cleanup()
            raise
        shutil.rmtree(job / "model")
        _CHECKPOINTS[model] = folder
        return Compressed(model, formats)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Copy the library's checkpoint unchanged. Raises BackendError if a later step replaced the model."""
        if model not in _CHECKPOINTS:
            raise BackendError(
                f"{self.kind}: a later step changed the model, so the library's checkpoint no longer matches; "
                "set artifact: none, or remove the later steps"
            )
        shutil.copytree(Path(_CHECKPOINTS[model].name) / "checkpoint", folder, dirs_exist_ok=True)

    def _write(
        self,
        job: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
        names: Sequence[str],
    ) -> None:
        from harness.models.transformers_output import silence_transformers

        saved: Any = model
        with silence_transformers():
            saved.save_pretrained(job / "model")
            tokenizer.save_pretrained(job / "model")
        (job / "settings.json").write_text(json.dumps({**self.job(), "modules": list(names)}))
        (job / "calibration.json").write_text(json.dumps([ids.tolist() for ids in calibration]))

    def _take_over(self, checkpoint: Path, model: PreTrainedModel, names: Sequence[str]) -> tuple[ModuleFormat, ...]:
        """Load the weights of the worker's checkpoint into the layers; raises BackendError naming what does not fit."""
        from harness.backends._common.weights import Replacing
        from harness.models.packed_integers import unpack_folder

        try:
            found = unpack_folder(checkpoint, model).layers
        except HarnessError as error:
            raise BackendError(f"{self.kind}: the checkpoint of its worker cannot be read: {error}") from error
        if odd := sorted(found.keys() ^ set(names)):
            what = "are missing from the worker's checkpoint, or were not requested"
            raise BackendError(f"{self.kind}: {odd[0]} and {len(odd) - 1} more {what}")
        replacing, chosen = Replacing(), dict(self.select_layers(model))
        for name in names:
            if not bool(found[name].weight.isfinite().all()):
                raise BackendError(f"{self.kind}: {name}: the worker returned a weight with NaN or infinity")
            replacing.replace(chosen[name], found[name].weight.to(chosen[name].weight.device))
        return tuple(self._adopt(found[name].format) for name in names)

    def _adopt(self, unpacked: ModuleFormat) -> ModuleFormat:
        number_format = unpacked.format.model_copy(update={"ranges": "min_max"})
        return unpacked.model_copy(update={"backend": self.kind, "format": number_format})


def run_worker(kind: str, command: Sequence[str], folder: Path, limit: float, show: Callable[[str], None]) -> None:
    """Run a worker to its end and pass every line of its output to ``show``. limit: timeout in seconds.

    Raises BackendError with the last lines of its standard error when it fails or times out.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = inherited | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    failure = run_process(command, environment, lambda line: show(f"{kind}: {line}"), folder, limit)
    if failure:
        said = "\n".join(failure.said) or "(nothing)"
        raise BackendError(f"{kind}: its worker {failure.how}: {' '.join(command)}; its last output:\n{said}")


def _show(line: str) -> None:
    sys.stderr.write(line + "\n")
