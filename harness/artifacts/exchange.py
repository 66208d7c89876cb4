"""The files exchanged between a run and the process that reloads an artifact.

request.json  request.safetensors   how to load, texts to encode; token ids of the documents
answer.json   answer.safetensors    hashes of the loaded files, ids of the texts; logits and outputs of modules
refusal.json                        why there is no answer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from harness.records import ModelSpec
from harness.records.base import Record
from harness.system.files import write_atomic


class Request(Record):
    """Request to the fresh process. The accompanying tensors are the documents' token ids, in order."""

    name: str
    spec: ModelSpec
    adapter: str | None = None
    texts: tuple[str, ...]


class Answer(Record):
    """Answer of the fresh process, besides tensors: hashes as in an Identity, and the token ids of each text."""

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    text_ids: tuple[tuple[int, ...], ...]


class Refusal(Record):
    """Reason for the missing answer, shown to the user."""

    reason: str


@dataclass(frozen=True)
class Exchange:
    """A folder with the exchanged files."""

    folder: Path

    def put_request(self, request: Request, documents: dict[str, Tensor]) -> None:
        """Raises WriteError."""
        self._put("request", request, documents)

    def get_request(self) -> tuple[Request, dict[str, Tensor]]:
        """Raises OSError or ValueError."""
        return Request.model_validate_json(self._json("request")), self._tensors("request")

    def put_answer(self, answer: Answer, outputs: dict[str, Tensor]) -> None:
        """Raises WriteError."""
        self._put("answer", answer, outputs)

    def get_answer(self) -> tuple[Answer, dict[str, Tensor]]:
        """Raises OSError or ValueError."""
        return Answer.model_validate_json(self._json("answer")), self._tensors("answer")

    def put_refusal(self, reason: str) -> None:
        """Raises WriteError."""
        write_atomic(self.folder / "refusal.json", Refusal(reason=reason).model_dump_json().encode())

    def get_refusal(self) -> str:
        """The reason why there is no answer; empty if none was given."""
        path = self.folder / "refusal.json"
        return Refusal.model_validate_json(path.read_bytes()).reason if path.exists() else ""

    def _put(self, name: str, record: Record, tensors: dict[str, Tensor]) -> None:
        write_atomic(self.folder / f"{name}.safetensors", save(tensors))
        write_atomic(self.folder / f"{name}.json", record.model_dump_json().encode())

    def _json(self, name: str) -> bytes:
        return (self.folder / f"{name}.json").read_bytes()

    def _tensors(self, name: str) -> dict[str, Tensor]:
        with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
