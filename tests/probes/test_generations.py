"""What both sides write: the same as a loop over plain forwards, batched or not, whatever a checkpoint declares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from harness.data.documents import RawDocument
from harness.errors import DataError, ModelError
from harness.probes import Context
from harness.probes._compare import Written, common_reach, edit_distance, first_difference, similarity
from harness.probes._writer import TextGenerator
from harness.probes.generations import Generations
from harness.scoring.side import CHECKED_TEXTS, NotPackedError, PackedSide
from tests.helpers.students import SENTENCES, Loaded, MemorySink, Silent, byte_tokenizer, make_model, twin

DOCUMENTS = [RawDocument(f"d{index}", "told", text, "en") for index, text in enumerate(SENTENCES)]
NEW = 12


@pytest.fixture(scope="module")
def reference() -> Loaded:
    return Loaded("reference", make_model(320), byte_tokenizer(320))


def observe(
    reference: Loaded, *variants: Loaded, sinks: Sequence[MemorySink] = (), documents: Any = DOCUMENTS, **settings: Any
) -> list[MemorySink]:
    sinks = sinks or [MemorySink() for _ in variants]
    probe = Generations(**({"new_tokens": NEW, "prompt_tokens": 6} | settings))
    probe.observe(Context(reference, variants, sinks, Silent(), texts=documents))  # type: ignore[arg-type]
    return list(sinks)


def rows(reference: Loaded, variant: Loaded, **settings: Any) -> pd.DataFrame:
    return observe(reference, variant, **settings)[0].table("generations")


def by_hand(side: Loaded, prompt: str, count: int = NEW) -> tuple[list[int], str]:
    """Greedy continuation by the model alone, one token after the other and without a cache."""
    ids = [0, *side.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    start = len(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(side.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    return ids[start:], str(side.tokenizer.decode(ids[start:], skip_special_tokens=True))


def ending(seed: int = 3) -> Loaded:
    """A model that ends some of its texts."""
    model = make_model(320, seed)
    with torch.no_grad():
        model.lm_head.weight[1] *= 1.6
    return Loaded("ending", model, byte_tokenizer(320))


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_both_texts_are_those_of_plain_forwards(reference: Loaded, batch_size: int) -> None:
    other = ending()
    table = rows(reference, other, batch_size=batch_size)
    assert len(table) == len(DOCUMENTS)
    for row, document in zip(table.to_dict("records"), DOCUMENTS, strict=True):
        prompt = row["prompt"]
        assert document.text.startswith(prompt)
        assert len(reference.tokenizer(prompt, add_special_tokens=False)["input_ids"]) == 6
        for name, side in (("reference", reference), ("variant", other)):
            ids, text = by_hand(side, prompt)
            assert row[f"{name}_text"] == text
            assert row[f"{name}_tokens"] == len(ids)
            assert row[f"{name}_ended"] == (ids[-1] == 1)
        ones, others = by_hand(reference, prompt)[0], by_hand(other, prompt)[0]
        assert row["diverged"] == (ones != others)
        assert row["first"] == first_difference(ones, others)
    assert table["variant_ended"].any()
    assert table["diverged"].any()


def gpt2() -> Loaded:
    """Positions of its own, which padding on the left would shift."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    return Loaded("gpt2", GPT2LMHeadModel(config).eval(), byte_tokenizer(320))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_prompts_of_any_length_give_together_what_each_gives_alone(name: str) -> None:
    side = gpt2() if name == "gpt2" else ending()
    writer = TextGenerator(side, NEW, bos=True, chat=False, rows=3)  # type: ignore[arg-type]
    prompts = [writer.ids(text) for text in SENTENCES] + [writer.ids("A")]
    assert len({len(prompt) for prompt in prompts}) > 4
    together = writer.write(prompts)
    assert together == [writer.write([prompt])[0] for prompt in prompts]
    assert together == writer.write(prompts) == writer.write_packed(prompts)
    assert [list(written.ids) for written in together] == [by_hand(side, text)[0] for text in [*SENTENCES, "A"]]


def follow_writers(monkeypatch: pytest.MonkeyPatch, *refusing: str) -> list[tuple[str, int]]:
    """Fills with the side and the number of prompts of every plain call; the ``refusing`` sides cannot be packed."""
    plain, packed, calls = TextGenerator.write, PackedSide.write, list[tuple[str, int]]()

    def write(self: TextGenerator, prompts: Sequence[Sequence[int]]) -> list[Written]:
        calls.append((self.name, len(prompts)))
        return plain(self, prompts)

    def write_packed(self: PackedSide, *given: Any) -> Any:
        if self._loaded.name in refusing:
            raise NotPackedError("it cannot")
        return packed(self, *given)

    monkeypatch.setattr(TextGenerator, "write", write)
    monkeypatch.setattr(PackedSide, "write", write_packed)
    return calls


