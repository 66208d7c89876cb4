"""Converts lm-eval's logged samples of a task into items, and pairs the items of both sides into table rows.

lm-eval continues in cases where a verdict must not: a label that is not among the choices scores 0, choices whose
log-likelihoods are all NaN count as the first one, a task may log fewer documents than requested. These cases are
detected here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from harness.errors import DataError

RENAMED = {"acc": "accuracy"}
PER_WORD_OR_BYTE = ("word_perplexity", "byte_perplexity", "bits_per_byte")
LONGEST_TEXT = 2000
"""Characters kept of a prompt, its last ones, and of a choice."""
NOT_PER_ITEM = "the metric is computed over the whole set and has no value for one item, so items cannot be paired"
Better = Literal["lower", "higher", "neither"]


class Key(NamedTuple):
    """The key that pairs items of two sides: the same texts under the same metric."""

    metric: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    target_hash: str


@dataclass(frozen=True)
class Item:
    """One document under one metric on one side.

    score: whether higher or lower is better is in ``better``; NaN if the side gave no usable number. For perplexities
    it is the negative log-likelihood in nats per word or byte (bits for ``bits_per_byte``).
    """

    better: Better
    target: str
    score: float
    answer: str
    loglikelihoods: tuple[float, ...]
    weight: float
    skipped: str = ""


class Question(NamedTuple):
    """What a document asks, for readers: the end of its prompt, and the choices where there are some."""

    prompt: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class TaskResults:
    """The results of one side on one task: the items, the question of each document, the prompts of the items, and
    which prompts were cut.

    plain: why they were scored one sequence per row; empty: in packed rows.
    """

    items: Mapping[Key, Item]
    questions: Mapping[int, Question]
    prompts: Mapping[Key, frozenset[str]]
    cut: frozenset[str]
    begins_with_bos: bool
    plain: str


def read_side(
    task: Any,
    samples: Sequence[Mapping[str, Any]],
    higher_is_better: Mapping[str, bool],
    *,
    requested: int,
    non_finite: Iterable[str],
    cut: Iterable[str],
    begins_with_bos: bool,
    plain: str,
) -> TaskResults:
    """Items of one side from the samples that lm-eval logged.

    task: lm-eval's Task; samples: one entry per document and filter; requested: documents that must be present;
    non_finite: prompts with NaN or +inf logits while generating; cut: prompts that were truncated. Raises DataError for
    missing or repeated documents, labels that are missing or not among the choices, and metrics that only some
    documents have.
    """
    broken = frozenset(non_finite)
    name = task.config.task
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    items: dict[Key, Item] = {}
    questions = {int(sample["doc_id"]): _read_question(task, sample) for sample in samples}
    prompts: dict[Key, frozenset[str]] = {}
    for filter_name in filters or [""]:
        chosen = [sample for sample in samples if sample["filter"] == filter_name]
        _check_complete(name, chosen, requested)
        for sample in chosen:
            _check_label(name, task, sample)
            asked = frozenset(str(arguments[0]) for arguments in sample["arguments"])
            for metric in sample["metrics"]:
                label = RENAMED.get(metric, metric) + (f".{filter_name}" if len(filters) > 1 else "")
                hashes = (sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])
                key = Key(label, int(sample["doc_id"]), *hashes)
                if key in items:
                    raise DataError(f"task {name}: document {key.doc_id} appears twice under the metric {label}")
                items[key] = _item(task, sample, metric, higher_is_better, bool(asked & broken))
                prompts[key] = asked
    return TaskResults(items, questions, prompts, frozenset(cut), begins_with_bos, plain)


def pair_rows(task: str, output_type: str, reference: TaskResults, variant: TaskResults) -> pd.DataFrame:
    """Rows of the table ``items``, one per document and metric, paired on metric, document and three hashes.

    Raises DataError when an item of one side has no partner on the other.
    """
    alone = [*_list_missing(reference, variant, "variant"), *_list_missing(variant, reference, "reference")]
    if alone:
        shown = "; ".join(alone[:3]) + ("; …" if len(alone) > 3 else "")
        raise DataError(
            f"task {task}: {len(alone)} items of one side have no partner on the other ({shown}); both sides "
            "must see the same documents and prompts: look for randomness in the task's functions"
        )
    bos = {
        (True, True): "both",
        (False, False): "neither",
        (True, False): "reference",
        (False, True): "variant",
    }
    rows = [
        {
            "task": task,
            "output_type": output_type,
            **key._asdict(),
            "better": item.better,
            "target": item.target,
            "reference_score": item.score,
            "variant_score": variant.items[key].score,
            "reference_answer": item.answer,
            "variant_answer": variant.items[key].answer,
            "reference_loglikelihoods": list(item.loglikelihoods),
            "variant_loglikelihoods": list(variant.items[key].loglikelihoods),
            "weight": item.weight,
            "skipped": item.skipped,
            "cut": bool(reference.prompts[key] & (reference.cut | variant.cut)),
            "bos": bos[reference.begins_with_bos, variant.begins_with_bos],
        }
        for key, item in reference.items.items()
    ]
    return pd.DataFrame(rows)


def list_questions(task: str, side: TaskResults) -> pd.DataFrame:
    """Rows of the table ``item_texts``, one per document."""
    columns = ["task", "doc_id", "prompt", "choices"]
    rows = [(task, number, each.prompt, list(each.choices)) for number, each in side.questions.items()]
    return pd.DataFrame(rows, columns=columns)


def _list_missing(side: TaskResults, other: TaskResults, name: str) -> list[str]:
    return [
        f"document {key.doc_id} under {key.metric} is missing on the {name}'s side"
        for key in side.items
        if key not in other.items
    ]


def _check_complete(name: str, samples: Sequence[Mapping[str, Any]], requested: int) -> None:
    documents = [int(sample["doc_id"]) for sample in samples]
    if len(documents) != requested or len(set(documents)) != requested:
        raise DataError(
            f"task {name}: {requested} documents were requested and {len(set(documents))} came back "
            f"({len(documents)} results); a filter or process_results of the task drops or repeats documents"
        )
    metrics = {tuple(sorted(sample["metrics"])) for sample in samples}
    if len(metrics) != 1 or metrics == {()}:
        raise DataError(
            f"task {name}: not every document was scored under the same metrics "
            f"(found the sets {sorted(metrics)}); every document needs a score under every metric"
        )


def check_labels(task: Any, limit: int | None) -> None:
    """Raise DataError for a label of the first ``limit`` documents that is missing or outside the choices.

    Asked before a model is: lm-eval breaks on some of these without saying why.
    """
    for number, document in enumerate(islice(task.eval_docs, limit)):
        sample = {"doc": document, "doc_id": number, "target": task.doc_to_target(document)}
        _check_label(task.config.task, task, sample)


def _check_label(name: str, task: Any, sample: Mapping[str, Any]) -> None:
    """Refuse an impossible label, unless the task scores with its own function."""
    if getattr(task.config, "process_results", None) is not None or not hasattr(task, "multiple_input"):
        return
    where = f"task {name}, document {sample['doc_id']}"
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = list(task.doc_to_choice(sample["doc"]))
        label = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
        labels = label if isinstance(label, list) else [label]
        if not labels or any(_index(one, choices) is None for one in labels):
            raise DataError(
                f"{where}: found the label {label!r}, expected an index from 0 to {len(choices) - 1} or one of "
                f"the choices {choices}; splits without labels cannot be scored"
            )
    elif sample["target"] in (None, "", []):
        raise DataError(f"{where}: found no target, expected a text; splits without targets cannot be scored")


def _index(label: object, choices: Sequence[str]) -> int | None:
    """The choice that a label names, or None."""
    if isinstance(label, int) and not isinstance(label, bool):
        return label if 0 <= label < len(choices) else None
    return choices.index(label) if isinstance(label, str) and label in choices else None


def _read_question(task: Any, sample: Mapping[str, Any]) -> Question:
    """The end of the prompt and the choices; each choice with its own prompt where these differ."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Question("", ())
    arguments = [tuple(map(str, each[:2])) for each in sample["arguments"]]
    prompts = [prompt for prompt, *_ in arguments]
    if task.OUTPUT_TYPE != "multiple_choice":
        return Question(prompts[0][-LONGEST_TEXT:], ())
    # Mutual information asks for every choice again, without the prompt.
    count = len(task.doc_to_choice(sample["doc"])) if hasattr(task, "doc_to_choice") else len(arguments)
    shared = len(set(prompts[:count])) == 1
    choices = [rest[0] if shared else f"{prompt}{rest[0]}" for prompt, *rest in arguments[:count]]
    return Question(
        prompts[0][-LONGEST_TEXT:] if shared else "", tuple(choice.strip()[-LONGEST_TEXT:] for choice in choices)
    )


