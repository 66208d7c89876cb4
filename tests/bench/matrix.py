"""Backends × methods × models: what runs here, what it costs, and how libraries compare with our simulations. A script.

    python tests/bench/matrix.py --out .github/MATRIX.md [--work runs/matrix] [--only torchao] [--models pocket llama]
    python tests/bench/matrix.py --out .github/MATRIX.md --page-only

All numbers go into the folder ``data`` beside the page, which is a digest of them; ``--page-only`` makes the digest of
what is there. Every row is a variant file like a user's, measured as ``harness check`` does. Rows are kept in the work
folder and taken from there again while their settings, the code of the harness and the versions of the libraries are
the same, so that a run that was stopped goes on where it was. To add a backend, add its cases to ``matrix_cases.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.errors import HarnessError
from harness.plan import make_plan
from harness.system.environment import prepare_threads
from harness.tables.store import StoreReader
from tests.bench.matrix_cases import CASES, Case, Sizes
from tests.bench.matrix_page import (
    Comparison,
    Matrix,
    Result,
    Row,
    comparisons,
    digest,
    read_data,
    results,
    versions,
    write_data,
)

if TYPE_CHECKING:
    from harness.concluding.pair import Observed

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
TOGETHER = 6
"""Variants that share a pass, and are held in memory at a time."""


@dataclass(frozen=True)
class Model:
    """A model with its documents. latency: settings of the measure. group: inputs that share a scale, where any do."""

    name: str
    folder: str
    judged: dict[str, Any]
    calibration: dict[str, Any]
    latency: dict[str, Any]
    group: int
    sizes: dict[str, int]
    """Inputs of every linear layer but the head, by name."""
    untrained: bool = False

    def settings(self) -> Sizes:
        """What cases have to know. Layers that groups do not divide are left out of grouped rows by their last name."""
        unfit = {name.rpartition(".")[2] for name, inputs in self.sizes.items() if inputs % self.group}
        return Sizes(self.group, ("lm_head", *(f"*.{name}" for name in sorted(unfit))))


class Quiet:
    """No progress within a row."""

    def step(self, what: str, done: int, of: int) -> None:
        """Say nothing."""


def models(folder: Path, wanted: Sequence[str], judged: int) -> Iterator[Model | str]:
    """The models, each made or found; for those that are not there a sentence."""
    from tests.helpers.tiny_models import FAMILIES

    def asked(name: str) -> bool:
        return not wanted or name in wanted

    timed = {"repeats": 6, "prompt_tokens": 64, "new_tokens": 4, "warmup": 1}
    if asked("pocket"):
        calibration = {"data": "pocket-calibration", "documents": 32, "tokens": 128}
        texts = {"data": "pocket-heldout", "max": judged, "context": 256}
        yield Model("pocket", "pocket", texts, calibration, timed, 32, linear_inputs("pocket"))
    stories = SHARED / "models" / "stories260K-hf"
    if asked("stories260K") and not stories.is_dir():
        yield f"stories260K: {stories} is not there"
    elif asked("stories260K"):
        texts, calibration = split(SHARED / "corpora" / "tinystories_valid_A_297.jsonl", folder / "stories", judged)
        yield Model("stories260K", str(stories), texts, calibration, timed, 32, linear_inputs(str(stories)))
    for name in FAMILIES:
        if asked(name):
            yield small(name, folder)


def small(name: str, folder: Path) -> Model | str:
    """An untrained model of a family in a folder of its own, with texts of random characters."""
    from tests.helpers.tiny_models import family, save

    place = folder / "models" / name
    place.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    lines = [json.dumps({"text": "".join(chr(chance.randint(33, 125)) for _ in range(40))}) for _ in range(16)]
    (place / "judged.jsonl").write_text("\n".join(lines[:8]))
    (place / "calibration.jsonl").write_text("\n".join(lines[8:]))
    try:
        save(family(name), place)
        sizes = linear_inputs(str(place))
    except Exception as error:  # noqa: BLE001 - a family that cannot be saved and loaded has no row
        return f"{name}: {first_line(error)}"
    return Model(
        name,
        str(place),
        {"data": str(place / "judged.jsonl"), "context": 48},
        {"data": str(place / "calibration.jsonl"), "documents": 8, "tokens": 48},
        {"repeats": 2, "prompt_tokens": 16, "new_tokens": 2, "warmup": 1},
        16,
        sizes,
        untrained=True,
    )


def split(source: Path, folder: Path, judged: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first documents of a file are judged, the last ones calibrate."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = source.read_text(encoding="utf-8").splitlines()
    for name, some in (("judged", lines[:judged]), ("calibration", lines[-32:])):
        (folder / f"{name}.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")
    calibration = {"data": str(folder / "calibration.jsonl"), "documents": 32, "tokens": 128}
    return {"data": str(folder / "judged.jsonl"), "context": 256}, calibration


def linear_inputs(model: str) -> dict[str, int]:
    """Inputs of every linear layer but the head."""
    from harness.models.loading import load
    from harness.modules.linears import linears, output_head, weight_of
    from harness.records import ModelSpec

    loaded = load(ModelSpec(model=model), "sizes").model
    return {name: weight_of(each).shape[1] for name, each in linears(loaded) if name != output_head(loaded)}


def run(model: Model, cases: Sequence[Case], work: Path, show: Callable[[str], None]) -> dict[str, Row]:
    """A row for every case, those that are known from the work folder first."""
    folder = work / "rows" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    stamp = fingerprint()
    rows: dict[str, Row] = {}
    waiting: list[tuple[Case, str]] = []
    for case in cases:
        key = hashlib.sha256(json.dumps([stamp, asdict(model), case.steps(model.settings())]).encode()).hexdigest()
        known = folder / f"{case.slug}.json"
        row = Row(**json.loads(known.read_text())) if known.exists() else None
        if row is None or row.key != key:
            waiting.append((case, key))
        else:
            rows[case.name] = row
    for start in range(0, len(waiting), TOGETHER):
        some = waiting[start : start + TOGETHER]
        begun = time.monotonic()
        made = measure(model, some, folder)
        took = (time.monotonic() - begun) / len(some)
        for (case, _), found in zip(some, made, strict=True):
            row = replace(found, took=took)
            (folder / f"{case.slug}.json").write_text(json.dumps(asdict(row)))
            rows[case.name] = row
            said = f"not run: {row.failed}" if row.failed else f"KL {row.kl:.5f}, {row.bits:.2f} bits"
            show(f"{model.name}: {case.name}: {said}")
    return {case.name: rows[case.name] for case in cases}


def measure(model: Model, some: Sequence[tuple[Case, str]], folder: Path) -> list[Row]:
    """Rows of a few cases, which go through the models together."""
    from harness.run import run_group

    measures = ["divergence", "memory", {"measure": "latency", **model.latency}]
    (folder / "table.yaml").write_text(yaml.safe_dump({"documents": model.judged, "measures": measures}))
    rule = {"rule": "at_most", "metric": "divergence.kl_mean", "limit": 100.0, "why": "everything is shown"}
    (folder / "any.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    failed: dict[str, str] = {}
    plans, outputs = [], []
    for case, _ in some:
        file = folder / f"{case.slug}.yaml"
        try:
            content = {
                "name": case.slug,
                "reference": {"model": model.folder},
                "variant": {"compress": case.steps(model.settings()), **case.files(model.folder, folder)},
                "calibration": model.calibration,
                "suites": ["./table.yaml"],
                "gates": ["./any.yaml"],
            }
            file.write_text(yaml.safe_dump(content))
            plans.append(make_plan(file))
        except HarnessError as error:
            failed[case.name] = first_line(error)
            continue
        outputs.append(folder / case.slug)
    results: Iterator[Observed | HarnessError] = iter(())
    if plans:
        try:
            results = iter(run_group(plans, outputs, Quiet()))
        except Exception as error:  # noqa: BLE001 - one that fails in a forward pass takes the others along
            if len(some) > 1:
                return [row for each in some for row in measure(model, [each], folder)]
            results = iter([HarnessError(f"{type(error).__name__}: {error}")])
    rows = []
    for case, key in some:
        result = HarnessError(failed[case.name]) if case.name in failed else next(results)
        if isinstance(result, HarnessError):
            rows.append(Row(key, failed=first_line(result)))
        else:
            rows.append(row_of(key, result, folder / case.slug))
    return rows


def row_of(key: str, observed: Observed, folder: Path) -> Row:
    """The numbers of a variant, and KL token by token with the document of each."""
    found = {m.name: m for m in observed.measurements if not m.labels}
    ratios = {m.labels.get("phase"): m.change for m in observed.measurements if m.name == "latency.ratio"}
    tokens = StoreReader(folder / "tables").read("table", "tokens", ("document", "kl"))
    kl = found["divergence.kl_mean"]
    if tokens is None or kl.change is None:
        return Row(key, failed="KL is not finite")
    bytes_now = found["memory.weight_bytes"].variant
    touched = [each for each in observed.variant.modules if each.backend or each.activations]
    return Row(
        key,
        real=sum(each.kernel == "real" for each in touched),
        simulated=sum(each.kernel == "simulated" for each in touched),
        cache=observed.variant.cache is not None,
        kl=kl.change,
        low=kl.low,
        high=kl.high,
        bits=bits(observed),
        stored=int(bytes_now or 0),
        prefill=ratios.get("prefill"),
        decode=ratios.get("decode"),
        seconds=observed.seconds["make variant"],
        tokens=tokens["kl"].tolist(),
        documents=tokens["document"].tolist(),
    )


def bits(observed: Observed) -> float:
    """Bits of a compressed weight, scales included; of a cached value where only the cache is compressed."""
    modules = [module for module in observed.variant.modules if module.backend]
    if not modules:
        return observed.variant.cache.bits_per_value if observed.variant.cache else 32.0
    return sum(m.parameters * m.bits_per_weight for m in modules) / max(1, sum(m.parameters for m in modules))


def fingerprint() -> str:
    """Changes when code of the harness or a version of a library does."""
    digest = hashlib.sha256(json.dumps(versions()).encode())
    for file in sorted((ROOT / "harness").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Where and what, without the paths of this machine."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = line.replace(str(ROOT), "…").replace("|", "\\|")
    before, found, after = line.partition(".yaml:")
    return (after.partition(": ")[2] if found and "/" in before else line)[:220]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "matrix", help="where rows are kept")
    parser.add_argument("--models", nargs="*", default=[], help="these models alone")
    parser.add_argument("--only", default="", help="cases whose name contains this, and what stands beside them")
    parser.add_argument("--judged", type=int, default=30, help="documents to judge trained models on")
    parser.add_argument("--page-only", action="store_true", help="make the page of the data that is there")
    options = parser.parse_args()
    data = options.out.parent / "data"
    if not options.page_only:
        write_data(make(options), data)
    options.out.write_text(digest(read_data(data)), encoding="utf-8")


def make(options: argparse.Namespace) -> Matrix:
    """Run what is not in the work folder yet."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prepare_threads()
    import torch

    torch.set_num_threads(1)
    cases = [case for case in CASES if options.only in case.name]
    cases += [case for case in CASES if case not in cases and any(each.beside == case.name for each in cases)]
    absent: list[str] = []
    lines: list[Result] = []
    pairs: list[Comparison] = []
    took = 0.0
    for model in models(options.work, options.models, options.judged):
        if isinstance(model, str):
            absent.append(model)
            continue
        rows = run(model, cases, options.work, lambda line: print(line, flush=True))
        took += sum(row.took for row in rows.values())
        lines += results(model.name, not model.untrained, rows, cases)
        if not model.untrained:
            pairs += comparisons(model.name, rows, cases)
    return Matrix(str(datetime.now(UTC).date()), round(took / 60), versions(), absent, lines, pairs)


if __name__ == "__main__":
    main()
