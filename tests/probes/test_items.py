"""The probe of items on tiny models, with task files of every kind made here; nothing is downloaded."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.errors import DataError
from harness.models.language_model import TransformersModel
from harness.probes import Context
from harness.probes.items import Items

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "the", "a", "colour", "of", "is", "it"]
WORDS += ["sun", "sea", "leaf", "sky", "grass", ".", "?", ":"]


@dataclass(frozen=True)
class Loaded:
    """Stands for harness.models.loading.LoadedModel."""

    name: str
    model: Any
    tokenizer: Any

    identity: Any = field(default_factory=lambda: SimpleNamespace(cache=None, modules=()))

    @property
    def language_model(self) -> TransformersModel:
        """The model as its engine gives it."""
        return TransformersModel(self.model)


@dataclass
class MemorySink:
    """Keeps committed frames."""

    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    scoring: list[pd.DataFrame] = field(default_factory=list)
    questions: list[pd.DataFrame] = field(default_factory=list)

    def done(self, unit: str) -> bool:
        return unit in self.frames

    def commit(self, unit: str, frames: Mapping[str, pd.DataFrame]) -> None:
        assert unit not in self.frames
        self.frames[unit] = frames["items"]
        self.scoring.append(frames["scoring"])
        self.questions.append(frames["item_texts"])

    def read(self, table: str) -> pd.DataFrame:
        assert table == "scoring"
        return pd.concat(self.scoring, ignore_index=True)

    @property
    def rows(self) -> pd.DataFrame:
        return pd.concat(self.frames.values(), ignore_index=True)


class Steps:
    """Keeps what progress was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def step(self, what: str, done: int, of: int) -> None:
        self.seen.append((what, done, of))


def make_tokenizer(*, adds_bos: bool = True, kind: Any = PreTrainedTokenizerFast) -> Any:
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return kind(tokenizer_object=inner, **special)


def make_model(seed: int = 0, *, tied: bool = False, positions: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    return model


@pytest.fixture(scope="module")
def reference() -> Loaded:
    return Loaded("reference", make_model(), make_tokenizer())


@pytest.fixture(scope="module")
def variant() -> Loaded:
    return Loaded("variant", make_model(seed=1), make_tokenizer())


CHOICE_DOCS: list[dict[str, Any]] = [
    {
        "q": f"the colour of the {thing} is",
        "choices": ["red", "green", "blue sky", "one two three"],
        "label": number % 4,
    }
    for number, thing in enumerate(["sun", "sea", "leaf", "sky", "grass", "red", "green"])
]
CHOICE = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1}}
"""
GENERATION = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: q
doc_to_target: answer
generation_kwargs: {{until: ["."], max_gen_toks: 5}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""
LAST_WORD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: q
doc_to_target: " {{{{answer}}}}"
metric_list: [{{metric: perplexity}}, {{metric: acc}}]
"""


