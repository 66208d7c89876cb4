"""What harness init finds out about a model and texts, from headers, JSON and rows alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from harness.commands.first_look import (
    ModelLook,
    choose_context,
    count_tokens,
    look_at_model,
    look_at_texts,
    write_collected,
)
from harness.commands.starter import write_starter
from harness.data.documents import read_documents
from harness.errors import DataError
from harness.plan import load_suite, make_plan
from harness.pocket import MODEL_DIR

STORIES = [f"Once upon a time there were {n} foxes in a wood." for n in range(80)]


def model_folder(folder: Path, dtypes: dict[str, int], config: dict[str, object]) -> Path:
    """A folder with a header of one tensor for each dtype, of so many values, and no values."""
    folder.mkdir()
    header = {d: {"dtype": d, "shape": [n], "data_offsets": [0, 0]} for d, n in dtypes.items()}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("dtypes", "config", "dtype", "positions"),
    [
        ({"BF16": 90, "F32": 10}, {"max_position_embeddings": 4096}, "bfloat16", 4096),
        ({"F16": 10, "F32": 90}, {"n_positions": 64}, "float32", 64),
        ({"U8": 90, "F16": 10}, {"text_config": {"max_position_embeddings": 32}}, "float16", 32),
        ({"U8": 90}, {"torch_dtype": "bfloat16"}, "bfloat16", None),
        ({"F64": 90}, {}, "float32", None),
    ],
)
def test_dtype_and_context_are_those_of_the_files(
    tmp_path: Path, dtypes: dict[str, int], config: dict[str, object], dtype: str, positions: int | None
) -> None:
    folder = model_folder(tmp_path / "model", dtypes, config)
    assert look_at_model(str(folder)) == ModelLook(dtype, positions, folder)


def test_a_model_that_is_elsewhere_or_damaged_leaves_the_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"no header")
    assert look_at_model(str(folder)) == ModelLook("float32", None, folder)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([{"id": "a", "text": "short", "note": "a much longer text"}], "text"),
        ([{"id": "a", "tale": "the longest text of all"}, {"id": "b", "tale": "another"}], "tale"),
        ([{"text": "only here", "tale": "in both"}, {"text": None, "tale": "in both"}], "tale"),
    ],
)
def test_the_text_field_of_a_jsonl_file(tmp_path: Path, rows: list[dict[str, object]], field: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = look_at_texts([path], tmp_path / "variant.yaml")
    assert (found.text_field, found.collected, found.file) == (field, False, path)
    assert [each.text for each in found.documents] == [row[field] for row in rows]


def test_tables_folders_and_several_files_are_collected_beside_the_variant_file(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.csv").write_text('id,story\n1,"one, with a comma"\n2,two\n3,\n')
    parquet.write_table(pyarrow.table({"n": [1, 2], "body": ["three", "four"]}), folder / "b.parquet")
    (folder / "deep" / "c.txt").write_text("five\n\nand its end")
    (folder / "ignored.pdf").write_bytes(b"\xff")
    (tmp_path / "d.jsonl").write_text('{"text": "six"}\n')
    found = look_at_texts([folder, tmp_path / "d.jsonl"], tmp_path / "v.yaml")
    assert found.collected
    assert found.file == tmp_path / "v-texts.jsonl"
    write_collected(found)
    read = read_documents(str(found.file), None)
    assert [(each.kind, each.text) for each in read] == [
        ("a", "one, with a comma"), ("a", "two"), ("b", "three"), ("b", "four"), ("c", "five\n\nand its end"),
        ("d", "six"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", b"", "t.jsonl: holds no document, expected at least one"),
        ("t.jsonl", b'{"text": "x"}\n{"text": ', "t.jsonl:2: not JSON"),
        ("t.jsonl", b"[1]\n", "t.jsonl:1: found list, expected a JSON object"),
        ("t.jsonl", b'{"n": 1}\n', "t.jsonl: no field is text in each of the first 1 rows; it has n"),
        ("t.jsonl", b"\xff\xfe", "t.jsonl: not UTF-8 (invalid start byte at byte 0)"),
        ("t.csv", "text\n\xe4\n".encode("latin-1"), "t.csv: not UTF-8"),
        ("t.parquet", b"PAR1", "t.parquet: cannot be read as Parquet"),
        ("t.pdf", b"", "t.pdf: expected texts in a file that ends in .jsonl, .txt, .csv, .parquet, or a folder"),
    ],
)
def test_texts_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        look_at_texts([tmp_path / name], tmp_path / "variant.yaml")
    assert said in str(caught.value)


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        look_at_texts([tmp_path / "gone.txt"], tmp_path / "v.yaml")
    with pytest.raises(DataError, match="holds no texts"):
        look_at_texts([tmp_path], tmp_path / "v.yaml")


@pytest.mark.parametrize(
    ("tokens", "positions", "context"),
    [([100, 128], None, 128), ([129], 512, 256), ([600], 512, 512), ([9000], 4096, 2048), ([9000], 1000, 1000)],
)
def test_the_context_holds_the_texts_and_fits_the_model(tokens: list[int], positions: int | None, context: int) -> None:
    assert choose_context(tokens, positions) == context


def test_tokens_are_counted_by_the_tokenizer_of_the_model() -> None:
    documents = read_documents("pocket-heldout", 2)
    model = look_at_model("pocket")
    assert model.folder == MODEL_DIR
    by_file = count_tokens(documents, model)
    assert by_file != count_tokens(documents, ModelLook())
    assert count_tokens(documents, ModelLook()) == [-(-len(each.text) // 4) for each in documents]


def test_the_variant_file_takes_over_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "model", {"BF16": 90}, {"max_position_embeddings": 64})
    rows = [json.dumps({"tale": text}) for text in STORIES]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    said = write_starter(Path("v.yaml"), "./model", "", [Path("t.jsonl")], ["pocket_sums"])
    assert said[0] == "reference: bfloat16, reads 64 tokens"
    assert said[1].startswith("texts: 80 documents in 'tale', about 1")
    plan = make_plan(tmp_path / "v.yaml")
    documents = plan.suites[0].documents
    assert documents is not None
    assert (plan.reference.dtype, documents.data) == ("bfloat16", str(tmp_path / "t.jsonl"))
    assert (documents.text_field, documents.context, documents.bos) == ("tale", 64, "auto")
    assert ([suite.name for suite in plan.suites], [gate.name for gate in plan.gates]) == (["v-suite"], ["ship"])
    made, bundled = plan.suites[0], load_suite("texts", Path())
    assert [each.kind for each in made.measures if each.kind != "tasks"] == [each.kind for each in bundled.measures]
    texts = next(each.settings() for each in made.measures if each.kind == "generation")
    assert (texts["prompt_tokens"], texts["new_tokens"]) == (21, 42)  # 64 tokens with BOS
    assert "tasks" in [measure.kind for measure in plan.suites[0].measures]
    assert max(map(len, (tmp_path / "v.yaml").read_text().splitlines())) <= 120


def test_few_texts_get_the_gate_that_they_can_decide(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(STORIES[:71]))
    said = write_starter(tmp_path / "v.yaml", "pocket", "", [tmp_path / "t.txt"])
    assert "the gate is smoke: ship needs 72 texts, found 71" in said
    assert [gate.name for gate in make_plan(tmp_path / "v.yaml").gates] == ["smoke"]
    (tmp_path / "t.txt").write_text("\n\n".join(STORIES[:72]))
    write_starter(tmp_path / "w.yaml", "pocket", "", [tmp_path / "t.txt"])
    assert [gate.name for gate in make_plan(tmp_path / "w.yaml").gates] == ["ship"]


def test_without_network_and_texts_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, last = write_starter(tmp_path / "v.yaml", "owner/name")
    assert "texts are missing" in found
    assert "--documents" in found
    assert last == f"wrote {tmp_path / 'v.yaml'}; next: give it texts, or switch the hub on"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    (last,) = write_starter(tmp_path / "w.yaml", "owner/name")
    assert last.endswith(f"next: harness check {tmp_path / 'w.yaml'}")


@pytest.mark.parametrize(
    ("shapes", "group_size"),
    [
        ({"model.q_proj.weight": [64, 256], "model.down_proj.weight": [256, 384]}, 128),
        ({"model.q_proj.weight": [64, 256], "model.down_proj.weight": [256, 192]}, 64),
        ({"model.q_proj.weight": [128, 96]}, 32),
        ({"model.q_proj.weight": [128, 172]}, None),
        ({"model.experts.gate_up_proj": [4, 128, 64], "model.q_proj.weight": [128, 128]}, 64),
        ({"model.embed_tokens.weight": [100, 50], "lm_head.weight": [99, 50], "x.head.weight": [100, 50]}, 128),
        ({"model.norm.weight": [50], "mixer.conv1d.weight": [128, 1, 4], "q_proj.weight": [2, 128]}, 128),
    ],
)
def test_the_group_size_divides_the_inputs_of_every_linear_layer(
    tmp_path: Path, shapes: dict[str, list[int]], group_size: int | None
) -> None:
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": 100}))
    assert look_at_model(str(tmp_path / "model")).group_size == group_size
    write_starter(tmp_path / "variant.yaml", str(tmp_path / "model"))
    (step,) = make_plan(tmp_path / "variant.yaml").variant.compress
    assert step.settings()["group_size"] == group_size
    assert step.settings()["granularity"] == ("group" if group_size else "channel")
