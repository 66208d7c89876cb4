"""Model folders of any content: a ModelError that names the folder, or the model that the files say, identified."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.data.documents import RawDocument
from harness.data.encoding import encode
from harness.errors import HarnessError
from harness.forecast.model_size import ModelSize, model_size
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.records import DocumentsSpec, ModelSpec
from tests.fuzz.budget import attempt, budget
from tests.fuzz.edits import Edit, byte_edits, edit_bytes, edit_tree, kept, tree_edits
from tests.helpers.tiny_models import save, tiny_llama

WEIGHTS = "model.safetensors"
TEXTS = "abc xyz", "a" * 50, "\ud7ff é\n"
SPEC = DocumentsSpec(data="x.jsonl")
IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])
JSON_FILES = "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"


class Example:
    """An undisturbed folder, and where disturbed copies of it are made."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.copy = folder, copy
        self.loaded = load(ModelSpec(model=str(folder)), "reference")

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def load(self, name: str, data: bytes) -> LoadedModel | HarnessError:
        """Load the folder with another content of one file."""
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.folder, self.copy)
        (self.copy / name).write_bytes(data)
        size = attempt(lambda: model_size(str(self.copy)))
        assert isinstance(size, ModelSize | str), "what harness plan tells beforehand"
        found = attempt(lambda: load(ModelSpec(model=str(self.copy)), "variant"))
        if isinstance(found, HarnessError):
            assert str(self.copy) in str(found)
        return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = save(tiny_llama(), tmp_path_factory.mktemp("made") / "model")
    return Example(folder, tmp_path_factory.mktemp("copy") / "model")


# Weights


def split(data: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, and its tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def check_weights(example: Example, data: bytes) -> None:
    found = example.load(WEIGHTS, data)
    if isinstance(found, HarnessError):
        return
    header, tensors = split(data)
    own = found.model.state_dict()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        assert entry["dtype"] == "F32", "a model of another dtype is converted; none of these is"
        read = torch.frombuffer(bytearray(tensors[start:end]), dtype=torch.float32).reshape(entry["shape"])
        assert torch.equal(own[name].view(torch.int32), read.view(torch.int32))
    same = data == example.content(WEIGHTS) or tensors_by_name(data) == tensors_by_name(example.content(WEIGHTS))
    assert (found.identity.weights_sha256 == example.loaded.identity.weights_sha256) == same


def tensors_by_name(data: bytes) -> dict[str, Any]:
    header, tensors = split(data)
    named = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: (each["shape"], tensors[slice(*each["data_offsets"])]) for name, each in named.items()}


def test_the_undisturbed_folder_loads(example: Example) -> None:
    for name in (*JSON_FILES, WEIGHTS):
        found = example.load(name, example.content(name))
        assert isinstance(found, LoadedModel)
        assert found.identity.weights_sha256 == example.loaded.identity.weights_sha256
    check_weights(example, join(*split(example.content(WEIGHTS))))


@pytest.mark.parametrize("edits", kept("safetensors").values(), ids=kept("safetensors"))
def test_kept_headers(edits: list[Edit], example: Example) -> None:
    header, tensors = split(example.content(WEIGHTS))
    check_weights(example, join(edit_tree(header, edits), tensors))


@given(draw=st.data())
@budget(60)
def test_any_header(example: Example, draw: st.DataObject) -> None:
    header, tensors = split(example.content(WEIGHTS))
    check_weights(example, join(edit_tree(header, draw.draw(tree_edits(header))), tensors))


@given(draw=st.data())
@budget(60)
def test_any_bytes_of_the_weights(example: Example, draw: st.DataObject) -> None:
    data = example.content(WEIGHTS)
    first = draw.draw(st.sampled_from([8, len(data) - len(split(data)[1]), len(data)]))
    check_weights(example, edit_bytes(data, draw.draw(byte_edits(data, first))))


# Configuration and tokenizer


def check_json(example: Example, name: str, data: bytes) -> None:
    """Equal identities compute the same ids and logits; whatever differs shows in the identity."""
    found = example.load(name, data)
    if isinstance(found, HarnessError):
        return
    ours, theirs = found.identity, example.loaded.identity
    assert ours.weights_sha256 == theirs.weights_sha256, "the files of the weights are the same"
    ids = attempt(lambda: texts_to_ids(found))
    if ours.tokenizer_sha256 == theirs.tokenizer_sha256:
        assert isinstance(ids, HarnessError) or ids == texts_to_ids(example.loaded)
    if ours.config_sha256 == theirs.config_sha256:
        with torch.no_grad():
            assert torch.equal(found.model(IDS).logits, example.loaded.model(IDS).logits)


def texts_to_ids(loaded: LoadedModel) -> list[Any]:
    documents = [RawDocument(id=str(index), kind="", text=text) for index, text in enumerate(TEXTS)]
    return [each.ids.tolist() for each in encode(documents, loaded.tokenizer, SPEC, loaded.language_model.token_ids)]


@pytest.mark.parametrize(
    ("name", "edits"),
    [(f"{name}.json", edits) for name in ("config", "tokenizer") for edits in kept(name).values()],
    ids=[case for name in ("config", "tokenizer") for case in kept(name)],
)
def test_kept_settings(name: str, edits: list[Edit], example: Example) -> None:
    check_json(example, name, json.dumps(edit_tree(json.loads(example.content(name)), edits)).encode())


@pytest.mark.parametrize("name", JSON_FILES)
@given(draw=st.data())
@budget(60)
def test_any_settings(name: str, example: Example, draw: st.DataObject) -> None:
    content = json.loads(example.content(name))
    check_json(example, name, json.dumps(edit_tree(content, draw.draw(tree_edits(content)))).encode())


@pytest.mark.parametrize("name", JSON_FILES)
@given(draw=st.data())
@budget(30)
def test_any_bytes_of_the_settings(name: str, example: Example, draw: st.DataObject) -> None:
    data = example.content(name)
    check_json(example, name, edit_bytes(data, draw.draw(byte_edits(data))))


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "data", [b"", b"[" * 100_000, b'{"a":' * 20_000 + b"1" + b"}" * 20_000, b"\xff", b"5" * 50_000]
)
def test_other_files(name: str, data: bytes, example: Example) -> None:
    check_json(example, name, data)
