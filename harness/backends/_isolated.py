"""Backends whose library cannot live beside the harness: it runs in an environment of its own, as a subprocess.

    model, token ids, settings ─▶ folder ─▶ <python of that environment> worker.py folder ─▶ checkpoint ─▶ model

The worker is one file that knows its library, torch and transformers, and nothing of the harness. It finds

    model/              config.json, weights and tokenizer files, as transformers saves them
    settings.json       what the backend's ``job`` says, and under ``modules`` the names of the layers to take
    calibration.json    token ids, one list a document

and leaves, beside the library's own checkpoint in ``checkpoint/``,

    result.json         for every module it took: bits, group_size, symmetric, and the bytes that its codes, scales and
                        zero points have in the checkpoint
    result.safetensors  for every module it took, the weight [O, I] that its codes mean, under the module's name

What it prints is shown as progress; what it says on the error stream ends up in the BackendError if it fails. No kernel
of the library runs here, so the result is ``simulated``: floats that its codes mean, read from the checkpoint itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from harness.backends import Compressed
from harness.backends._library import LibraryBackend
from harness.backends._simulating import give_own_head
from harness.errors import BackendError
from harness.records import ModuleFormat, Record

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TAIL = 20
"""Lines of the worker's error stream that an error shows."""


class Packed(Record):
    """What a worker says of one module in ``result.json``. group_size: None for one scale an output channel."""

    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: Annotated[int, Field(ge=1)] | None
    symmetric: bool
    stored_bytes: Annotated[int, Field(ge=1)]


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
        with tempfile.TemporaryDirectory(prefix=f"harness-{self.kind}-") as folder:
            job = Path(folder)
            self._write(job, model, tokenizer, calibration, names)
            command = [str(self.interpreter()), "-I", "-u", str(self.worker), folder]
            run_worker(self.kind, command, job, self.timeout, _show)
            return Compressed(model, self._take_over(job, model, names))

    def _write(
        self,
        job: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
        names: Sequence[str],
    ) -> None:
        from harness.models.quiet import quiet

        saved: Any = model
        with quiet():
            saved.save_pretrained(job / "model")
            tokenizer.save_pretrained(job / "model")
        (job / "settings.json").write_text(json.dumps({**self.job(), "modules": list(names)}))
        (job / "calibration.json").write_text(json.dumps([ids.tolist() for ids in calibration]))

    def _take_over(self, job: Path, model: PreTrainedModel, names: Sequence[str]) -> tuple[ModuleFormat, ...]:
        """Give the layers the weights of the worker's checkpoint; raises BackendError naming what does not fit."""
        from safetensors.torch import load_file

        from harness.backends._weights import Replacing
        from harness.models.linears import weight_of

        try:
            said = json.loads((job / "result.json").read_text())
            found = {name: Packed.model_validate(each) for name, each in said.items()}
            weights = load_file(job / "result.safetensors")
        except (OSError, ValueError) as error:
            raise BackendError(f"{self.kind}: what its worker left cannot be read: {error}") from error
        if odd := sorted(found.keys() ^ set(names) | weights.keys() ^ set(names)):
            what = "were asked for and not given, or given and not asked for"
            raise BackendError(f"{self.kind}: {odd[0]} and {len(odd) - 1} more {what}")
        replacing, formats, chosen = Replacing(), [], dict(self.chosen(model))
        for name in names:
            module, weight = chosen[name], weights[name]
            wanted = tuple(weight_of(module).shape)
            if tuple(weight.shape) != wanted or not bool(weight.isfinite().all()):
                what = f"shape {tuple(weight.shape)}, wanted {wanted}, or values that are not finite"
                raise BackendError(f"{self.kind}: {name}: the weight that came back has {what}")
            replacing.replace(module, weight.to(module.weight.device))
            formats.append(self._format(name, type(module).__name__, found[name], weight.numel(), module.bias))
        return tuple(formats)

    def _format(self, name: str, kind: str, packed: Packed, weights: int, bias: Tensor | None) -> ModuleFormat:
        return ModuleFormat(
            module=name,
            type=kind,
            parameters=weights + (0 if bias is None else bias.numel()),
            stored_bytes=packed.stored_bytes + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=8 * packed.stored_bytes / weights,
            format=f"int{packed.bits}",
            granularity="group" if packed.group_size else "channel",
            group_size=packed.group_size,
            symmetric=packed.symmetric,
            ranges="min_max",
            kernel="simulated",
            backend=self.kind,
        )


def run_worker(kind: str, command: Sequence[str], folder: Path, limit: float, show: Callable[[str], None]) -> None:
    """Run a worker to its end; ``show`` gets every line that it prints.

    limit: seconds. Raises BackendError with the last lines of its error stream when it fails, and when it is ended
    because it takes too long. It does not outlive this function.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        worker = subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def listen() -> None:
            for line in worker.stdout or ():
                show(f"{kind}: {line.rstrip()}")

        # Beside, since what the worker started may keep the stream open when it has ended.
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            how = _ended(worker.wait(limit))
        except subprocess.TimeoutExpired:
            how = f"was ended after {limit:g} s (timeout:)"
        finally:
            _end(worker)
            listener.join()
        if not how:
            return
        errors.seek(0)
        tail = "\n".join(errors.read().splitlines()[-TAIL:]) or "(nothing)"
    raise BackendError(f"{kind}: its worker {how}: {' '.join(command)}; the last that it said:\n{tail}")


def _ended(code: int) -> str:
    """How a worker failed; empty if it did not."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (too little memory, mostly)" if name == "SIGKILL" else "")
    return f"ended with exit code {code}" if code else ""


def _end(worker: subprocess.Popen[str]) -> None:
    """End the worker and what it started, if anything of it is left."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _show(line: str) -> None:
    sys.stderr.write(line + "\n")