def write_task(folder: Path, name: str, template: str, docs: Sequence[Mapping[str, Any]], data: str = "") -> Path:
    """A task file and its data beside it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    path = folder / f"{name}.yaml"
    path.write_text(template.format(name=name, data=data or f"{name}.jsonl"))
    return path


def observe(probe: Items, reference: Loaded, *variants: Loaded) -> list[MemorySink]:
    sinks = [MemorySink() for _ in variants]
    probe.observe(Context(reference, variants, sinks, Steps()))  # type: ignore[arg-type]
    return sinks


def run(folder: Path, task: str, reference: Loaded, variant: Loaded, **settings: Any) -> pd.DataFrame:
    return observe(Items(tasks=(task,), include=(str(folder),), **settings), reference, variant)[0].rows


def independent_loglikelihood(loaded: Loaded, text: str, last: int) -> float:
    """Sum of log p over the last tokens of BOS + text, straight from the model in float64."""
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logp = torch.log_softmax(loaded.model(ids).logits.double(), -1)
    picked = logp[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(picked[-last:].sum())


def test_multiple_choice_matches_the_models_own_log_likelihoods(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    rows = run(tmp_path, "colours", reference, variant)
    assert list(rows.metric.unique()) == ["accuracy", "acc_norm"]
    assert (rows.groupby("metric").size() == len(CHOICE_DOCS)).all()
    assert set(rows.better) == {"higher"}
    assert set(rows.bos) == {"both"}
    row: Any
    for row in rows.itertuples():
        doc = CHOICE_DOCS[row.doc_id]
        for side, loaded in (("reference", reference), ("variant", variant)):
            lls = getattr(row, f"{side}_loglikelihoods")
            words = [len(choice.split()) for choice in doc["choices"]]
            expected = [
                independent_loglikelihood(loaded, f"{doc['q']} {choice}", n)
                for choice, n in zip(doc["choices"], words, strict=True)
            ]
            assert lls == pytest.approx(expected, abs=1e-4)
            lengths = np.array([len(c) for c in doc["choices"]]) if row.metric == "acc_norm" else 1.0
            best = int(np.argmax(np.array(expected) / lengths))
            assert getattr(row, f"{side}_answer") == str(best)
            assert getattr(row, f"{side}_score") == float(best == doc["label"])
            assert row.target == str(doc["label"])


def test_identity_changes_nothing(tmp_path: Path, reference: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    rows = run(tmp_path, "colours", reference, Loaded("variant", reference.model, reference.tokenizer))
    for column in ("score", "answer", "loglikelihoods"):
        assert list(rows[f"reference_{column}"]) == list(rows[f"variant_{column}"])


def greedy(loaded: Loaded, prompt: str, count: int) -> str:
    """Greedy continuation by the model alone, one token after the other."""
    ids = loaded.tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    return str(loaded.tokenizer.decode(ids[start:], skip_special_tokens=True)).split(".")[0]


def test_generation_is_greedy_and_ignores_decoding_settings_of_a_checkpoint(tmp_path: Path, reference: Loaded) -> None:
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    docs[0]["answer"] = greedy(reference, docs[0]["q"], 5)
    write_task(tmp_path, "write", GENERATION, docs)
    changed = make_model()
    changed.generation_config.repetition_penalty = 5.0
    changed.generation_config.do_sample = True
    changed.generation_config.temperature = 3.0
    before = changed.generation_config.to_dict()
    rows = run(tmp_path, "write", reference, Loaded("variant", changed, make_tokenizer()), batch_size=3)
    row: Any
    for row in rows.itertuples():
        assert row.reference_answer == greedy(reference, docs[row.doc_id]["q"], 5)
    assert rows.reference_score.iloc[0] == 1.0
    assert list(rows.variant_answer) == list(rows.reference_answer)
    assert list(rows.reference_loglikelihoods) == [[]] * len(rows)
    assert changed.generation_config.to_dict() == before


def test_rolling_scores_text_alone_with_bos_as_context(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    docs = [{"text": "the sun is red ."}, {"text": "the sea is blue . the leaf of grass is green ."}]
    write_task(tmp_path, "pages", ROLLING, docs)
    rows = run(tmp_path, "pages", reference, variant)
    by = {(row.metric, row.doc_id): row for row in rows.itertuples()}
    for number, doc in enumerate(docs):
        words = doc["text"].split()
        for side, loaded in (("reference", reference), ("variant", variant)):
            ll = independent_loglikelihood(loaded, doc["text"], len(words))
            for metric, weight, unit in (
                ("word_perplexity", len(words), 1.0),
                ("byte_perplexity", len(doc["text"]), 1.0),
                ("bits_per_byte", len(doc["text"]), math.log(2)),
            ):
                row = by[metric, number]
                assert getattr(row, f"{side}_loglikelihoods") == pytest.approx([ll], abs=1e-4)
                assert getattr(row, f"{side}_score") == pytest.approx(-ll / weight / unit, abs=1e-5)
                assert row.weight == weight
                assert row.better == "lower"


def test_the_greedy_continuation_is_an_answer(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    docs[2]["answer"] = greedy(reference, docs[2]["q"], 1)
    write_task(tmp_path, "last", LAST_WORD, docs)
    rows = run(tmp_path, "last", reference, variant)
    accuracy = rows[rows.metric == "accuracy"].set_index("doc_id")
    assert accuracy.reference_score[2] == 1.0
    assert accuracy.reference_answer[2] == "1"
    perplexity = rows[rows.metric == "perplexity"].set_index("doc_id")
    assert perplexity.better[0] == "lower"
    expected = -independent_loglikelihood(variant, f"{docs[0]['q']} red", 1)
    assert perplexity.variant_score[0] == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_scored_once_for_all_variants_and_done_units_stay(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.probes import _scorer

    calls: list[str] = []
    real = _scorer.evaluate

    def counted(scorer: Any, *rest: Any) -> Any:
        calls.append(scorer.name)
        return real(scorer, *rest)

    monkeypatch.setattr(_scorer, "evaluate", counted)
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    write_task(tmp_path, "pages", ROLLING, [{"text": "the sun is red ."}])
    probe = Items(tasks=("colours", "pages"), include=(str(tmp_path),))
    other = Loaded("other", make_model(seed=2), make_tokenizer())
    sinks = [MemorySink(), MemorySink()]
    progress = Steps()
    probe.observe(Context(reference, (variant, other), sinks, progress))  # type: ignore[arg-type]
    assert calls == ["reference", "variant", "other"] * 2
    assert progress.seen[-1] == ("tasks", 2, 2)
    undisturbed = [sink.rows for sink in sinks]

    del sinks[1].frames["items:colours"]
    calls.clear()
    probe.observe(Context(reference, (variant, other), sinks, progress))  # type: ignore[arg-type]
    assert calls == ["reference", "other"]
    pd.testing.assert_frame_equal(
        sinks[1].rows.sort_values("task", ignore_index=True, kind="stable"),
        undisturbed[1].sort_values("task", ignore_index=True, kind="stable"),
    )
    calls.clear()
    probe.observe(Context(reference, (variant, other), sinks, progress))  # type: ignore[arg-type]
    assert calls == []


def test_random_states_and_tokenizer_and_model_are_left_as_they_were(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    before = (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].copy(),
        torch.get_rng_state(),
        set(vars(variant.model)),
    )
    run(tmp_path, "colours", Loaded("reference", reference.model, tokenizer), variant)
    assert random.getstate() == before[0]
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert set(vars(variant.model)) == before[3]
    assert tokenizer.pad_token is None


def test_a_compressed_head_is_not_tied_to_the_embedding_again(tmp_path: Path) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    tied = Loaded("reference", make_model(tied=True), make_tokenizer())
    apart = make_model(tied=True)
    apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach() * 0.1)
    rows = run(tmp_path, "colours", tied, Loaded("variant", apart, make_tokenizer()))
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    assert list(rows.reference_loglikelihoods) != list(rows.variant_loglikelihoods)


@pytest.mark.parametrize("name", ["reference", "variant"])
def test_a_tokenizer_that_does_not_add_its_bos_is_refused(
    tmp_path: Path, reference: Loaded, variant: Loaded, name: str
) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    sides = {"reference": reference, "variant": variant}
    sides[name] = Loaded(name, sides[name].model, make_tokenizer(adds_bos=False))
    with pytest.raises(DataError, match=rf"{name}: the tokenizer has the BOS token '<s>'.*set bos: false"):
        run(tmp_path, "colours", sides["reference"], sides["variant"])


def test_without_bos_no_prompt_begins_with_it(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    with_bos = run(tmp_path, "colours", reference, variant)
    without = run(tmp_path, "colours", reference, variant, bos=False)
    plain = Loaded("reference", reference.model, make_tokenizer(adds_bos=False))
    same = run(tmp_path, "colours", plain, variant, bos=False)
    assert set(without.bos) == {"neither"}
    assert list(without.reference_loglikelihoods) == list(same.reference_loglikelihoods)
    assert list(without.reference_loglikelihoods) != list(with_bos.reference_loglikelihoods)


def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    data, probe = tmp_path / "colours.jsonl", Items(tasks=("colours",), include=(str(tmp_path),))
    before, stamp = probe.inputs(), data.stat()
    assert run(tmp_path, "colours", reference, variant).target.iloc[0] == "0"
    data.write_text(data.read_text().replace('"label": 0', '"label": 1'))
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert data.stat().st_size == stamp.st_size
    assert data.stat().st_mtime_ns == stamp.st_mtime_ns
    assert run(tmp_path, "colours", reference, variant).target.iloc[0] == "1"
    assert probe.inputs() != before


def test_the_users_data_set_cache_is_left_alone(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    write_task(tmp_path / "tasks", "colours", CHOICE, CHOICE_DOCS)
    run(tmp_path / "tasks", "colours", reference, variant)
    assert not cache.exists()


def test_nothing_is_printed(
    tmp_path: Path, reference: Loaded, variant: Loaded, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(tmp_path, "write", GENERATION, docs)
    write_task(tmp_path, "pages", ROLLING, [{"text": "the sun is red ."}])
    observe(Items(tasks=("colours", "write", "pages"), include=(str(tmp_path),)), reference, variant)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [r.getMessage() for r in caplog.records if r.levelname != "DEBUG"] == []


def test_a_nan_variant_scores_nan_and_never_the_first_choice(tmp_path: Path, reference: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(tmp_path, "write", GENERATION, docs)
    write_task(tmp_path, "pages", ROLLING, [{"text": "the sun is red ."}])
    write_task(tmp_path, "last", LAST_WORD, docs)
    broken = make_model()
    with torch.no_grad():
        broken.model.norm.weight[3] = math.nan
    probe = Items(tasks=("colours", "write", "pages", "last"), include=(str(tmp_path),))
    rows = observe(probe, reference, Loaded("variant", broken, make_tokenizer()))[0].rows
    assert rows.variant_score.isna().all()
    assert rows.reference_score.notna().all()
    assert set(rows.variant_answer) == {""}


def test_a_prompt_beyond_the_context_is_marked_as_cut(tmp_path: Path) -> None:
    docs = [{**CHOICE_DOCS[0], "q": "the " * 40}, CHOICE_DOCS[1]]
    write_task(tmp_path, "colours", CHOICE, docs)
    short = [Loaded(name, make_model(positions=24), make_tokenizer()) for name in ("reference", "variant")]
    rows = run(tmp_path, "colours", *short)
    assert list(rows.cut[rows.metric == "accuracy"]) == [True, False]


def test_a_variant_that_reads_less_than_the_reference_is_refused(tmp_path: Path, reference: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, [{**CHOICE_DOCS[0], "q": "the " * 40}])
    short = Loaded("variant", make_model(positions=24), make_tokenizer())
    with pytest.raises(DataError, match=r"a prompt has 4\d tokens, but variant reads 24 at most"):
        run(tmp_path, "colours", reference, short)


def test_limit_takes_the_first_documents(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    assert sorted(set(run(tmp_path, "colours", reference, variant, limit=3).doc_id)) == [0, 1, 2]
    assert len(set(run(tmp_path, "colours", reference, variant, limit=300).doc_id)) == len(CHOICE_DOCS)


def test_the_same_document_twice_is_two_items_with_one_hash(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, [CHOICE_DOCS[0], CHOICE_DOCS[0], CHOICE_DOCS[1]])
    rows = run(tmp_path, "colours", reference, variant)
    accuracy = rows[rows.metric == "accuracy"]
    assert len(accuracy) == 3
    assert accuracy.doc_hash.nunique() == 2


@pytest.mark.parametrize("label", [4, -1, -5, "purple", "", None, 2.0])
def test_a_label_out_of_the_choices_is_an_error(
    tmp_path: Path, reference: Loaded, variant: Loaded, label: object
) -> None:
    docs = [{**doc, "label": label} for doc in CHOICE_DOCS]
    write_task(tmp_path, "colours", CHOICE, docs)
    with pytest.raises(DataError, match=r"task colours.*label"):
        run(tmp_path, "colours", reference, variant)


def test_an_empty_data_set_is_named(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, [])
    with pytest.raises(DataError, match=r"task colours could not be loaded: .*a data file is empty"):
        run(tmp_path, "colours", reference, variant)


def test_a_split_of_which_no_document_is_left_is_named(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    path = write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    (tmp_path / "none.py").write_text("def none(rows):\n    return rows.select([])\n")
    path.write_text(path.read_text() + "process_docs: !function none.none\n")
    with pytest.raises(DataError, match=r"task colours could not be loaded: .*no document is left"):
        run(tmp_path, "colours", reference, variant)


def test_one_bad_label_among_good_ones_is_an_error(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, [*CHOICE_DOCS, {**CHOICE_DOCS[0], "label": 4}])
    with pytest.raises(DataError, match=r"document 7: found the label 4, expected an index from 0 to 3"):
        run(tmp_path, "colours", reference, variant)


def test_a_missing_target_text_is_an_error(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "write", GENERATION, [{"q": "the sun", "answer": "red"}, {"q": "the sea", "answer": ""}])
    with pytest.raises(DataError, match=r"document 1: found no target"):
        run(tmp_path, "write", reference, variant)


def with_results_changed(change: Callable[[list[dict[str, Any]]], object]) -> Any:
    from harness.probes import _scorer

    real = _scorer.evaluate

    def changed(scorer: Any, *rest: Any) -> Any:
        results = real(scorer, *rest)
        if scorer.name == "variant":
            change(next(iter(results["samples"].values())))
        return results

    return changed


CHANGES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "fewer": (lambda samples: samples.pop(), "7 documents were requested and 6 came back"),
    "twice": (lambda samples: samples.append(samples[0]), r"7 documents were requested .*\(8 results\)"),
    "prompt": (lambda samples: samples[2].update(prompt_hash="x"), "document 2 under accuracy is missing"),
    "target": (lambda samples: samples[2].update(target_hash="x"), "document 2 under accuracy is missing"),
    "document": (lambda samples: samples[2].update(doc_hash="x"), "document 2 under accuracy is missing"),
    "metric": (lambda samples: samples[2].update(metrics=["acc"]), "under the same metrics"),
    "none": (lambda samples: samples[2].update(acc=None), "acc gave no score"),
    "swapped": (
        lambda samples: (samples[0].update(doc_id=1), samples[1].update(doc_id=0)),
        "4 items of one side have no partner|8 items of one side have no partner",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_items_that_do_not_pair_are_an_error_and_never_dropped(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from harness.probes import _scorer

    change, message = CHANGES[kind]
    monkeypatch.setattr(_scorer, "evaluate", with_results_changed(change))
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    sink = MemorySink()
    probe = Items(tasks=("colours",), include=(str(tmp_path),))
    with pytest.raises(DataError, match=message):
        probe.observe(Context(reference, (variant,), [sink], Steps()))  # type: ignore[arg-type, list-item]
    assert sink.frames == {}


def test_few_shot_examples_change_prompts_and_a_request_without_effect_is_an_error(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    none = run(tmp_path, "colours", reference, variant)
    two = run(tmp_path, "colours", reference, variant, fewshot=2)
    assert not set(none.prompt_hash) & set(two.prompt_hash)
    write_task(tmp_path, "fixed", CHOICE + "num_fewshot: 0\n", CHOICE_DOCS)
    with pytest.raises(DataError, match=r"fewshot: 2 has no effect"):
        run(tmp_path, "fixed", reference, variant, fewshot=2)


def test_a_metric_of_the_whole_set_says_so_and_the_others_count(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    text = CHOICE.replace("metric: acc_norm", "metric: mcc")
    write_task(tmp_path, "colours", text, CHOICE_DOCS)
    rows = run(tmp_path, "colours", reference, variant)
    whole = rows[rows.metric == "mcc"]
    assert whole.skipped.str.contains("whole set").all()
    assert whole.reference_score.isna().all()
    assert (rows[rows.metric == "accuracy"].skipped == "").all()


def test_filters_are_metrics_of_their_own(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    filters = """\
filter_list:
  - {{name: whole, filter: [{{function: take_first}}]}}
  - {{name: first, filter: [{{function: regex, regex_pattern: "^(\\\\w+)"}}, {{function: take_first}}]}}