def test_texts_are_written_in_a_shared_cache_and_a_few_of_them_alone(
    reference: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = follow_writers(monkeypatch)
    observe(reference, ending(), ending(4))
    assert calls == [("reference", CHECKED_TEXTS), ("ending", CHECKED_TEXTS), ("ending", CHECKED_TEXTS)]


@pytest.mark.parametrize("refusing", ["reference", "ending"])
def test_both_sides_write_alone_where_one_must(
    reference: Loaded, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(reference, ending())
    calls = follow_writers(monkeypatch, refusing)
    found = rows(reference, ending())
    assert [call for call in calls if call[1] > CHECKED_TEXTS] == [
        ("reference", len(DOCUMENTS)),
        ("ending", len(DOCUMENTS)),
    ]
    pd.testing.assert_frame_equal(found, expected)


def test_a_text_after_a_logit_that_is_not_finite_is_the_one_that_is_written_alone(
    reference: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Loaded("broken", make_model(320, 4), reference.tokenizer)
    with torch.no_grad():
        broken.model.lm_head.weight[9] = float("nan")
    calls = follow_writers(monkeypatch)
    table = rows(reference, broken)
    assert ("broken", len(DOCUMENTS)) in calls
    assert ("reference", len(DOCUMENTS)) in calls
    assert (table["variant_tokens"] == NEW).all()


def test_decoding_settings_of_a_checkpoint_are_not_used_and_left_as_they_are(reference: Loaded) -> None:
    changed = Loaded("sampling", make_model(320), byte_tokenizer(320))
    settings = changed.model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty = True, 5.0, 3.0
    settings.max_length, settings.num_beams, settings.bad_words_ids = 9, 4, [[7]]
    before = settings.to_dict()
    table = rows(reference, changed)
    assert not table["diverged"].any()
    assert (table["variant_text"] == table["reference_text"]).all()
    assert changed.model.generation_config.to_dict() == before


def test_identity_changes_nothing(reference: Loaded) -> None:
    table = rows(reference, Loaded("same", reference.model, reference.tokenizer))
    assert not table["diverged"].any()
    assert (table["similarity"] == 1.0).all()
    assert (table["first"] == table["reach"]).all()
    assert (table["first_character"] == table["characters"]).all()


def test_a_twin_under_other_ids_writes_the_same_and_has_no_common_tokens(reference: Loaded) -> None:
    table = rows(reference, Loaded("twin", *twin(reference.model, reference.tokenizer)))
    assert (table["variant_text"] == table["reference_text"]).all()
    assert not table["diverged"].any()
    assert not table["same_tokens"].any()
    assert (table["first"] == -1).all()
    assert (table["reach"] == -1).all()


def test_nan_is_noted_on_its_side(reference: Loaded) -> None:
    broken = Loaded("broken", make_model(320, 4), reference.tokenizer)
    with torch.no_grad():
        broken.model.lm_head.weight[9] = float("nan")
    table = rows(reference, broken)
    assert not table["variant_finite"].any()
    assert table["reference_finite"].all()


def test_units_that_were_committed_are_not_written_again(reference: Loaded) -> None:
    (whole,) = observe(reference, ending(), batch_size=2)
    assert list(whole.units) == ["generations/0", "generations/1", "generations/2"]
    resumed = MemorySink({name: whole.units[name] for name in ("generations/0", "generations/2")})
    observe(reference, ending(), batch_size=2, sinks=[resumed])
    assert list(resumed.units)[-1] == "generations/1"
    first, second = (sink.units["generations/1"]["generations"] for sink in (resumed, whole))
    pd.testing.assert_frame_equal(first, second)


def test_prompts_come_from_a_file_too(reference: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, "id": f"p{n}"}) + "\n" for n, text in enumerate(SENTENCES)))
    probe = Generations(prompts=str(path))
    assert not probe.reads_documents
    table = rows(reference, ending(), prompts=str(path), max=4, documents=())
    assert table["prompt"].tolist() == SENTENCES[:4]
    assert table["id"].tolist() == ["p0", "p1", "p2", "p3"]
    assert (table["document"] == -1).all()
    before = probe.inputs()
    path.write_text('{"prompt": " "}\n')
    assert probe.inputs() != before
    with pytest.raises(DataError, match=r"asked\.jsonl: the prompt asked-1 has no text"):
        rows(reference, ending(), prompts=str(path))
    with pytest.raises(DataError, match="no document has a text"):
        rows(reference, ending(), documents=[RawDocument("d", "", " ")])


