"""GGUF files of any header and metadata: a ModelError that names the file, or what the file says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.forecast.model_size import ModelSize, model_size
from harness.models.gguf_file import GgufFile, module_formats_of, read_gguf, vocabulary_difference
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.records import ModelSpec
from tests.fuzz.budget import attempt, budget
from tests.fuzz.edits import Edit, byte_edits, edit_bytes, edit_tree, kept, tree_edits
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_models import tiny_llama

gguf = pytest.importorskip("gguf")

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Scalars by the numbers of their types; 8 is a string, 9 an array (of one type)."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tiny_llama(intermediate_size=96), tmp_path_factory.mktemp("made") / "tiny.gguf").read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("file") / "tiny.gguf"


class Cursor:
    """Reads a file by the definition of the format."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        size = self.take("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, count = self.take("I"), self.take("Q")
            return [inner, [self.value(inner) for _ in range(count)]]
        return self.take(FORMATS[kind])


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header as a tree, and the values of the tensors."""
    cursor = Cursor(data)
    head = {
        "magic": cursor.take("I"),
        "version": cursor.take("I"),
        "tensors": cursor.take("Q"),
        "keys": cursor.take("Q"),
    }
    values = {}
    for _ in range(head["keys"]):
        name, kind = cursor.string(), cursor.take("I")
        values[name] = [kind, cursor.value(kind)]
    tensors = []
    for _ in range(head["tensors"]):
        name, count = cursor.string(), cursor.take("I")
        shape = [cursor.take("Q") for _ in range(count)]
        tensors.append({"name": name, "shape": shape, "type": cursor.take("I"), "offset": cursor.take("Q")})
    start = -(-cursor.at // 32) * 32
    return head | {"values": values, "infos": tensors}, data[start:]


def join(tree: Any, tensors: bytes) -> bytes:
    """The file of a tree in which anything may stand anywhere; what no file can hold is written as zero."""
    parts = [pack("I", tree.get("magic")), pack("I", tree.get("version"))]
    parts += [pack("Q", tree.get("tensors")), pack("Q", tree.get("keys"))]
    values, infos = tree.get("values"), tree.get("infos")
    for name, entry in values.items() if isinstance(values, dict) else ():
        kind, value = entry if isinstance(entry, list) and len(entry) == 2 else (0, entry)
        parts += [pack_string(name), pack("I", kind), pack_value(kind, value)]
    for info in infos if isinstance(infos, list) else ():
        if isinstance(info, dict):
            given = info.get("shape")
            shape = given if isinstance(given, list) else []
            parts += [pack_string(info.get("name")), pack("I", len(shape)), *(pack("Q", size) for size in shape)]
            parts += [pack("I", info.get("type")), pack("Q", info.get("offset"))]
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % 32) + tensors


def pack(form: str, value: Any) -> bytes:
    try:
        return struct.pack(f"<{form}", value)
    except (struct.error, TypeError, OverflowError):
        return b"\0" * struct.calcsize(f"<{form}")


def pack_string(value: Any) -> bytes:
    text = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text


def pack_value(kind: Any, value: Any) -> bytes:
    if kind == 8:
        return pack_string(value)
    if kind == 9:
        inner, items = value if isinstance(value, list) and len(value) == 2 else (0, [])
        items = items if isinstance(items, list) else []
        return pack("I", inner) + struct.pack("<Q", len(items)) + b"".join(pack_value(inner, each) for each in items)
    return pack(FORMATS.get(kind, "I") if isinstance(kind, int) else "I", value)


def check(data: bytes, path: Path) -> GgufFile | HarnessError:
    """Read the header alone, and everything that is told of it."""
    path.write_bytes(data)
    assert isinstance(attempt(lambda: model_size(str(path))), ModelSize | str), "what harness plan tells beforehand"
    found = attempt(lambda: read_gguf(path))
    if isinstance(found, HarnessError):
        assert str(path) in str(found)
        return found
    modules = attempt(lambda: module_formats_of(found))
    assert not isinstance(modules, HarnessError)
    assert found.types
    vocabulary_difference(found, ["<s>", None, "x"] * 40)
    return found


def check_loading(data: bytes, path: Path, undisturbed: LoadedModel) -> None:
    found = check(data, path)
    if isinstance(found, HarnessError):
        return
    loaded = attempt(lambda: load(ModelSpec(model=str(path)), "variant"))
    if isinstance(loaded, HarnessError):
        assert str(path) in str(loaded)
        return
    ours, theirs = loaded.identity, undisturbed.identity
    if ours.weights_sha256 == theirs.weights_sha256:
        assert {name: m.parameters for name, m in by_name(loaded).items()} == {
            name: m.parameters for name, m in by_name(undisturbed).items()
        }


def by_name(loaded: LoadedModel) -> Mapping[str, Any]:
    return {module.module: module for module in loaded.identity.modules}


@pytest.fixture(scope="module")
def undisturbed(made: bytes, path: Path) -> LoadedModel:
    path.write_bytes(made)
    return load(ModelSpec(model=str(path)), "reference")


def test_the_undisturbed_file_is_read(made: bytes, path: Path, undisturbed: LoadedModel) -> None:
    assert join(*split(made)) == made, "else the fuzzers below say nothing"
    assert isinstance(check(made, path), GgufFile)
    check_loading(made, path, undisturbed)


@pytest.mark.parametrize("edits", kept("gguf").values(), ids=kept("gguf"))
def test_kept_edits(edits: list[Edit], made: bytes, path: Path, undisturbed: LoadedModel) -> None:
    tree, tensors = split(made)
    check_loading(join(edit_tree(tree, edits), tensors), path, undisturbed)


@given(draw=st.data())
@budget(60)
def test_any_metadata(made: bytes, path: Path, draw: st.DataObject) -> None:
    tree, tensors = split(made)
    check(join(edit_tree(tree, draw.draw(tree_edits(tree))), tensors), path)


@given(draw=st.data())
@budget(60)
def test_any_bytes(made: bytes, path: Path, draw: st.DataObject) -> None:
    header = len(made) - len(split(made)[1])
    check(edit_bytes(made, draw.draw(byte_edits(made, draw.draw(st.sampled_from([24, header, len(made)]))))), path)


@given(draw=st.data())
@budget(30)
def test_any_metadata_of_a_model(made: bytes, path: Path, undisturbed: LoadedModel, draw: st.DataObject) -> None:
    tree, tensors = split(made)
    check_loading(join(edit_tree(tree, draw.draw(tree_edits(tree))), tensors), path, undisturbed)
