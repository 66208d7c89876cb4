"""Documents: reading every source, and the ids, bytes and cuts that both models see."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.data.documents import RawDocument, read_documents
from harness.data.encoding import (
    EncodedDocument,
    count_duplicates,
    count_prompt_ids,
    documents_sha256,
    encode,
    span_bytes,
)
from harness.errors import DataError
from harness.pocket import MODEL_DIR
from harness.records import DocumentsSpec, HubData

SPEC = DocumentsSpec(data="pocket-heldout", context=16)


def byte_tokenizer(bos: bool = True, trim: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a few words, ids below 300; its own post-processor adds nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)


def raw(*texts: str) -> list[RawDocument]:
    return [RawDocument(f"d{index}", "", text) for index, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


# Reading


def test_jsonl_in_file_order_with_ids_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    first, second = {"text": "one", "id": "a", "kind": "k", "language": "de"}, {"text": "two", "id": 7, "language": 3}
    rows = [first, second, {"text": "three"}, {"text": ""}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_documents(str(path), None) == [
        RawDocument("a", "k", "one", "de"),
        RawDocument("7", "", "two"),
        RawDocument("x-3", "", "three"),
        RawDocument("x-4", "", ""),
    ]
    assert [document.text for document in read_documents(str(path), 2, seed=5)] == ["one", "two"]


def test_another_text_field(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"page": "p", "text": "t"}\n')
    assert read_documents(str(path), None, text_field="page")[0].text == "p"


def test_reading_stops_at_the_last_document_wanted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\nnot json\n')
    assert len(read_documents(str(path), 1)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "x.jsonl:2: not JSON"),
        (b'["a"]\n', "x.jsonl:1: found list"),
        (b'{"text": "a"}\n' + b"[" * 200_000 + b"\n", "x.jsonl:2: not JSON"),
        (b'{"txt": "a"}\n', "no field 'text' (text_field); it has txt"),
        (b'{"text": 3}\n', "'text' is int"),
        (b'{"text": "\\ud800"}\n', "surrogate"),
        (b"\xef\xbb\xbf{}\n", "byte order mark"),
        (b'{"text": "\xff"}\n', "not UTF-8"),
        (b"\n\n", "no document"),
        (b"", "no document"),
    ],
)
def test_jsonl_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_documents(str(path), None)
    assert message in str(caught.value)


def test_text_files_are_split_and_pieces_without_text_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\nmore\r\n\r\n \n\n\n\ntwo \n\nthree")
    found = read_documents(str(path), None)
    assert [document.text for document in found] == ["one\nmore", "two ", "three"]
    assert [document.id for document in found] == ["x-1", "x-2", "x-3"]
    assert [document.text for document in read_documents(str(path), 1)] == ["one\nmore"]
    assert len(read_documents(str(path), None, split_on="")) == 1
    whole = "one\nmore\n\n \n\n\n\ntwo "
    assert [document.text for document in read_documents(str(path), None, split_on="three")] == [whole]


def test_missing_file_and_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_documents(str(tmp_path / "x.txt"), None)
    with pytest.raises(DataError, match=r"expected a file ending in \.jsonl or \.txt, or one of"):
        read_documents("x.csv", None)


def test_shipped_documents_come_from_their_split_and_seed() -> None:
    heldout = read_documents("pocket-heldout", 5)
    assert len(heldout) == 5
    assert all(document.kind and document.text for document in heldout)
    assert heldout == read_documents("pocket-heldout", 7)[:5]
    assert heldout != read_documents("pocket-heldout", 5, seed=1)
    assert {d.text for d in heldout}.isdisjoint(d.text for d in read_documents("pocket-calibration", 5))


def test_an_endless_supply_without_a_number_gives_two_hundred() -> None:
    assert len(read_documents("pocket-train", None)) == 200


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the hub's library: remembers how it was called."""
    calls: dict[str, Any] = {"rows": [{"page": "first"}, {"page": "second"}]}

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        calls["asked"] = (name, config, split, revision)
        if isinstance(calls["rows"], Exception):
            raise calls["rows"]
        rows: list[dict[str, str]] = calls["rows"]
        return rows

    library, exceptions = ModuleType("datasets"), ModuleType("datasets.exceptions")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    exceptions.DatasetsError = type("DatasetsError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    return calls


def test_hub_datasets(hub: dict[str, Any]) -> None:
    data = HubData(hub="owner/name", config="c", split="test", revision="abc")
    assert read_documents(data, 1, text_field="page") == [RawDocument("test-0", "", "first")]
    assert hub["asked"] == ("owner/name", "c", "test", "abc")
    with pytest.raises(DataError, match=r"no field 'text'.*it has page"):
        read_documents(data, None)
    hub["rows"] = ConnectionError("no network")
    with pytest.raises(DataError, match=r"owner/name.*revision abc.*ConnectionError: no network"):
        read_documents(data, None)


def test_a_local_folder_never_stands_in_for_a_hub_dataset(
    hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="would be read instead"):
        read_documents(HubData(hub="owner/name", split="test"), None)
    assert "asked" not in hub


# Encoding


def test_bos_arrives_whatever_the_post_processor_does(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("the cat")["input_ids"][0] != tokenizer.bos_token_id  # it would not add one itself
    (document,) = encode(raw("the cat"), tokenizer, SPEC, 300)
    (german,) = encode([RawDocument("a", "k", "the cat", "de")], tokenizer, SPEC, 300)
    assert (german.kind, german.language, document.language) == ("k", "de", "")
    assert document.ids[0] == tokenizer.bos_token_id
    assert document.ids[1:].tolist() == tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert document.ids.dtype == np.int64
    assert document.bytes.dtype == np.float32
    assert document.bytes[0] == 0
    assert document.bytes.sum() == len("the cat")
    assert document.tokens == len(document.ids) - 1
    without = encode(raw("the cat"), tokenizer, SPEC.model_copy(update={"bos": False}), 300)[0]
    assert without.ids.tolist() == document.ids[1:].tolist()


def test_no_bos_token_is_an_error_unless_none_is_wanted() -> None:
    bare = byte_tokenizer(bos=False)
    with pytest.raises(DataError, match="no BOS token; set bos: false"):
        encode(raw("the cat"), bare, SPEC, 300)
    assert encode(raw("the cat"), bare, SPEC.model_copy(update={"bos": False}), 300)[0].tokens > 0


def test_long_documents_are_cut_and_say_so(tokenizer: PreTrainedTokenizerFast) -> None:
    long, short = encode(raw("x" * 40, "x" * 15), tokenizer, SPEC, 300)
    assert (len(long.ids), long.total_tokens, long.cut, long.tokens) == (16, 41, True, 15)
    assert (len(short.ids), short.total_tokens, short.cut, short.tokens) == (16, 16, False, 15)
    assert len(long.bytes) == 16


def test_ids_outside_the_model_are_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    highest = max(tokenizer("the cat", add_special_tokens=False)["input_ids"])
    encode(raw("the cat"), tokenizer, SPEC, highest + 1)
    with pytest.raises(DataError, match=f"document d0: the tokenizer returns the id .* ids 0 to {highest - 1}"):
        encode(raw("the cat"), tokenizer, SPEC, highest)


def test_documents_without_a_token_to_score_are_skipped_with_the_reason(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode(raw(*["the cat"] * 99, ""), tokenizer, SPEC, 300)
    assert [document.skipped == "" for document in encoded] == [True] * 99 + [False]
    assert "1 of the 2 tokens" in encoded[-1].skipped
    assert encoded[-1].tokens == 0
    without = SPEC.model_copy(update={"bos": False})
    with_one_letter = raw(*["the cat"] * 99, "x")
    assert encode(with_one_letter, tokenizer, without, 300)[-1].skipped.startswith("1 of the 2")
    assert encode(with_one_letter, tokenizer, SPEC, 300)[-1].skipped == ""  # BOS + x scores x


def test_more_than_one_percent_skipped_is_an_error_with_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"2 of 199 .* expected at most 1%; the first is d0 \(1 of the 2"):
        encode(raw("", "", *["the cat"] * 197), tokenizer, SPEC, 300)
    assert len(encode(raw("", "", *["the cat"] * 198), tokenizer, SPEC, 300)) == 200
    with pytest.raises(DataError, match="1 of 1 documents"):
        encode(raw(""), tokenizer, SPEC, 300)


@pytest.mark.parametrize("context", [2, 7, 8, 1000])
def test_packed_windows_hold_every_token_once_and_in_order(tokenizer: PreTrainedTokenizerFast, context: int) -> None:
    texts = ["the cat sat", "on the mat and the dog sat", "z" * 60]
    spec = SPEC.model_copy(update={"packed": True, "context": context})
    windows = encode(raw(*texts), tokenizer, spec, 300)
    bos = tokenizer.bos_token_id
    stream = [i for t in texts for i in (bos, *tokenizer(t, add_special_tokens=False)["input_ids"])]
    assert [i for window in windows for i in window.ids] == stream[: sum(len(w.ids) for w in windows)]
    left = len(stream) - sum(len(window.ids) for window in windows)
    assert left == (1 if len(stream) % context == 1 else 0)  # one token alone cannot be scored
    assert all(len(window.ids) == context for window in windows[:-1])
    assert [window.index for window in windows] == list(range(len(windows)))
    assert sum(window.bytes.sum() for window in windows) == sum(map(len, texts)) - left
    assert not any(window.cut or window.skipped for window in windows)


def test_a_packed_stream_leaves_skipped_documents_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    spec = SPEC.model_copy(update={"packed": True, "context": 8})
    encoded = encode(raw("", *["the cat"] * 99), tokenizer, spec, 300)
    assert [bool(document.skipped) for document in encoded] == [False] * (len(encoded) - 1) + [True]
    assert (encoded[-1].id, encoded[-1].index) == ("d0", len(encoded) - 1)


def test_a_tokenizer_without_offsets_has_no_bytes() -> None:
    class Slow:
        bos_token_id, is_fast = 1, False

        def __call__(self, texts: list[str], **settings: object) -> dict[str, list[list[int]]]:
            assert not settings["return_offsets_mapping"]
            return {"input_ids": [[5, 6] for _ in texts]}

    (document,) = encode(raw("ab"), Slow(), SPEC, 10)  # type: ignore[arg-type]
    assert document.bytes[0] == 0
    assert np.isnan(document.bytes[1:]).all()


def test_the_hash_follows_the_ids_and_their_borders_alone() -> None:
    def document(ids: list[int], **other: Any) -> EncodedDocument:
        plain = {"index": 0, "id": "a", "kind": "", "total_tokens": 9, "cut": False, "skipped": ""}
        arrays = {"ids": np.array(ids, dtype=np.int64), "bytes": np.zeros(len(ids), dtype=np.float32)}
        return EncodedDocument(**plain | arrays | other)  # type: ignore[arg-type]

    base = documents_sha256([document([1, 2]), document([3])])
    assert base == documents_sha256([document([1, 2], id="b", index=4), document([3], kind="k")])
    different = [[[1], [2, 3]], [[3], [1, 2]], [[1, 2, 3]], [[1, 2], [4]], [[1, 2], [3], []]]
    hashes = {documents_sha256([document(ids) for ids in each]) for each in different}
    assert len(hashes | {base}) == 6


def test_copies_are_known_by_their_text_but_for_white_space(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(raw("a cat", "a dog", "a  cat\n", "a bird", "a dog"), tokenizer, SPEC, 300)
    assert [document.cluster for document in encoded] == [0, 1, 0, 3, 1]
    assert [document.duplicate_of for document in encoded] == [None, None, 0, None, 1]
    assert count_duplicates(encoded) == 2


def test_documents_that_differ_beyond_the_context_alone_are_copies(tokenizer: PreTrainedTokenizerFast) -> None:
    same = "a cat sat on the mat and looked at the dog " * 3
    encoded = encode(raw(same + "a", same + "b", "a dog"), tokenizer, SPEC, 300)
    assert [document.cluster for document in encoded] == [0, 0, 2]


def test_packed_windows_of_repeated_documents_are_copies(tokenizer: PreTrainedTokenizerFast) -> None:
    packed = SPEC.model_copy(update={"packed": True})
    text = "a cat sat on the mat and looked at the dog that sat on the cat"
    once = encode(raw(text), tokenizer, packed, 300)
    ten = encode(raw(*[text] * 10), tokenizer, packed, 300)
    assert len(ten) > 5 * len(once)
    assert len({document.cluster for document in ten}) <= len(once) + 1
    different = encode(raw(*[text.replace("cat", word) for word in ("cat", "dog", "bird")]), tokenizer, packed, 300)
    assert all(document.duplicate_of is None for document in different)


def test_duplicates_are_counted_once_each(tokenizer: PreTrainedTokenizerFast) -> None:
    assert count_duplicates(encode(raw("a cat", "a dog", "a cat", "a cat"), tokenizer, SPEC, 300)) == 2


# Bytes


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        ("ab cd", [(0, 2), (2, 5)], [2, 3]),
        ("ab cd", [(0, 2), (3, 5)], [2, 3]),  # the blank that was left out belongs to the token after it
        ("ab  ", [(0, 2)], [4]),  # what follows the last token belongs to it
        ("  ab", [(2, 4)], [4]),
        ("é", [(0, 1), (0, 1)], [1, 1]),  # one token for each byte of a character
        ("日b", [(0, 1), (0, 1), (0, 1), (1, 2)], [1, 1, 1, 1]),
        ("🙂", [(0, 1), (0, 1)], [2, 2]),
        ("ab", [(0, 0), (0, 2)], [0, 2]),  # a token that stands for no text
        ("ab", [(0, 2), (2, 2)], [2, 0]),
        ("", [(0, 0)], [0]),
        ("ab", [], []),
    ],
)
def test_bytes_of_spans(text: str, offsets: list[tuple[int, int]], expected: list[float]) -> None:
    assert span_bytes(text, offsets).tolist() == expected


@settings(deadline=None)
@given(st.text(max_size=30), st.booleans())
def test_bytes_add_up_to_the_text(text: str, trim: bool) -> None:
    tokenizer = _TRIMMED if trim else _PLAIN
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    sizes = span_bytes(text, found["offset_mapping"])
    assert (sizes >= 0).all()
    assert np.isclose(sizes.sum(), len(text.encode()) if len(sizes) else 0)


_PLAIN, _TRIMMED = byte_tokenizer(), byte_tokenizer(trim=True)


# Figures of a real model: each story alone, BOS + text, no EOS, cut at 512 tokens


def test_published_token_counts_of_real_stories(shared_data: Path) -> None:
    model = shared_data / "models" / "stories260K-hf"
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    path = str(shared_data / "corpora" / "tinystories_valid_A_297.jsonl")
    encoded = encode(read_documents(path, None), tokenizer, DocumentsSpec(data=path), 512)
    assert len(encoded) == 297
    assert sum(document.tokens for document in encoded) == 104_025
    first = encode(read_documents(path, 100), tokenizer, DocumentsSpec(data=path, max=100), 512)
    assert sum(document.tokens for document in first) == 33_908
    assert documents_sha256(first) == documents_sha256(encoded[:100])
    for document, read in zip(encoded, read_documents(path, None), strict=True):
        if not document.cut:
            assert np.isclose(document.bytes.sum(), len(read.text.encode()))


# --- prompts --------------------------------------------------------------------------------------------------


def test_a_prompt_comes_before_its_text(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"question": "one two", "answer": " three"}) + "\n")
    (document,) = read_documents(str(path), None, "answer", prompt_field="question")
    assert (document.text, document.prompt) == ("one two three", "one two")
    with pytest.raises(
        DataError, match=r"answers\.jsonl:1: has no field 'questions' \(prompt_field\); it has question"
    ):
        read_documents(str(path), None, "answer", prompt_field="questions")
    path.write_text(json.dumps({"question": 3, "answer": "four"}) + "\n")
    with pytest.raises(DataError, match="field 'question' is int, expected text"):
        read_documents(str(path), None, "answer", prompt_field="question")


@pytest.mark.parametrize("bos", [True, False])
def test_the_ids_of_a_prompt_end_where_its_text_does_or_before(bos: bool) -> None:
    """A token across the border belongs to the text: it cannot be known from the prompt alone."""
    known: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    raw = [
        RawDocument("apart", "", "Sums:\n12+13=25", prompt="Sums:\n12+13="),
        RawDocument("across", "", "the bridge", prompt="the bri"),
        RawDocument("none", "", "the bridge"),
        RawDocument("all", "", "the bridge", prompt="the bridge"),
    ]
    spec = DocumentsSpec(data="made", context=64, bos=bos)
    encoded = encode(raw, known, spec, 10_000)
    found = count_prompt_ids(raw, encoded, known, bos)
    for document, each, count in zip(raw, encoded, found, strict=True):
        kept = known.decode(each.ids[int(bos) : count])
        assert document.prompt.startswith(kept.strip()), document.id
        assert len(known.decode(each.ids[int(bos) : count + 1])) > len(document.prompt) or count == len(each.ids)
    assert known.decode(encoded[0].ids[found[0] :]).strip() == "25"
    assert found[2] == int(bos)
    assert found[3] == len(encoded[3].ids)