def test_a_chat_template_is_used_where_it_is_asked_for_and_there_is_one(reference: Loaded) -> None:
    with pytest.raises(DataError, match="reference: chat: true, but its tokenizer has no chat template"):
        rows(reference, ending(), chat=True)
    template = "{{ bos_token }}Q: {{ messages[0]['content'] }}{% if add_generation_prompt %} A:{% endif %}"
    sides = [Loaded(side.name, side.model, byte_tokenizer(320)) for side in (reference, ending())]
    for side in sides:
        side.tokenizer.chat_template = template
    table = rows(*sides, chat=True)
    for row in table.to_dict("records"):
        asked = f"Q: {row['prompt']} A:"
        assert row["reference_text"] == by_hand(sides[0], asked)[1]
        assert row["variant_text"] == by_hand(sides[1], asked)[1]


def test_a_prompt_without_room_is_refused_before_anything_is_written(reference: Loaded) -> None:
    short = Loaded("short", make_model(320, 1, max_position_embeddings=16), byte_tokenizer(320))
    with pytest.raises(DataError, match=r"has 19 tokens including the generated ones, short has 16 positions"):
        rows(reference, short)


def test_a_model_that_cannot_write_is_named(reference: Loaded) -> None:
    broken = Loaded("broken", make_model(320, 4), reference.tokenizer)
    broken.model.model.layers[0].forward = None
    with pytest.raises(ModelError, match="generations: broken could not generate: TypeError"):
        rows(reference, broken)


# Comparing texts


texts = st.text(alphabet="ab cé", max_size=14)


def plain_distance(one: str, two: str) -> int:
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(two, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@given(one=texts, two=texts)
def test_the_edit_distance_is_that_of_the_textbook(one: str, two: str) -> None:
    assert edit_distance(one, two) == plain_distance(one, two) == edit_distance(two, one)
    longest = max(len(one), len(two), 1)
    assert similarity(one, two) == 1 - plain_distance(one, two) / longest


def written(text: str, ended: bool) -> Written:
    return Written((), text, ended, True)


@pytest.mark.parametrize(
    ("one", "two", "wanted"),
    [
        (("abc def", False), ("abc", False), ("abc", "abc")),  # both stopped: the shorter one is the reach
        (("abd ef", False), ("abc", False), ("abd", "abc")),
        (("abc def", True), ("abc", False), ("abc", "abc")),  # stopped before it could part
        (("abc", False), ("abc def", True), ("abc", "abc")),
        (("abc def", True), ("abc", True), ("abc def", "abc")),  # ended too early: another text
        (("abc", True), ("abc def", False), ("abc", "abc def")),
        (("abc\ufffd", False), ("abcd", False), ("abc", "abc")),  # half a character is none yet
        (("", True), ("", True), ("", "")),
    ],
)
def test_texts_are_compared_as_far_as_both_were_written(
    one: tuple[str, bool], two: tuple[str, bool], wanted: tuple[str, str]
) -> None:
    assert common_reach(written(*one), written(*two)) == wanted


def test_an_embedding_model_compares_meanings(reference: Loaded, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer(320)
    tokenizer.save_pretrained(tmp_path)
    other = ending()
    table = rows(reference, other, embedding=str(tmp_path))

    def mean(text: str) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state
        return states[0].double().mean(0)

    for row in table.to_dict("records"):
        sides = [Written((), row[f"{name}_text"], row[f"{name}_ended"], True) for name in ("reference", "variant")]
        a, b = common_reach(*sides)
        wanted = float(a == b)
        if a != b and a.strip() and b.strip():
            wanted = float(torch.cosine_similarity(mean(a), mean(b), 0))
        assert row["embedding_similarity"] == pytest.approx(wanted, abs=1e-5)
    assert rows(reference, other)["embedding_similarity"].isna().all()
    same = rows(reference, Loaded("same", reference.model, reference.tokenizer), embedding=str(tmp_path))
    assert (same["embedding_similarity"] == 1.0).all()
    probe = Generations(embedding=str(tmp_path))
    before = probe.inputs()
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert probe.inputs() != before
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError):
        rows(reference, other, embedding=str(tmp_path))
