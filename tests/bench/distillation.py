"""What the objectives of distillation gain on the embedded model, as a section of a page. A script, not a test.

    python tests/bench/distillation.py --out .github/TRAINING.md
    python tests/bench/distillation.py --out .github/TRAINING.md --only "few: logit"

Every student is the first and third of the four layers of the embedded model, trained for as many steps. It is judged
on held-out texts: KL and NLL in nats per token, and how often student and teacher find the same token most probable.
Differences are paired with the student that learned hard labels of the same texts (95 % intervals, clustered by
document). Results are kept beside the page, so that single rows can be made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import yaml
from torch import Tensor

from harness.backends.distill import Distill
from harness.backends.gptq import Gptq
from harness.data.documents import read_documents
from harness.data.encoding import encode
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.pocket.tasks import task_items
from harness.records import DocumentsSpec, ModelSpec, TrainingSpec
from harness.running.questions import read_questions
from harness.running.training import read_training
from harness.statistics import mean, ratio_of_sums_interval
from harness.system.environment import prepare_threads
from harness.training.data import Training
from harness.training.examples import Example, make_batch
from harness.training.writing import write_texts

HARD: dict[str, Any] = {"objective": "logit", "alpha": 1.0}
LOGIT: dict[str, Any] = {"objective": "logit"}
WRITTEN = {"prompt_tokens": 32, "new_tokens": 96}
PLENTY, FEW = "plentiful texts", "few texts"
FEW_TEXTS, BATCH, TOKENS, JUDGED, ASKED = 200, 8, 128, 150, 150
ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "hard labels": (PLENTY, [HARD]),
    "logit": (PLENTY, [LOGIT]),
    "few: hard labels": (FEW, [HARD]),
    "few: logit": (FEW, [LOGIT]),
    "few: logit, τ = 2, α = 0.5": (FEW, [{**LOGIT, "temperature": 2.0, "alpha": 0.5}]),
    "few: logit, Jensen-Shannon": (FEW, [{**LOGIT, "divergence": "jensen_shannon"}]),
    "few: hard labels + hidden states": (FEW, [HARD, {"objective": "feature"}]),
    "few: hard labels + value relations": (FEW, [HARD, {"objective": "feature", "match": "values"}]),
    "few: sequence": (FEW, [{"objective": "sequence", **WRITTEN}]),
    "few: hard labels + sequence": (FEW, [HARD, {"objective": "sequence", **WRITTEN}]),
    "few: hard labels + preference": (FEW, [HARD, {"objective": "preference", **WRITTEN}]),
    "few: hard labels + on_policy": (FEW, [HARD, {"objective": "on_policy", "prompt_tokens": 32, "new_tokens": 32}]),
    "few: hard labels + traces": (FEW, [HARD, {"objective": "traces", "task": "sums", "questions": 400}]),
}
TASK = {
    "task": "sums",
    "dataset_path": "json",
    "output_type": "generate_until",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 6},
    "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
HEADING = "## Distillation"
KL, NLL, SAME = 1, 2, 3
"""Columns of what is judged."""
Sums = list[list[float]]
"""For every judged text: tokens, KL, NLL, and tokens with the same most probable one."""


def write_task(folder: Path) -> Path:
    """A task of sums with questions to learn from and others to be judged on."""
    items = task_items("pocket_sums", 400 + ASKED, 7)
    files = {"train": items[:400], "test": items[400:]}
    for split, rows in files.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {**TASK, "dataset_kwargs": {"data_files": {split: f"{split}.jsonl" for split in files}}}
    (folder / "sums.yaml").write_text(yaml.safe_dump(content))
    return folder


def make_training(reference: LoadedModel, kind: str, steps: int) -> Training:
    documents = steps * BATCH if kind == PLENTY else FEW_TEXTS
    spec = TrainingSpec(data="pocket-train", documents=documents, steps=steps, held_out=16, tokens=TOKENS)
    data = read_training(spec, reference)
    sha256 = reference.identity.weights_sha256
    return Training(
        spec,
        data.texts,
        data.held_out_texts,
        reference.model,
        sha256,
        tokenizer=reference.tokenizer,
        ask=read_questions,
    )


@torch.no_grad()
def judge(model: Any, teacher: Any, texts: Sequence[Tensor]) -> Sums:
    found: Sums = []
    for ids in texts:
        batch = make_batch([Example(ids)], [0])
        own, taught = (batch.logits(each).double().log_softmax(-1) for each in (model, teacher))
        kl = (taught.exp() * (taught - own)).sum()
        nll = -own.gather(1, batch.targets[:, None]).sum()
        same = (own.argmax(-1) == taught.argmax(-1)).sum()
        found.append([float(batch.tokens), float(kl), float(nll), float(same)])
    return found


def count_right(model: Any, reference: LoadedModel, folder: Path) -> float:
    """Share of the judged sums that the model completes, as it finds most probable."""
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    tokenizer: Any = reference.tokenizer
    prompts = [
        torch.tensor([tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]])
        for row in rows
    ]
    written = write_texts("bench", model, prompts, 6, 0.0, 0)
    answers = [str(tokenizer.decode(each.ids[each.scored_from :], skip_special_tokens=True)) for each in written]
    return mean([answer.partition("\n")[0].strip() == row["target"] for answer, row in zip(answers, rows, strict=True)])


def run_row(name: str, reference: LoadedModel, steps: int, texts: Sequence[Tensor], tasks: Path) -> dict[str, Any]:
    kind, objectives = ROWS[name]
    training = make_training(reference, kind, steps)
    asked = [{**each, "include": (str(tasks),)} if each["objective"] == "traces" else each for each in objectives]
    step = Distill.model_validate(
        {
            "student": {"layers": "halve"},
            "objectives": tuple(asked),
            "batch": BATCH,
            "learning_rate": 1e-3,
            "evaluations": 3,
        }
    )
    began = time.process_time()
    done = step.train(copy.deepcopy(reference.model), reference.tokenizer, training)
    seconds = time.process_time() - began
    result = {
        "judged": judge(done.model, reference.model, texts),
        "sums": count_right(done.model, reference, tasks),
        "seconds": seconds,
        "steps": steps,
        "notes": [note.text for note in done.notes],
    }
    if name == "few: logit":
        quantized = Gptq(bits=4, group_size=32).compress(done.model, reference.tokenizer, training.texts[:64])
        result["quantized"] = judge(quantized.model, reference.model, texts)
    return result


def compare(result: Mapping[str, Any], base: Mapping[str, Any], column: int) -> str:
    """Difference of a mean per token from that of another student, with its interval."""
    own, other = ([row[column] for row in each["judged"]] for each in (result, base))
    tokens = [row[0] for row in result["judged"]]
    gained = [first - second for first, second in zip(own, other, strict=True)]
    interval = ratio_of_sums_interval(gained, tokens, list(range(len(tokens))), skewed=column != SAME)
    if interval is None:
        return "–"
    return f"{sum(gained) / sum(tokens):+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def make_table(results: Mapping[str, Any], base: str, names: Sequence[str]) -> list[str]:
    """A row for each student, the one of hard labels first."""
    lines = [
        "| objectives | KL | Δ KL | NLL | Δ NLL | same top-1 | Δ same top-1 | right sums | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in [each for each in names if each in results]:
        result = results[name]
        tokens, kl, nll, same = map(sum, zip(*result["judged"], strict=True))
        against = results.get(base) if name != base else None
        gained = [compare(result, against, column) if against else "" for column in (KL, NLL, SAME)]
        cells = [f"{kl / tokens:.4f}", gained[0], f"{nll / tokens:.4f}", gained[1], f"{same / tokens:.3f}", gained[2]]
        about = ["", ""] if "sums" not in result else [f"{result['sums']:.2f}", f"{result['seconds']:.0f}"]
        lines.append(f"| {' | '.join([name.removeprefix('few: '), *cells, *about])} |")
    return lines


def write_section(page: Path, results: Mapping[str, Any]) -> None:
    """Write the section of distillation, and leave the others of the page as they are."""
    with_quantized = {
        f"{name}, then GPTQ INT4 group 32": {"judged": each["quantized"]}
        for name, each in results.items()
        if "quantized" in each
    }
    every = {**results, **with_quantized}
    steps = sorted({each["steps"] for each in results.values()})
    lines = [
        HEADING,
        "",
        "`python tests/bench/distillation.py --out .github/TRAINING.md`: the embedded model (4 layers) teaches its "
        f"layers 0 and 2, {', '.join(map(str, steps))} steps of {BATCH} documents of at most {TOKENS} tokens. Δ is the "
        "difference from the student of hard labels in the same table, paired by document, with its 95 % interval.",
        "",
        "As many fresh texts as the steps take:",
        "",
        *make_table(every, "hard labels", [name for name in ROWS if not name.startswith("few: ")]),
        "",
        f"{FEW_TEXTS} texts, seen again and again:",
        "",
        *make_table(every, "few: hard labels", [each for each in every if each.startswith("few: ")]),
        "",
        *(f"- {note}" for each in results.values() for note in each["notes"]),
    ]
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Training\n"
    before, _, behind = text.partition(HEADING)
    rest = "\n## " + behind.partition("\n## ")[2] if "\n## " in behind else ""
    page.write_text(before.rstrip() + "\n\n" + "\n".join(lines).rstrip() + "\n" + rest, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the page, of which one section is written")
    parser.add_argument("--data", type=Path, help="results that are kept; beside the page by default")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--judged", type=int, default=JUDGED)
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    options = parser.parse_args()
    prepare_threads()
    data = options.data or options.out.parent / "data" / "distillation.json"
    results: dict[str, Any] = json.loads(data.read_text()) if data.is_file() else {}
    reference = load(ModelSpec(model="pocket"), "reference")
    raw = read_documents("pocket-heldout", options.judged)
    encoded = encode(raw, reference.tokenizer, DocumentsSpec(data="pocket-heldout", context=256), 1536)
    texts = [torch.from_numpy(each.ids) for each in encoded if not each.skipped]
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = run_row(name, reference, options.steps, texts, write_task(Path(folder)))
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(results) + "\n")
        tokens, kl, nll, same = map(sum, zip(*results[name]["judged"], strict=True))
        seconds = results[name]["seconds"]
        said = f"KL {kl / tokens:.4f}, NLL {nll / tokens:.4f}, same {same / tokens:.3f}, {seconds:.0f} s"
        print(f"{name}: {said}", flush=True)
    write_section(options.out, results)


if __name__ == "__main__":
    main()
