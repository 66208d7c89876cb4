"""Variants that are made by training, beside those that are not, as one page of tables. A script, not a test.

    python tests/bench/training.py --out .github/TRAINING.md
    python tests/bench/training.py --out page.md --only '^INT2' --folder runs/training

Each variant is a variant file like a user's, judged by the rules on KL and perplexity of the gate ``ship``. With
``--folder`` finished trainings stay there, and the next run of this script takes them from there.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.errors import HarnessError
from harness.judge import judge
from harness.measures import collect_metrics
from harness.plan import load_gate, make_plan
from harness.records import Measurement, Verdict
from harness.statistics import mean, mean_interval
from harness.system.environment import describe_environment, prepare_threads
from harness.tables.store import StoreReader

if TYPE_CHECKING:
    from harness.concluding.pair import Observed

Step = dict[str, Any]
JUDGED_BY = ("divergence.kl_mean", "perplexity.ratio")


@dataclass(frozen=True)
class Recipe:
    """The steps of a variant, and the texts of those that train. asked: that it passes the rules of ``ship``, or does
    not; None: neither."""

    steps: tuple[Step, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    asked: bool | None = None


def texts(steps: int, batch: int) -> dict[str, Any]:
    """Fresh texts for every step."""
    return {"data": "pocket-train", "documents": steps * batch, "tokens": 256, "steps": steps, "held_out": 16}


LEARNED = {"learned_steps": True, "step_rate": 0.1}


def qat(**fields: Any) -> Step:
    """Trained towards the reference."""
    return {"backend": "qat", "batch": 16, "learning_rate": 5e-4, "evaluations": 10, **fields}


CALIBRATION = {"data": "pocket-calibration", "documents": 64, "tokens": 256}
INT2: Step = {"bits": 2, "group_size": 32}
INT3: Step = {"bits": 3, "granularity": "channel"}
INT8: Step = {"bits": 8, "granularity": "channel"}
A8: Step = {"bits": 8, "granularity": "tensor"}
RECIPES: dict[str, Recipe] = {
    "INT2 group 32": Recipe(({"backend": "round_to_nearest", **INT2},), asked=False),
    "INT2 group 32, QAT, learned steps": Recipe((qat(**INT2, **LEARNED),), texts(300, 16), asked=True),
    "INT3 channel": Recipe(({"backend": "round_to_nearest", **INT3},)),
    "GPTQ INT3 channel": Recipe(({"backend": "gptq", **INT3},)),
    "INT3 channel, QAT, learned steps": Recipe((qat(**INT3, **LEARNED, learning_rate=2e-4),), texts(60, 16)),
    "INT2 group 32, QAT, learned steps, short": Recipe((qat(**INT2, **LEARNED, batch=8),), texts(60, 8)),
    "INT2 group 32, QAT, fixed steps, short": Recipe((qat(**INT2, batch=8),), texts(60, 8)),
    "W8A8, activations per tensor": Recipe(
        ({"backend": "round_to_nearest", **INT8}, {"backend": "activations", **A8}), asked=False
    ),
    "W8A8, activations per tensor, QAT": Recipe(
        (qat(**INT8, **LEARNED, activations=A8 | {"dynamic": False}),), texts(200, 16), asked=True
    ),
}
ORDERS = (
    ("INT2 group 32, QAT, learned steps", "INT2 group 32"),
    ("INT2 group 32, QAT, learned steps, short", "INT2 group 32, QAT, fixed steps, short"),
    ("INT3 channel, QAT, learned steps", "GPTQ INT3 channel"),
    ("W8A8, activations per tensor, QAT", "W8A8, activations per tensor"),
)
"""(the one expected to lose less, the other)"""


@dataclass(frozen=True)
class Row:
    """One variant: its run, its verdicts, and KL token by token with the document of each."""

    observed: Observed
    verdicts: tuple[Verdict, ...]
    kl: list[float]
    documents: list[int]

    def metric(self, name: str) -> Measurement:
        return next(m for m in self.observed.measurements if m.name == name)

    @property
    def passes(self) -> bool:
        return all(verdict.status == "pass" for verdict in self.verdicts)


class Lines:
    """Progress as plain lines: the end of every stage, and a training now and then."""

    def __init__(self) -> None:
        self._last = -1

    def step(self, what: str, done: int, of: int) -> None:
        share = 10 * done // max(1, of)
        if "training" in what and share != self._last:
            self._last = share
            print(f"  {what} ({getattr(what, 'detail', '')}) {done}/{of}", file=sys.stderr, flush=True)


def write_rules(folder: Path) -> None:
    """A gate of those rules of ``ship`` that this page is about."""
    kept = [spec for spec in load_gate("ship", folder).rules if spec.rule.metric in JUDGED_BY]
    rules = [{"rule": spec.rule.kind, **spec.rule.model_dump(mode="json", exclude_unset=True)} for spec in kept]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))


def run(name: str, recipe: Recipe, folder: Path, judged: int) -> Row:
    """Make, observe and judge one variant, in a folder of its own."""
    from harness.run import run_group

    slug = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    documents = {"data": "pocket-heldout", "max": judged, "context": 512, "bos": True}
    suite = {"documents": documents, "measures": ["divergence", "perplexity", "memory"]}
    (folder / "table.yaml").write_text(yaml.safe_dump(suite))
    write_rules(folder)
    content: dict[str, Any] = {
        "name": slug,
        "reference": {"model": "pocket"},
        "variant": {"compress": list(recipe.steps)},
        "calibration": CALIBRATION,
        "suites": ["./table.yaml"],
        "gates": ["./rules.yaml"],
    }
    if recipe.training:
        content["training"] = dict(recipe.training)
    (folder / f"{slug}.yaml").write_text(yaml.safe_dump(content))
    plan = make_plan(folder / f"{slug}.yaml")
    (result,) = run_group([plan], [folder / slug], Lines())
    if isinstance(result, HarnessError):
        raise result
    metrics = collect_metrics(measure for each in plan.suites for measure in each.measures)
    verdicts = judge(plan.gates, result.measurements, result.skipped, False, metrics=metrics)
    tokens = StoreReader(folder / slug / "tables").read("table", "tokens", ("document", "kl"))
    assert tokens is not None
    return Row(result, verdicts, tokens["kl"].tolist(), tokens["document"].tolist())


def table(rows: Mapping[str, Row]) -> Iterator[str]:
    yield "| variant | KL, nats/token | 95 % interval | perplexity ratio | 95 % interval | ship | asked |"
    yield "| --- | ---: | --- | ---: | --- | --- | --- |"
    for name, row in rows.items():
        kl, ratio, asked = row.metric("divergence.kl_mean"), row.metric("perplexity.ratio"), RECIPES[name].asked
        as_asked = "" if asked is None else "as expected" if asked == row.passes else "**otherwise**"
        yield (
            f"| {name} | {kl.change:.5f} | {kl.low:.5f} – {kl.high:.5f} | {ratio.change:.4f} | "
            f"{ratio.low:.4f} – {ratio.high:.4f} | {'pass' if row.passes else 'fail'} | {as_asked} |"
        )


def orders(rows: Mapping[str, Row]) -> Iterator[str]:
    yield "| expected to lose less | than | difference of KL | 95 % interval | seen |"
    yield "| --- | --- | ---: | --- | --- |"
    for better, worse in ORDERS:
        if better not in rows or worse not in rows:
            continue
        differences = [a - b for a, b in zip(rows[better].kl, rows[worse].kl, strict=True)]
        found, value = mean_interval(differences, rows[better].documents), mean(differences)
        if found is None:
            continue
        seen = "yes" if found.high < 0 else "**the other way**" if found.low > 0 else "not decided"
        yield f"| {better} | {worse} | {value:+.5f} | {found.low:+.5f} – {found.high:+.5f} | {seen} |"


def made_with(recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """The steps of every variant as they stand in its file."""
    for name, recipe in recipes.items():
        if recipe.training:
            steps = yaml.safe_dump(list(recipe.steps), default_flow_style=True, width=1000).strip()
            lasts = f"{recipe.training['steps']} steps, {recipe.training['documents']} texts"
            yield f"- {name}: `{steps}`, {lasts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--max", type=int, default=100, help="documents to judge on")
    parser.add_argument("--only", default="", help="run the recipes whose name matches this")
    parser.add_argument("--folder", type=Path, help="where runs stay, so that finished trainings are not repeated")
    options = parser.parse_args()
    prepare_threads()
    recipes = {name: recipe for name, recipe in RECIPES.items() if re.search(options.only, name)}
    environment, rows = describe_environment(), dict[str, Row]()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for title, recipe in recipes.items():
            rows[title] = run(title, recipe, folder.resolve(), options.max)
            print(f"{title}: KL {rows[title].metric('divergence.kl_mean').change:.5f}", file=sys.stderr, flush=True)
    page = [
        "# Variants that are made by training",
        "",
        f"On the embedded model, judged on {options.max} documents that no training saw, by the rules on KL and",
        "perplexity of the gate ship. Made by",
        f"`make training-figures` on {datetime.now(UTC).date()}, "
        f"{', '.join(f'{k} {v}' for k, v in environment.packages.items())}. How to: [training](guides/training.md).",
        "",
        *table(rows),
        "",
        *orders(rows),
        "",
        *made_with(recipes),
    ]
    options.out.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