"""
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(tmp_path, "write", GENERATION + filters, docs)
    rows = run(tmp_path, "write", reference, variant)
    assert list(rows.metric.unique()) == ["exact_match.whole", "exact_match.first"]
    first = rows[rows.metric == "exact_match.first"].set_index("doc_id").reference_answer
    whole = rows[rows.metric == "exact_match.whole"].set_index("doc_id").reference_answer
    assert all(whole[i].split()[0].startswith(first[i]) for i in first.index if whole[i].strip())


def test_a_group_is_its_tasks(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    write_task(tmp_path, "more", CHOICE, CHOICE_DOCS[:3])
    (tmp_path / "both.yaml").write_text("group: both\ntask: [colours, more]\n")
    sink = observe(Items(tasks=("both",), include=(str(tmp_path),)), reference, variant)[0]
    assert sorted(sink.frames) == ["items:colours", "items:more"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: colours\noutput_type: [", r"no task is called 'colours'.*could not be read"),
        ("task: colour\n", r"no task is called 'colours'; did you mean colour\?"),
    ],
)
def test_an_unknown_task_says_what_is_close_and_what_could_not_be_read(
    tmp_path: Path,
    reference: Loaded,
    variant: Loaded,
    content: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness.scoring.task_library import TaskLibrary

    monkeypatch.setattr(TaskLibrary, "_add_standard_tasks", lambda self: None)  # the index of thousands takes seconds
    (tmp_path / "broken.yaml").write_text(content)
    with pytest.raises(DataError, match=rf"(?s){message}"):
        run(tmp_path, "colours", reference, variant)


def test_a_task_declared_twice_is_refused(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path / "a", "colours", CHOICE, CHOICE_DOCS)
    write_task(tmp_path / "b", "colours", CHOICE, CHOICE_DOCS)
    probe = Items(tasks=("colours",), include=(str(tmp_path / "a"), str(tmp_path / "b")))
    with pytest.raises(DataError, match=r"declared in .*a/colours\.yaml and .*b/colours\.yaml"):
        observe(probe, reference, variant)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    with pytest.raises(DataError, match=r"include: found .*missing, expected a folder"):
        run(tmp_path / "missing", "colours", reference, variant)


def test_hub_data_without_network_says_what_to_do(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    text = CHOICE.replace("dataset_path: json", "dataset_path: nobody/nothing-of-this-name")
    write_task(tmp_path, "remote", text, CHOICE_DOCS)
    with pytest.raises(DataError, match=r"task remote could not be loaded: .*load it once"):
        run(tmp_path, "remote", reference, variant)


def test_data_beside_the_task_file_and_elsewhere(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    write_task(tmp_path / "data", "colours", CHOICE, CHOICE_DOCS)
    far = tmp_path / "data" / "colours.jsonl"
    write_task(tmp_path / "tasks", "colours", CHOICE, [], data=str(far))
    near = run(tmp_path / "data", "colours", reference, variant)
    pd.testing.assert_frame_equal(near, run(tmp_path / "tasks", "colours", reference, variant))


def test_a_standard_name_is_looked_up_among_lm_evals_own_only_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data.task_files import read_task_files
    from harness.scoring.task_library import TaskLibrary

    asked: list[str] = []
    monkeypatch.setattr(TaskLibrary, "_add_standard_tasks", lambda self: asked.append("standard"))
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    (tmp_path / "mixed.yaml").write_text("group: mixed\ntask: [colours, hellaswag]\n")
    library = TaskLibrary(read_task_files([tmp_path]))
    library.open("colours")
    assert asked == []
    with pytest.raises(DataError):
        library.open("hellaswag")
    assert asked == ["standard"]
    assert library._leads_outside("mixed")


CONTEXTS = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: label
doc_to_choice: starts
doc_to_target: end
metric_list: [{{metric: acc}}]
"""