def _item(
    task: Any, sample: Mapping[str, Any], metric: str, higher_is_better: Mapping[str, bool], non_finite: bool
) -> Item:
    value = sample[metric]
    responses = sample["filtered_resps"]
    lls = _loglikelihoods(task, responses)
    better: Better = "neither"
    if metric in higher_is_better:
        better = "higher" if higher_is_better[metric] else "lower"
    target, weight, skipped = _text(sample["target"]), 1.0, ""
    score: float
    if task.OUTPUT_TYPE == "loglikelihood_rolling" and metric in PER_WORD_OR_BYTE:
        weight = float(value[1])
        score = _divide_by_units(task.config.task, sample, metric, lls[0], weight)
        target = ""
    elif task.OUTPUT_TYPE == "loglikelihood" and metric == "perplexity":
        score = -lls[0]
    elif metric == "brier_score" and isinstance(value, tuple) and isinstance(value[0], int):
        score = _brier(value[0], np.asarray(value[1], dtype=np.float64))
    elif isinstance(value, Real):
        score = float(value)
    elif value is None:
        raise DataError(f"task {task.config.task}, document {sample['doc_id']}: {metric} gave no score")
    else:
        score, skipped = math.nan, NOT_PER_ITEM
    answer = _answer(task, sample, metric, lls)
    if non_finite or _unusable(task.OUTPUT_TYPE, lls):
        score, answer = math.nan, ""
    return Item(better, target, score, answer, lls, weight, skipped)


