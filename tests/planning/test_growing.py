"""Suites that draw documents until their rules are decided: how they are written, refused, and shown before a run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from harness import cli
from harness.errors import PlanError
from harness.plan import make_plan, resolve_plan

VARIANT = "name: growing\nreference: {model: pocket}\nvariant:\n  compress: [{backend: round_to_nearest, bits: 4}]\n"
SUITE = "documents: {data: pocket-heldout, min: 40, max: 400, seed: 7}\nmeasures: [perplexity, divergence, memory]\n"
FIXED = "documents: {data: pocket-heldout, max: 400}\nmeasures: [perplexity, divergence, memory]\n"
RULE = "{rule: not_worse, metric: perplexity.ratio, margin: 0.02, on_inconclusive: extend, why: w}"
GATE = f"rules:\n  - {RULE}\n"


def write(folder: Path, suite: str = SUITE, gate: str = GATE, other: str = "") -> Path:
    (folder / "suite.yaml").write_text(suite, encoding="utf-8")
    (folder / "gate.yaml").write_text(gate, encoding="utf-8")
    (folder / "other.yaml").write_text(other or gate, encoding="utf-8")
    gates = "[./gate.yaml, ./other.yaml]" if other else "[./gate.yaml]"
    (folder / "variant.yaml").write_text(f"{VARIANT}suites: [./suite.yaml]\ngates: {gates}\n", encoding="utf-8")
    return folder / "variant.yaml"


def refused(path: Path) -> list[str]:
    with pytest.raises(PlanError) as caught:
        make_plan(path)
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_the_plan_records_looks_and_seed(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path, gate="sequential: betting\n" + GATE))
    spec = plan.suites[0].documents
    assert spec is not None
    assert (spec.min, spec.max, spec.seed) == (40, 400, 7)
    assert plan.gates[0].sequential == "betting"
    asked = resolve_plan(plan)
    assert asked["suites"][0]["documents"]["seed"] == 7
    assert asked["gates"][0]["sequential"] == "betting"
    assert asked["gates"][0]["rules"][0]["on_inconclusive"] == "extend"


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ("{data: pocket-heldout, min: 40}", ("min without max", "max: 400")),
        ("{data: pocket-heldout, min: 40, max: 30}", ("min 40 above max 30", "at most as many as max")),
        ("{data: pocket-heldout, min: 19, max: 30}", ("19", "a number of at least 20")),
        ("{data: pocket-heldout, min: 40, max: 400, packed: true}", ("packed: true", "write packed: false")),
    ],
)
def test_documents_that_cannot_be_drawn_one_by_one_are_refused(
    tmp_path: Path, documents: str, said: tuple[str, str]
) -> None:
    (problem,) = refused(write(tmp_path, suite=f"documents: {documents}\nmeasures: [perplexity]\n"))
    assert problem.startswith("suite.yaml:1")
    assert "documents.min" in problem
    for text in said:
        assert text in problem


def test_a_suite_without_anything_to_look_at_is_refused(tmp_path: Path) -> None:
    gate = "rules:\n  - {rule: at_most, metric: memory.weight_bytes, limit: 1.0e+9, why: w}\n"
    documents = "documents: {data: pocket-heldout, min: 40, max: 400}\nmeasures: [memory, outliers]\n"
    (problem,) = refused(write(tmp_path, documents, gate))
    assert "no measure of individual documents" in problem


def test_a_seed_for_a_file_has_a_use_where_documents_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(f"text {number}" for number in range(60)), encoding="utf-8")
    drawn = "documents: {data: texts.txt, min: 20, max: 60, seed: 3}\nmeasures: [perplexity]\n"
    documents = make_plan(write(tmp_path, drawn)).suites[0].documents
    assert documents is not None
    assert documents.seed == 3
    (problem,) = refused(write(tmp_path, drawn.replace("min: 20, ", ""), GATE.replace("extend", "block")))
    assert "a seed for texts.txt, which does not use it" in problem


@pytest.mark.parametrize("metric", ["perplexity.ratio", "memory.weight_bytes"])
def test_extend_needs_a_suite_that_can_grow(tmp_path: Path, metric: str) -> None:
    suite = FIXED if metric == "perplexity.ratio" else SUITE
    rule = f"{{rule: at_most, metric: {metric}, limit: 1.0e+9, of: change, on_inconclusive: extend, why: w}}"
    block = "  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: w}\n"
    (problem,) = refused(write(tmp_path, suite, f"rules:\n  - {rule}\n{block}"))
    assert problem.startswith("gate.yaml:2")
    assert f"no suite can measure more documents for {metric}" in problem
    assert "min: 40 and max: 400" in problem
    assert "on_inconclusive: block" in problem


def test_documents_that_are_wrong_are_said_once(tmp_path: Path) -> None:
    wrong = SUITE.replace("min: 40", "min: forty")
    assert len(refused(write(tmp_path, wrong))) == 1


@pytest.mark.parametrize(("value", "said"), [("bettin", "did you mean betting?"), ("[betting]", "one of betting")])
def test_an_unknown_method_is_refused(tmp_path: Path, value: str, said: str) -> None:
    (problem,) = refused(write(tmp_path, gate=f"sequential: {value}\n{GATE}"))
    assert problem.startswith("gate.yaml:1")
    assert said in problem


def test_two_gates_cannot_want_two_methods(tmp_path: Path) -> None:
    other = f"sequential: group_sequential\n{GATE}"
    (problem,) = refused(write(tmp_path, gate=f"sequential: betting\n{GATE}", other=other))
    assert problem.startswith("other.yaml:1")
    assert "group_sequential, and betting in gate.yaml" in problem
    assert make_plan(write(tmp_path, gate=GATE, other=other)).gates[1].sequential == "group_sequential"


def shown(monkeypatch: pytest.MonkeyPatch, path: Path) -> str:
    monkeypatch.chdir(path.parent)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert cli._run(["plan", "variant.yaml"]) == 0
    return out.getvalue()


def test_the_looks_are_shown_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(monkeypatch, write(tmp_path))
    assert (
        "    interim    looks after 40, 50, 63, 80, 100, 126, 159, 200, 252, 318 and 400 documents in random order "
        "(seed 7), group-sequential intervals\n    stops      when perplexity.ratio are decided\n"
    ) in out


def test_a_suite_that_nothing_waits_for_is_shown_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = "sequential: betting\nrules:\n  - {rule: at_most, metric: memory.weight_bytes, limit: 1.0e+9, why: w}\n"
    out = shown(monkeypatch, write(tmp_path, gate=gate))
    assert "betting intervals" in out
    assert "stops      at max: no rule extends the sample" in out


def test_a_suite_of_a_fixed_size_shows_no_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(monkeypatch, write(tmp_path, FIXED, GATE.replace("on_inconclusive: extend, ", "")))
    assert "looks" not in out


DRAWN = "measures: [{{measure: tasks, tasks: [pocket_sums], {}}}]\n"
ITEMS = "items: {min: 250, max: 1000, seed: 3}"
WAITS = "rules:\n  - {rule: not_worse, metric: 'tasks.*.exact_match', margin: 0.03, on_inconclusive: extend, why: w}\n"


def test_items_of_tasks_are_drawn_as_documents_are(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path, DRAWN.format(ITEMS), WAITS))
    spec = plan.suites[0].measures[0].item_sampling()
    assert spec is not None
    assert (spec.min, spec.max, spec.seed, spec.passage) == (250, 1000, 3, None)
    (probe,) = (each for each in plan.suites[0].probes if each.kind == "items")
    assert probe.settings()["items"] == {"min": 250, "max": 1000, "seed": 3, "passage": None, "after_failure": "stop"}
    (said,) = refused(write(tmp_path, DRAWN.format("limit: 200"), WAITS))
    assert "on_inconclusive" in said, "a suite of a fixed size cannot extend its sample"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (f"{ITEMS}, limit: 200", "limit or items says how many items are scored, and only one of them"),
        ("items: {min: 300, max: 200}", "min 300 is above max 200"),
        ("items: {min: 5, max: 200}", "items.min: found 5"),
        ("items: {min: 250}", "items.max"),
    ],
)
def test_items_that_cannot_be_drawn_are_refused_in_their_line(tmp_path: Path, settings: str, said: str) -> None:
    (found,) = refused(write(tmp_path, DRAWN.format(settings), WAITS.replace("on_inconclusive: extend, ", "")))
    assert said in found
    assert found.startswith("suite.yaml:1")