def test_choices_that_are_prompts_are_labelled_by_their_index(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    starts = ["the colour of the sun is", "the colour of the sea is"]
    docs: list[dict[str, Any]] = [
        {"starts": starts, "end": "red", "label": 1},
        {"starts": starts, "end": "blue", "label": 0},
    ]
    write_task(tmp_path, "starts", CONTEXTS, docs)
    rows = run(tmp_path, "starts", reference, variant)
    row: Any
    for row in rows.itertuples():
        expected = [independent_loglikelihood(reference, f"{s} {docs[row.doc_id]['end']}", 1) for s in starts]
        assert row.reference_loglikelihoods == pytest.approx(expected, abs=1e-4)
        assert row.reference_score == float(int(np.argmax(expected)) == docs[row.doc_id]["label"])
    write_task(tmp_path, "starts", CONTEXTS, [docs[0], {**docs[1], "label": 2}])
    with pytest.raises(DataError, match="document 1: found the label 2, expected an index from 0 to 1"):
        run(tmp_path, "starts", reference, variant)


def questions(folder: Path, task: str, side: Loaded, **settings: Any) -> list[tuple[int, str, list[str]]]:
    """Document, prompt and choices of every row of the table ``item_texts``."""
    (sink,) = observe(
        Items(tasks=(task,), include=(str(folder),), **settings), side, Loaded("variant", side.model, side.tokenizer)
    )
    (frame,) = sink.questions
    assert set(frame["task"]) == {task}
    return list(zip(frame["doc_id"], frame["prompt"], map(list, frame["choices"]), strict=True))


def test_every_document_is_kept_once_with_its_question_for_readers(tmp_path: Path, reference: Loaded) -> None:
    write_task(tmp_path, "colours", CHOICE, CHOICE_DOCS)
    asked = [(number, doc["q"], doc["choices"]) for number, doc in enumerate(CHOICE_DOCS)]
    assert questions(tmp_path, "colours", reference) == asked
    starts = ["the colour of the sun is", "the colour of the sea is"]
    write_task(tmp_path, "starts", CONTEXTS, [{"starts": starts, "end": "red", "label": 1}])
    assert questions(tmp_path, "starts", reference) == [(0, "", [f"{start} red" for start in starts])]
    write_task(tmp_path, "write", GENERATION, [{"q": "the sun is", "answer": "red"}])
    assert questions(tmp_path, "write", reference) == [(0, "the sun is", [])]
    write_task(tmp_path, "last", LAST_WORD, [{"q": "the sun is", "answer": "red"}])
    assert questions(tmp_path, "last", reference) == [(0, "the sun is", [])]
    write_task(tmp_path, "pages", ROLLING, [{"text": "the sun is red ."}])
    assert questions(tmp_path, "pages", reference) == [(0, "", [])]


def test_of_a_long_prompt_the_end_is_kept(tmp_path: Path) -> None:
    loaded = Loaded("reference", make_model(positions=1024), make_tokenizer())
    write_task(tmp_path, "write", GENERATION, [{"q": "grass " * 500 + "the sun is", "answer": "red"}])
    ((_, prompt, _),) = questions(tmp_path, "write", loaded)
    assert len(prompt) == 2000
    assert prompt.endswith("grass the sun is")


def test_a_task_may_score_with_a_function_of_its_own(tmp_path: Path, reference: Loaded, variant: Loaded) -> None:
    docs = [{"q": doc["q"], "answer": ""} for doc in CHOICE_DOCS]
    write_task(
        tmp_path,
        "own",
        GENERATION.replace("metric: exact_match", "metric: length") + "process_results: !function scoring.length\n",
        docs,
    )
    (tmp_path / "scoring.py").write_text(
        "def length(doc, results):\n    return {'length': len(results[0].split()) / 5}\n"
    )
    rows = run(tmp_path, "own", reference, variant)
    assert set(rows.metric) == {"length"}
    assert list(rows.reference_score) == [len(answer.split()) / 5 for answer in rows.reference_answer]
    (tmp_path / "scoring.py").write_text("def length(doc, results):\n    raise KeyError('no such field')\n")
    with pytest.raises(DataError, match="task own could not be run on reference: KeyError: 'no such field'"):
        run(tmp_path, "own", reference, variant)


def test_a_trained_model_on_real_questions(shared_data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(shared_data / "models" / "stories260K-hf")
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    loaded = Loaded("reference", model, AutoTokenizer.from_pretrained(path, local_files_only=True))
    data = shared_data / "tasks" / "piqa_500.jsonl"
    docs = [json.loads(line) for line in data.read_text().splitlines()[:6]]
    text = CHOICE.replace("doc_to_text: q", "doc_to_text: question")
    write_task(tmp_path, "piqa", text, [], data=str(data))
    rows = run(tmp_path, "piqa", loaded, Loaded("variant", model, loaded.tokenizer), limit=6)
    assert set(rows.bos) == {"both"}
    row: Any
    for row in rows[rows.metric == "accuracy"].itertuples():
        doc, ids = docs[row.doc_id], loaded.tokenizer(docs[row.doc_id]["question"])["input_ids"]
        for ll, choice in zip(row.reference_loglikelihoods, doc["choices"], strict=True):
            whole = loaded.tokenizer(f"{doc['question']} {choice}")["input_ids"]
            assert whole[: len(ids)] == ids
            expected = independent_loglikelihood(loaded, f"{doc['question']} {choice}", len(whole) - len(ids))
            assert ll == pytest.approx(expected, abs=1e-2)
    assert list(rows.reference_loglikelihoods) == list(rows.variant_loglikelihoods)


def test_templates_are_compiled_once_and_the_environment_is_left_as_it_was(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.utils

    compiled: list[str] = []
    environment = lm_eval.utils.env
    real = environment.compile

    def compile_template(source: str, *rest: Any) -> Any:
        compiled.append(source)
        return real(source, *rest)

    monkeypatch.setattr(environment, "compile", compile_template)
    write_task(tmp_path, "last", LAST_WORD, [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS])
    rows = run(tmp_path, "last", reference, variant)
    assert len(rows) == 2 * len(CHOICE_DOCS)
    assert len(compiled) == len(set(compiled)) > 0
    assert "from_string" not in vars(environment)


TASKS_OF_EACH_KIND = ("colours", "write", "pages", "last")


def write_each_kind(folder: Path) -> Items:
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(folder, "colours", CHOICE, CHOICE_DOCS)
    write_task(folder, "write", GENERATION, docs)
    write_task(folder, "pages", ROLLING, [{"text": "the sun is red ."}, {"text": "the sea is blue . the leaf is it"}])
    write_task(folder, "last", LAST_WORD, docs)
    return Items(tasks=TASKS_OF_EACH_KIND, include=(str(folder),), batch_size=3)


def score_plainly(probe: Items, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The rows of lm-eval's own loop on both sides."""
    with monkeypatch.context() as patch:
        patch.setattr("harness.scoring.side.explain_dependence", lambda loaded: "for a test")
        return observe(probe, reference, variant)[0].rows


def check_same(rows: pd.DataFrame, expected: pd.DataFrame, tolerance: float) -> None:
    columns = [column for column in rows.columns if not str(column).endswith(("_loglikelihoods", "_score"))]
    pd.testing.assert_frame_equal(rows[columns], expected[columns])
    for side in ("reference", "variant"):
        for kind in ("loglikelihoods", "score"):
            one, other = (np.hstack(list(frame[f"{side}_{kind}"])) for frame in (rows, expected))
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_packed_rows_give_what_the_loop_of_lm_eval_gives(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = write_each_kind(tmp_path)
    sink = observe(probe, reference, variant)[0]
    assert list(sink.read("scoring").plain) == [""] * 4
    assert list(probe.notes(sink)) == []  # type: ignore[arg-type]
    check_same(sink.rows, score_plainly(probe, reference, variant, monkeypatch), 1e-4)


class CountedTokenizer(PreTrainedTokenizerFast):
    """Notes what it encodes."""

    texts: ClassVar[list[str]] = []

    def _encode_plus(self, text: Any, *others: Any, **named: Any) -> Any:
        self.texts.extend([text] if isinstance(text, str) else text)
        return super()._encode_plus(text, *others, **named)


@pytest.mark.parametrize("equal", [True, False])
def test_both_sides_share_their_encodings_if_their_tokenizers_are_equal(
    equal: bool, tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path, "choice", CHOICE, CHOICE_DOCS)
    monkeypatch.setattr(CountedTokenizer, "__module__", "transformers.counted")
    monkeypatch.setattr(CountedTokenizer, "texts", [])
    sides = [Loaded(each.name, each.model, make_tokenizer(kind=CountedTokenizer)) for each in (reference, variant)]
    if not equal:
        sides[1].tokenizer.add_tokens(["nowhere"])
    rows = run(tmp_path, "choice", *sides)
    asked = [text for text in CountedTokenizer.texts if text.startswith("the colour")]
    texts = {f"{doc['q']} {choice}" for doc in CHOICE_DOCS for choice in doc["choices"]}
    texts |= {doc["q"] for doc in CHOICE_DOCS}
    assert sorted(asked) == sorted(texts if equal else [*texts, *texts])
    pd.testing.assert_frame_equal(rows, run(tmp_path, "choice", reference, variant))


def test_a_variant_that_cannot_be_packed_is_compared_with_a_reference_that_is_not(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = write_each_kind(tmp_path)
    cached = Loaded("variant", variant.model, variant.tokenizer, SimpleNamespace(cache="int8", modules=()))
    packed, plain = observe(probe, reference, variant, cached)
    expected = score_plainly(probe, reference, variant, monkeypatch)
    check_same(plain.rows, expected, 0.0)
    check_same(packed.rows, expected, 1e-4)
    assert list(packed.read("scoring").plain) == [""] * 4
    (note,) = probe.notes(plain)  # type: ignore[arg-type]
    assert note.text == (
        "4 of 4 tasks were scored one sequence per row on both sides, as lm-eval does it, which takes longer (colours, "
        "write, pages, last): its simulated KV cache quantizes tokens by their place in the row (on the variant's side)"
    )


def test_a_reference_that_cannot_be_packed_leaves_no_side_packed(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = write_each_kind(tmp_path)
    cached = Loaded("reference", reference.model, reference.tokenizer, SimpleNamespace(cache="int8", modules=()))
    sink = observe(probe, cached, variant)[0]
    check_same(sink.rows, score_plainly(probe, reference, variant, monkeypatch), 0.0)
    assert set(sink.read("scoring").side) == {"reference"}


class MixesRows(LlamaForCausalLM):
    """A model whose answers depend on the rest of its call, which nothing declares."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **named: Any) -> Any:
        """Scales its logits by how many tokens the call has."""
        output = super().forward(input_ids, position_ids=position_ids, **named)
        output.logits = output.logits * (1 + input_ids.numel() / 1e4)
        return output


def test_a_dependence_that_nothing_declares_is_found_and_no_packed_answer_is_kept(
    tmp_path: Path, reference: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = write_each_kind(tmp_path)
    mixing = make_model(seed=1)
    mixing.__class__ = MixesRows
    variant = Loaded("variant", mixing, make_tokenizer())
    sink = observe(probe, reference, variant)[0]
    reasons = sink.read("scoring").set_index("task").plain
    for task in ("colours", "pages", "last"):
        assert "log-likelihoods differ in packed rows" in reasons[task]
    scored = sink.rows[sink.rows.task != "write"].reset_index(drop=True)
    expected = score_plainly(probe, reference, variant, monkeypatch)
    check_same(scored, expected[expected.task != "write"].reset_index(drop=True), 0.0)


def test_a_task_that_asks_for_more_than_greedy_decoding_is_lm_evals(
    tmp_path: Path, reference: Loaded, variant: Loaded
) -> None:
    docs = [{"q": doc["q"], "answer": "red"} for doc in CHOICE_DOCS]
    write_task(
        tmp_path, "write", GENERATION.replace("max_gen_toks: 5", "max_gen_toks: 5, repetition_penalty: 1.5"), docs
    )
    sink = observe(Items(tasks=("write",), include=(str(tmp_path),)), reference, variant)[0]
    assert list(sink.read("scoring").plain) == ["the task asks for more than greedy decoding up to a stop string"]


def test_a_text_that_the_model_does_not_write_alone_is_found(
    tmp_path: Path, reference: Loaded, variant: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.scoring import decoding

    real = decoding._choose
    calls: list[int] = []

    def wrong(logits: Any, numbers: Any, written: Any) -> Any:
        calls.append(len(numbers))
        return real(logits.roll(1, dims=-1) if len(calls) == 3 else logits, numbers, written)

    probe = write_each_kind(tmp_path).model_copy(update={"tasks": ("write",)})
    expected = score_plainly(probe, reference, variant, monkeypatch)
    monkeypatch.setattr(decoding, "_choose", wrong)
    sink = observe(probe, reference, variant)[0]
    assert list(sink.read("scoring").plain) == ["a text of its shared cache is not the one that it writes alone"]
    check_same(sink.rows, expected, 0.0)


CHOSEN = ("arc_challenge_500", "arc_easy_500", "openbookqa_500", "piqa_500", "social_i_qa_500", "winogrande_500")
CHOSEN_BY = dict.fromkeys(CHOSEN, ("question", "choices", "label"))
CHOSEN_BY |= {"boolq_closedbook_500": ("question", "['no', 'yes']", "{{{{label | int}}}}")}
CONTINUED_BY = {
    "bbh_5tasks_1250": ("input", "target"),
    "gsm8k_test_500": ("question", "answer"),
    "humaneval_164": ("prompt", "canonical_solution"),
    "xstest_450_prompts": ("prompt", "label"),
}


def task_about(name: str) -> str:
    """A task about a file of public questions."""
    if name in CONTINUED_BY:
        text, target = CONTINUED_BY[name]
        text = GENERATION.replace("doc_to_text: q", f"doc_to_text: {text}").replace(
            "doc_to_target: answer", f"doc_to_target: {target}"
        )
        return text.replace('until: ["."], max_gen_toks: 5', 'until: ["\\n", "."], max_gen_toks: 24')
    text, choices, label = CHOSEN_BY[name]
    parts = (("doc_to_text: q", f"doc_to_text: {text}"), ("choice: choices", f'choice: "{choices}"'))
    made = CHOICE.replace("doc_to_target: label", f'doc_to_target: "{label}"')
    for before, after in parts:
        made = made.replace(before, after)
    return made


@pytest.mark.parametrize("limit", [5, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(CHOSEN_BY.keys() | CONTINUED_BY))
def test_packed_rows_change_nothing_on_public_questions(
    name: str, limit: int | None, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(shared_data / "models" / "stories260K-hf")
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    loaded = Loaded("reference", model, AutoTokenizer.from_pretrained(path, local_files_only=True))
    write_task(tmp_path, name, task_about(name), [], data=str(shared_data / "tasks" / f"{name}.jsonl"))
    probe = Items(tasks=(name,), include=(str(tmp_path),), limit=limit)
    sink = observe(probe, loaded, loaded)[0]
    assert list(sink.read("scoring").plain) == [""]
    check_same(sink.rows, score_plainly(probe, loaded, loaded, monkeypatch), 1e-4)