def _unusable(output_type: str, lls: tuple[float, ...]) -> bool:
    """Whether log-likelihoods give no answer: NaN or +inf among them, or every choice is impossible."""
    broken = any(math.isnan(ll) or ll == math.inf for ll in lls)
    return broken or (output_type == "multiple_choice" and all(ll == -math.inf for ll in lls))


def _divide_by_units(name: str, sample: Mapping[str, Any], metric: str, ll: float, weight: float) -> float:
    if weight <= 0:
        raise DataError(f"task {name}, document {sample['doc_id']}: the text is empty, so {metric} is undefined")
    return -ll / weight / (math.log(2) if metric == "bits_per_byte" else 1.0)


def _brier(gold: int, probabilities: np.ndarray) -> float:
    """Multi-class Brier score of one item: squared distance to the one-hot label."""
    wanted = np.zeros_like(probabilities)
    wanted[gold] = 1.0
    return float(((probabilities - wanted) ** 2).sum())


def _loglikelihoods(task: Any, responses: Sequence[Any]) -> tuple[float, ...]:
    """Log-likelihoods of the choices, of the one continuation, or of the document; none for generations."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return tuple(float(response) for response in responses)
    if task.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
        return tuple(float(loglikelihood) for loglikelihood, _ in responses)
    return ()


def _answer(task: Any, sample: Mapping[str, Any], metric: str, lls: tuple[float, ...]) -> str:
    """Index of the choice that the metric picks, whether the continuation is the greedy one, or the text."""
    responses = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "generate_until":
        return _text(responses[0] if len(responses) == 1 else responses)
    if task.OUTPUT_TYPE == "loglikelihood":
        return str(int(bool(responses[0][1]))) if len(responses) == 1 else str(int(np.argmax(lls)))
    if task.OUTPUT_TYPE != "multiple_choice":
        return ""
    scores = np.asarray(lls)
    if metric in ("acc_norm", "acc_bytes", "acc_mutual_info"):
        choices = list(task.doc_to_choice(sample["doc"]))
        if metric == "acc_mutual_info":
            scores = scores[: len(choices)] - scores[len(choices) :]
        else:
            lengths = [float(len(c) if metric == "acc_norm" else len(c.encode())) for c in choices]
            scores = scores[: len(choices)] / np.asarray(lengths)
    return str(int(np.argmax(scores)))


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
