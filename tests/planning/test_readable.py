"""Texts that cannot be read are mistakes of the plan, with the line that names them, before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.plan import load_suite, make_plan
from tests.planning.test_own_data import VARIANT, planned

BAD = [
    (b"", "found no document, expected at least one"),
    (b'{"story": "x"}\n{"story": ', "t.jsonl:2: not JSON"),
    (b'{"story": "x"}\n[]\n', "t.jsonl:2: found list, expected a JSON object"),
    (b'{"tale": "x"}\n', "t.jsonl:1: has no field 'story' (text_field); it has tale; set text_field"),
    (b'{"story": 7}\n', "t.jsonl:1: field 'story' is int, expected text"),
    (b'{"story": "x"}\n\xff\n', "t.jsonl: not UTF-8"),
    (b"\xef\xbb\xbf" + b'{"story": "x"}\n', "byte order mark"),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_own_documents_are_opened(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(PlanError) as caught:
        planned(tmp_path, VARIANT.replace("./texts.jsonl", "./t.jsonl"))
    assert [f"{Path(each.file).name}:{each.line}: {each.key}" for each in caught.value.problems] == [
        "variant.yaml:4: documents.data"
    ]
    assert said in caught.value.problems[0].found


def test_documents_of_a_suite_and_for_calibration_are_opened_too(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "s.yaml").write_text("documents: {data: ./empty.txt}\nmeasures: [perplexity]\n")
    with pytest.raises(PlanError, match=r"s\.yaml:1: documents\.data: found .*empty\.txt: found no document"):
        load_suite("./s.yaml", tmp_path)
    planned(tmp_path)
    path = tmp_path / "variant.yaml"
    path.write_text(f"{VARIANT}calibration: {{data: ./empty.txt}}\n")
    with pytest.raises(PlanError, match=r"variant\.yaml:7: calibration\.data: found .*found no document"):
        make_plan(path)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "folder"])
def test_texts_in_other_files_are_collected_by_init(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PlanError, match=rf"\(harness init NEW\.yaml --documents \./{name} collects the texts"):
        planned(tmp_path, VARIANT.replace("./texts.jsonl", f"./{name}"))


def test_documents_beyond_max_are_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\nbroken\n')
    for most, fine in ((1, True), (2, False)):
        (tmp_path / "s.yaml").write_text(f"documents: {{data: ./t.jsonl, max: {most}}}\nmeasures: [perplexity]\n")
        if fine:
            assert load_suite("./s.yaml", tmp_path).documents is not None
        else:
            with pytest.raises(PlanError, match="not JSON"):
                load_suite("./s.yaml", tmp_path)
