"""The reference against itself 200 times, judged by the gate ``ship``, as one page. A script, not a test.

    python tests/bench/same_model.py --out .github/SAME_MODEL.md              a quarter of an hour on one core

Every run draws its own documents of the embedded world, the batch size of the reference, and for the other side, within
each batch, any order of the documents in parts of any size. The tasks' answers were found once with each of several
numbers of prompts in a batch; each run compares two of them. A second part shows how far every metric of a pass probe
moves under each condition of ``noise_floor``. Seeds are fixed: the same command gives the same page on one machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.concluding.noise_floor import floors, read_perturbed
from harness.measures import Measure
from harness.records import Condition, NoiseFloorSpec
from harness.running.perturbing import observe_perturbed
from harness.system.environment import prepare_threads
from harness.tables.memory import MemoryStore
from tests.helpers.same_model import GATE, ITEM_BATCHES, SUITE, Compared, Setting, Silent, compare, setting

TOGETHER = 4
"""Runs that share one pass of the reference."""
SHOWN = (
    "perplexity.ratio", "divergence.kl_mean", "divergence.kl_p99", "divergence.top1_agreement", "calibration.brier",
    "logits.max_abs_diff", "logits.mean_abs_diff", "layers.worst",
)  # fmt: skip


def page(runs: Sequence[Compared], floor: Sequence[str], command: str) -> Iterator[str]:
    yield "# The reference against itself"
    yield ""
    said = Counter(run.verdict for run in runs)
    unaware = Counter(run.unaware for run in runs)
    counts = ", ".join(f"{count} {status}" for status, count in said.most_common())
    blind = ", ".join(f"{count} {status}" for status, count in unaware.most_common())
    yield (
        f"{len(runs)} runs of the embedded model against itself, judged by the gate `{GATE}` on the measures of the "
        f"suite `{SUITE}`: **{counts}**. A judge who does not know that both sides are the same bytes says: {blind}. "
        "What is then undecided are runs in which no likelihood changes: so few equal documents bound unseen ones, by "
        "what these are declared to change at most, not within the two percent of the gate (92 documents do)."
    )
    yield ""
    yield (
        f"Each run has {runs[0].documents} documents of its own, drawn by its seed ({runs[0].seed} to {runs[-1].seed}; "
        f"{TOGETHER} runs share a seed and a pass of the reference), batches of 256 to 2048 positions on the side of "
        "the reference, and on the other side any order of the documents in parts of any size. Answers of the tasks "
        f"were found with {', '.join(map(str, ITEM_BATCHES))} prompts in a batch, and each run compares two of these; "
        "more orders change nothing there, because lm-eval sorts prompts by length."
    )
    yield ""
    yield f"Made by `{command}`."
    yield ""
    yield "| rule | verdicts | largest effect in any run |"
    yield "|---|---|---|"
    for place in dict.fromkeys((v.where, v.metric, v.rule, v.level) for run in runs for v in run.verdicts):
        where, metric, rule, level = place
        found = Counter(v.status for run in runs for v in run.verdicts if (v.where, v.metric) == (where, metric))
        largest = max((run.effects.get(metric, 0.0) for run in runs), default=0.0)
        shown = ", ".join(f"{count} {status}" for status, count in found.most_common())
        advisory = " (advisory)" * (level == "warn")
        yield f"| {rule} {metric}{advisory} | {shown} | {largest:.2g} |"
    yield ""
    yield "## Noise floors"
    yield ""
    yield from floor


def floor_table(made: Setting, documents: int) -> Iterator[str]:
    conditions: tuple[Condition, ...] = get_args(Condition)
    columns: dict[str, dict[str, float]] = {}
    for condition in conditions:
        spec = NoiseFloorSpec(conditions=(condition,), documents=documents)
        suite = made.suite.model_copy(update={"noise_floor": spec})
        begun = time.perf_counter()
        store = MemoryStore(Path())
        observe_perturbed(suite, made.documents, made.reference, [store.sink(suite.name)], Silent())
        found = read_perturbed(store, suite.name)
        print(f"{condition}: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
        assert found is not None
        measures = [measure for measure in suite.measures if isinstance(measure, Measure) and measure.table != "items"]
        columns[condition] = {name: floor.value for (name, _), floor in floors(found, measures).items()}
    yield f"|change − neutral| on {documents} documents, the embedded model in float32."
    yield ""
    yield f"| metric | {' | '.join(conditions)} |"
    yield "|---|" + "---|" * len(conditions)
    for name in SHOWN:
        yield f"| {name} | {' | '.join(f'{columns[condition][name]:.2g}' for condition in conditions)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--runs", type=int, default=200, help="how often the reference is compared with itself")
    parser.add_argument("--documents", type=int, default=40, help="documents of each run")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first runs")
    parser.add_argument("--no-tasks", action="store_true", help="leave the tasks and their rules out")
    options = parser.parse_args()
    prepare_threads()
    made = setting(tasks=not options.no_tasks)
    runs: list[Compared] = []
    while len(runs) < options.runs:
        begun, seed = time.perf_counter(), options.seed + len(runs) // TOGETHER
        runs += compare(made, seed, options.documents, min(TOGETHER, options.runs - len(runs)))
        verdicts = Counter(run.verdict for run in runs)
        print(f"{len(runs)} {dict(verdicts)} {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    command = f"python tests/bench/same_model.py --out {options.out} --runs {options.runs}"
    command += f" --documents {options.documents} --seed {options.seed}" + " --no-tasks" * options.no_tasks
    floor = list(floor_table(made, 16))
    options.out.write_text("\n".join(page(runs, floor, command)) + "\n", encoding="utf-8")
    if {run.verdict for run in runs} != {"pass"}:
        sys.exit("not every run passed")


if __name__ == "__main__":
    main()
