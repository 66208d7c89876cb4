"""The matrix as data (one CSV row for every library, method and model) and as a digest of one page made from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.statistics import mean, mean_interval
from tests.bench.matrix_cases import LIBRARIES, Case

HEAD = """
KL is KL(reference ‖ variant) in nats per token. *real*: the stored format is what the matrix product reads;
*simulated*: values of that format are held as floats; both: some modules are the one, some the other. *families*: the
small untrained models, one of each architecture, on which the row runs and compresses something.

The data: [matrix.csv](data/matrix.csv) has every row with the 95 % interval of KL (clustered by document), modules
compressed, bits stored for each compressed weight (scales included; of simulations those that would be stored),
megabytes of all weights, time of the variant / time of the reference in prefill and decode (taken on a machine that was
not idle; meaningless for simulations), seconds to make the variant, and the reason where a row does not run. Rows with
groups leave out layers whose inputs the groups do not divide. [matrix_pairs.csv](data/matrix_pairs.csv) has a library
beside the simulation of the same recipe, with the paired difference of their KL on the same tokens.
"""


@dataclass(frozen=True)
class Row:
    """One variant of one model as the work folder keeps it: its numbers, or why there are none."""

    key: str
    failed: str = ""
    real: int = 0
    simulated: int = 0
    cache: bool = False
    kl: float = 0.0
    low: float | None = None
    high: float | None = None
    bits: float = 0.0
    stored: int = 0
    prefill: float | None = None
    decode: float | None = None
    seconds: float = 0.0
    took: float = 0.0
    """Seconds of the row with all its measurements; rows that went together share theirs."""
    tokens: list[float] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One line of matrix.csv. Numbers are text, as written; empty where there is none."""

    model: str
    trained: str
    backend: str
    method: str
    real: str = ""
    simulated: str = ""
    cache: str = ""
    kl: str = ""
    kl_low: str = ""
    kl_high: str = ""
    bits: str = ""
    megabytes: str = ""
    prefill: str = ""
    decode: str = ""
    seconds: str = ""
    not_run: str = ""


@dataclass(frozen=True)
class Comparison:
    """One line of matrix_pairs.csv: a library and the simulation of the same recipe on one model.

    result: ``same`` numbers, ``agree`` (the interval of the difference holds 0), ``differ``, or ``undecided`` (too few
    documents). cause: why they may differ, where that is known.
    """

    model: str
    library: str
    simulation: str
    kl_library: str
    kl_simulation: str
    difference: str
    low: str
    high: str
    result: str
    cause: str


@dataclass(frozen=True)
class Matrix:
    """The content of the data files. absent: models that are not there, each with the reason."""

    made: str
    minutes: int
    versions: Mapping[str, str]
    absent: Sequence[str]
    results: Sequence[Result]
    comparisons: Sequence[Comparison]


