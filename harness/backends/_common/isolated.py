"""Backends whose library cannot live beside the harness: it runs in an environment of its own, as a subprocess.

    model, token ids, settings ─▶ folder ─▶ <python of that environment> worker.py folder ─▶ checkpoint ─▶ model

The worker is one file that knows its library, torch and transformers, and nothing of the harness. It finds

    model/              config.json, weights and tokenizer files, as transformers saves them
    settings.json       what the backend's ``job`` says, and under ``modules`` the names of the layers to take
    calibration.json    token ids, one list a document

and leaves the library's own checkpoint in checkpoint/, in a format of ``harness.models.packed_integers``.

What it prints is shown as progress; what it says on the error stream ends up in the BackendError if it fails. No kernel
of the library runs here, so the result is ``simulated``: floats that its codes mean, read from the checkpoint itself.
That checkpoint is also what would be shipped.
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
"""What workers made, for as long as the model that was made of it lives."""


class IsolatedBackend(LibraryBackend):
    """A backend that runs in an environment of its own."""

    library: ClassVar[str]
    """What the environment is for: names its folder and the variable that points to it."""
    worker: ClassVar[Path]
    """The file that runs there."""
    create: ClassVar[str]
    """Commands that make the environment."""
    paths = ("python",)

    python: str | None = None
    """The interpreter of the environment that has the library; else what the variable HARNESS_<LIBRARY>_PYTHON names,
    else .venv-<library>/bin/python in the working directory."""
    timeout: Annotated[float, Field(gt=0)] = 7200.0
    """Seconds after which the worker is ended."""

    @abstractmethod
    def job(self) -> Mapping[str, Any]:
        """What the worker has to know of the settings, as plain data."""

    def interpreter(self) -> Path:
        """Where the environment's interpreter is, or should be."""
        default = f".venv-{self.library}/bin/python"
        return Path(self.python or os.environ.get(f"HARNESS_{self.library.upper()}_PYTHON") or default).absolute()

    def lacks(self) -> str:
        """That the environment is missing, and what makes it."""
        python = self.interpreter()
        if os.access(python, os.X_OK) and python.is_file():
            return ""
        return (
            f"its library runs in an environment of its own, and {python} is no program; make the environment with: "
            f"{self.create}; where it is, say with python: or HARNESS_{self.library.upper()}_PYTHON"
        )

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Let the worker compress the model, and take over the weights that its checkpoint means.

        Raises BackendError where the environment is missing, the worker fails or takes too long, or what it left does
        not fit the model.
        """
        if problem := self.lacks():
            raise BackendError(f"{self.kind}: {problem}")
        names = []
        for name, module in self.chosen(model):
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
        """The checkpoint that the library made, as it is. Raises BackendError where the model is another by now."""
        if model not in _CHECKPOINTS:
            raise BackendError(
                f"{self.kind}: a later step made another model, of which the library has no checkpoint; set artifact: "
                "none, or leave the other steps out"
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
        """Give the layers the weights of the worker's checkpoint; raises BackendError naming what does not fit."""
        from harness.backends._common.weights import Replacing
        from harness.models.packed_integers import unpack_folder

        try:
            found = unpack_folder(checkpoint, model).layers
        except HarnessError as error:
            raise BackendError(f"{self.kind}: what its worker left cannot be read: {error}") from error
        if odd := sorted(found.keys() ^ set(names)):
            what = "were asked for and not given, or given and not asked for"
            raise BackendError(f"{self.kind}: {odd[0]} and {len(odd) - 1} more {what}")
        replacing, chosen = Replacing(), dict(self.chosen(model))
        for name in names:
            if not bool(found[name].weight.isfinite().all()):
                raise BackendError(f"{self.kind}: {name}: the weight that came back has values that are not finite")
            replacing.replace(chosen[name], found[name].weight.to(chosen[name].weight.device))
        return tuple(self._adopt(found[name].format) for name in names)

    def _adopt(self, unpacked: ModuleFormat) -> ModuleFormat:
        number_format = unpacked.format.model_copy(update={"ranges": "min_max"})
        return unpacked.model_copy(update={"backend": self.kind, "format": number_format})


def run_worker(kind: str, command: Sequence[str], folder: Path, limit: float, show: Callable[[str], None]) -> None:
    """Run a worker to its end; ``show`` gets every line that it prints. limit: seconds.

    Raises BackendError with the last lines of its error stream when it fails or takes too long.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = inherited | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    failure = run_process(command, environment, lambda line: show(f"{kind}: {line}"), folder, limit)
    if failure:
        said = "\n".join(failure.said) or "(nothing)"
        raise BackendError(f"{kind}: its worker {failure.how}: {' '.join(command)}; the last that it said:\n{said}")


def _show(line: str) -> None:
    sys.stderr.write(line + "\n")
