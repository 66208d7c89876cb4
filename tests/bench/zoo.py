"""Every architecture of tests/helpers/zoo.py through six compression steps, as a page with one table. A script.

    python tests/bench/zoo.py --out .github/ARCHITECTURES.md [--only mamba jamba]

Each cell is a variant file like a user's, checked by ``harness check`` on a tiny random model, which is saved as a
folder first. The variants of a model share its reference and one pass.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.check import check
from harness.records.failure import FAILURE_FILE
from harness.system.environment import describe_environment, prepare_threads
from harness.terminal import Terminal
from harness.writers import RUN_FILE
from tests.helpers.tiny_models import ready, save
from tests.helpers.zoo import TOKENIZERS, VISION, ZOO, make

Step = dict[str, Any]

STEPS: dict[str, tuple[Step, ...]] = {
    "identity": (),
    "rounding": ({"backend": "round_to_nearest", "bits": 4, "group_size": 16},),
    "GPTQ": ({"backend": "gptq", "bits": 4, "group_size": 16},),
    "AWQ": ({"backend": "awq", "bits": 4, "group_size": 16, "scale_grid": 3, "clip_grid": 3},),
    "SmoothQuant": (
        {"backend": "smoothquant"},
        {"backend": "round_to_nearest", "bits": 8, "granularity": "channel"},
        {"backend": "activations", "bits": 8},
    ),
    "KV cache": ({"backend": "kv_cache", "bits": 4, "group_size": 8, "residual": 0},),
}
"""What every architecture goes through, by the heads of the table."""
MEASURES = ("logits", "divergence", "perplexity", "layer_error", "weight_error", "outliers", "coverage", "memory")
LENGTH = 48
DESCRIPTION = """
Tiny random models of every architecture, each through six steps: the folder itself as the variant, rounding to 4 bits
in groups of 16, GPTQ and AWQ with the same format, SmoothQuant with 8-bit weights and inputs, and a 4-bit KV cache.
*works*: the variant is made, measured and judged. A number stands for the sentence below with which it is refused.

Vision-language models ({vision}) are checked on texts alone, and the share of the weights that took no part is said.
Encoders, whose tokens see those after them, and encoder-decoders are refused when they are loaded.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one step on one architecture. refused: the message; crashed: the traceback, of a defect.

    run: the content of run.json, if the step works.
    """

    refused: str = ""
    crashed: str = ""
    run: Mapping[str, Any] | None = None

    def value(self, metric: str) -> float:
        """The change of the first measurement of a metric."""
        assert self.run is not None, self.refused or self.crashed
        return float(next(m["change"] for m in self.run["measurements"] if m["name"] == metric))

    def notes(self, topic: str) -> list[str]:
        """Texts of the notes on a topic."""
        return [note["text"] for note in (self.run or {}).get("notes", ()) if note["topic"] == topic]


def run_family(name: str, folder: Path, steps: Sequence[str] = tuple(STEPS)) -> dict[str, Outcome]:
    """Check the given steps on a model of ``ZOO`` or ``VISION``, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save(ready(partial(make, name)), folder / "model")
    if name in TOKENIZERS:
        TOKENIZERS[name]().save_pretrained(folder / "model")
    chance = random.Random(0)
    texts = [json.dumps({"text": "".join(chr(chance.randint(33, 125)) for _ in range(LENGTH))}) for _ in range(16)]
    (folder / "judged.jsonl").write_text("\n".join(texts[:8]))
    (folder / "calibration.jsonl").write_text("\n".join(texts[8:]))
    documents = {"data": "./judged.jsonl", "context": LENGTH, "bos": True}
    (folder / "suite.yaml").write_text(yaml.safe_dump({"documents": documents, "measures": list(MEASURES)}))
    rule = {"rule": "at_most", "metric": "divergence.kl_mean", "limit": 100.0, "why": "everything is shown"}
    (folder / "gate.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    files = {step: _write_variant(folder, number, STEPS[step]) for number, step in enumerate(steps)}
    if not _check(list(files.values()), folder / "runs"):
        return {step: _read_outcome(folder / "runs" / file.stem, "") for step, file in files.items()}
    outcomes = {}
    for step, file in files.items():  # A defect takes the other variants of its group along.
        crash = _check([file], folder / "alone")
        outcomes[step] = _read_outcome(folder / "alone" / file.stem, crash)
    return outcomes


def _write_variant(folder: Path, number: int, steps: Sequence[Step]) -> Path:
    variant: Step = {"compress": list(steps)} if steps else {"model": "./model"}
    content = {
        "name": f"v{number}",
        "reference": {"model": "./model"},
        "variant": variant,
        "weak_reference": "its weights are random",
        "suites": ["./suite.yaml"],
        "gates": ["./gate.yaml"],
    }
    if steps:
        content["calibration"] = {"data": "./calibration.jsonl", "documents": 8, "tokens": LENGTH}
    file = folder / f"v{number}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _check(files: Sequence[Path], runs: Path) -> str:
    """Check variant files; the traceback of an error that is no HarnessError, which ``check`` lets through."""
    from rich.console import Console

    try:
        check(files, runs, Terminal(Console(file=io.StringIO(), width=2000)))
    except Exception:  # noqa: BLE001 - a defect of one architecture is a cell of the table
        return traceback.format_exc()
    return ""


def _read_outcome(folder: Path, crash: str) -> Outcome:
    if crash:
        return Outcome(crashed=crash)
    if (folder / RUN_FILE).is_file():
        return Outcome(run=json.loads((folder / RUN_FILE).read_text()))
    return Outcome(refused=json.loads((folder / FAILURE_FILE).read_text())["message"])


def table(found: Mapping[str, Mapping[str, Outcome]]) -> Iterator[str]:
    """One line for each architecture, and below the sentences of what is refused."""
    sentences: dict[str, int] = {}
    yield f"| architecture | {' | '.join(STEPS)} |"
    yield f"| --- |{' --- |' * len(STEPS)}"
    for name, outcomes in found.items():
        cells = [_cell(outcomes[step], sentences) for step in STEPS]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield from (f"{number}. {sentence}" for sentence, number in sentences.items())


def _cell(outcome: Outcome, sentences: dict[str, int]) -> str:
    if outcome.crashed:
        return f"**crashes**: {outcome.crashed.strip().splitlines()[-1]}"
    return f"refused ({sentences.setdefault(outcome.refused, len(sentences) + 1)})" if outcome.refused else "works"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--only", nargs="*", default=list(ZOO), help="architectures, all by default")
    options = parser.parse_args()
    prepare_threads()
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in options.only:
            found[name] = run_family(name, Path(place) / name)
            said = {step: outcome.refused or outcome.crashed or "works" for step, outcome in found[name].items()}
            print(f"{name}: {json.dumps(said)}", file=sys.stderr, flush=True)
    packages = ", ".join(f"{name} {number}" for name, number in describe_environment().packages.items())
    made = f"Made by `make zoo` on {datetime.now(UTC).date()}, {packages}."
    page = ["# Architectures", DESCRIPTION.rstrip().format(vision=", ".join(VISION)), "", made, "", *table(found)]
    options.out.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