def versions() -> dict[str, str]:
    """Versions of the libraries by the name that pip knows."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def results(model: str, trained: bool, rows: Mapping[str, Row], cases: Sequence[Case]) -> Iterator[Result]:
    """One line for every case on a model."""
    for case in cases:
        row, place = rows[case.name], (model, "yes" if trained else "no", case.backend, case.method)
        if row.failed:
            yield Result(*place, not_run=row.failed)
            continue
        kl, low, high = (_number(each, 6) for each in (row.kl, row.low, row.high))
        bits, size = _number(row.bits, 2), _number(row.stored / 1e6, 3)
        prefill, decode = (_number(each, 2) for each in (row.prefill, row.decode))
        kept = (str(row.real), str(row.simulated), "yes" if row.cache else "no")
        yield Result(*place, *kept, kl, low, high, bits, size, prefill, decode, _number(row.seconds, 1))


def comparisons(model: str, rows: Mapping[str, Row], cases: Sequence[Case]) -> Iterator[Comparison]:
    """Library and simulation of one recipe, with the paired difference of their KL on the same tokens."""
    for case in cases:
        if not case.beside or rows[case.name].failed or rows[case.beside].failed:
            continue
        library, ours = rows[case.name], rows[case.beside]
        differences = [a - b for a, b in zip(library.tokens, ours.tokens, strict=True)]
        interval = mean_interval(differences, library.documents)
        low = high = None
        if not any(differences):
            result = "same"
        elif interval is None:
            result = "undecided"
        else:
            low, high = interval.low, interval.high
            result = "agree" if low <= 0 <= high else "differ"
        found = (library.kl, ours.kl, mean(differences), low, high)
        kl, own_kl, difference, lower, upper = (_number(each, 6) for each in found)
        cause = case.differs if result == "differ" else ""
        yield Comparison(model, case.name, case.beside, kl, own_kl, difference, lower, upper, result, cause)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write_data(matrix: Matrix, folder: Path) -> None:
    """Write the three files of the data."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"made": matrix.made, "minutes": matrix.minutes, "versions": matrix.versions, "absent": matrix.absent}
    (folder / "matrix_about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, kind, lines in (
        ("matrix.csv", Result, matrix.results),
        ("matrix_pairs.csv", Comparison, matrix.comparisons),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, [each.name for each in fields(kind)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(line) for line in lines)


def read_data(folder: Path) -> Matrix:
    """What `write_data` wrote."""
    about = json.loads((folder / "matrix_about.json").read_text(encoding="utf-8"))
    with (folder / "matrix.csv").open(encoding="utf-8", newline="") as stream:
        lines = [Result(**line) for line in csv.DictReader(stream)]
    with (folder / "matrix_pairs.csv").open(encoding="utf-8", newline="") as stream:
        pairs = [Comparison(**line) for line in csv.DictReader(stream)]
    return Matrix(**about, results=lines, comparisons=pairs)


def digest(matrix: Matrix) -> str:
    """The page: one line for every library and method, then how libraries compare with simulations."""
    listed = ", ".join(f"{name} {number}" for name, number in matrix.versions.items())
    lines = ["# Libraries × methods × models", ""]
    lines += [
        f"Made by `make matrix` on {matrix.made} in {matrix.minutes} minutes, on one CPU thread in float32: {listed}."
    ]
    lines += [HEAD.rstrip(), "", *_table(matrix.results), "", *_compared(matrix.comparisons)]
    if matrix.absent:
        lines += ["", f"Not there: {'; '.join(matrix.absent)}."]
    return "\n".join(lines) + "\n"


def _table(every: Sequence[Result]) -> Iterator[str]:
    trained = list(dict.fromkeys(each.model for each in every if each.trained == "yes"))
    families = list(dict.fromkeys(each.model for each in every if each.trained == "no"))
    heads = ["backend", "method", "kernel", *(f"KL {model}" for model in trained), "families"]
    yield f"| {' | '.join(heads)} |"
    yield f"| --- | --- | --- |{' ---: |' * len(trained)} --- |"
    cases: dict[tuple[str, str], dict[str, Result]] = {}
    for each in every:
        cases.setdefault((each.backend, each.method), {})[each.model] = each
    for (backend, method), found in cases.items():
        compressed = {model: each for model, each in found.items() if _kinds(each)}
        kl = [f"{float(compressed[model].kl):.5f}" if model in compressed else "–" for model in trained]
        kernel = ", ".join(dict.fromkeys(kind for each in compressed.values() for kind in _kinds(each))) or "–"
        runs = [model for model in families if model in compressed]
        yield f"| {' | '.join([backend, method, kernel, *kl, _runs_on(runs, families)])} |"


def _kinds(result: Result) -> list[str]:
    """How what was compressed is computed; nothing where the row does not run, or left everything as it was."""
    counts = {"real": result.real, "simulated": result.simulated, "cache": "1" if result.cache == "yes" else ""}
    return [kind for kind, count in counts.items() if int(count or 0)]


def _runs_on(runs: Sequence[str], families: Sequence[str]) -> str:
    missing = [model for model in families if model not in runs]
    if not runs:
        return "none" if families else ""
    if not missing:
        return "all"
    return f"all but {', '.join(missing)}" if len(missing) <= len(runs) else f"only {', '.join(runs)}"


def _compared(pairs: Sequence[Comparison]) -> Iterator[str]:
    """How many pairs agree, and of those that differ why."""
    counts = {result: sum(each.result == result for each in pairs) for result in ("same", "agree", "undecided")}
    yield "## Libraries beside simulations of the same recipe"
    yield ""
    yield f"Of {len(pairs)} pairs {counts['same']} give the same numbers, {counts['agree']} agree (the 95 % interval of"
    yield f"the paired difference holds 0) and {counts['undecided']} have too few documents. The others differ:"
    yield ""
    models = list(dict.fromkeys(each.model for each in pairs))
    yield f"| library | {' | '.join(f'KL {model}, library / simulation' for model in models)} | cause |"
    yield f"| --- |{' --- |' * len(models)} --- |"
    differing: dict[tuple[str, str], dict[str, Comparison]] = {}
    for each in pairs:
        if each.result == "differ":
            differing.setdefault((each.library, each.cause), {})[each.model] = each
    for (library, cause), found in differing.items():
        cells = [_both(found[model]) if model in found else "" for model in models]
        yield f"| {' | '.join([library, *cells, cause or '**not known**'])} |"


def _both(pair: Comparison) -> str:
    return f"{float(pair.kl_library):.5f} / {float(pair.kl_simulation):.5f}"
