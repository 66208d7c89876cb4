"""A suite with too few documents for a gate is named, with the number that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.forecast.linting.hopeless import find_hopeless
from harness.plan import load_gate, load_suite
from tests.endtoend.test_plan_and_lint import said

SMOKE = (
    "the suite smoke can never pass the gate ship; perplexity.broken_documents takes 72 documents even where nothing "
    "is worse, and the suite has 40; measure 72 documents or more, or judge by a gate made for so few"
)


def findings(gate: str, suite: str) -> list[str]:
    return list(map(str, find_hopeless([load_gate(gate, Path())], [load_suite(suite, Path())])))


def test_smoke_can_never_pass_ship() -> None:
    (found,) = findings("ship", "smoke")
    assert found == f"gates/ship.yaml:19: {SMOKE}"


@pytest.mark.parametrize(("gate", "suite"), [("smoke", "smoke"), ("ship", "core"), ("ship", "texts")])
def test_bundled_suites_and_gates_that_belong_together(gate: str, suite: str) -> None:
    assert findings(gate, suite) == []


@pytest.mark.parametrize(
    ("rule", "most", "needed"),
    [
        ("{rule: at_most, metric: perplexity.broken_documents, limit: 0.05, why: w}", 71, 72),
        ("{rule: at_most, metric: perplexity.broken_documents, limit: 0.05, why: w}", 72, None),
        ("{rule: at_most, metric: perplexity.broken_documents, limit: 0.05, level: warn, why: w}", 40, None),
        ("{rule: at_most, metric: perplexity.broken_documents, limit: 0.05, on_inconclusive: warn, why: w}", 40, None),
        ("{rule: not_worse, metric: perplexity.ratio, margin: 0.02, min_documents: 50, why: w}", 40, 50),
    ],
)
def test_the_number_that_a_rule_takes(tmp_path: Path, rule: str, most: int, needed: int | None) -> None:
    block = "  - {rule: at_most, metric: logits.max_abs_diff, limit: 100.0, decide: point, why: w}\n"
    (tmp_path / "g.yaml").write_text(f"rules:\n  - {rule}\n{block}")
    (tmp_path / "s.yaml").write_text(
        f"documents: {{data: pocket-heldout, max: {most}}}\nmeasures: [perplexity, logits]\n"
    )
    found = findings(str(tmp_path / "g.yaml"), str(tmp_path / "s.yaml"))
    assert [f"takes {needed} documents" in each for each in found] == [True] * (needed is not None)


def test_as_many_as_are_named_can_pass() -> None:
    """What the finding asks for is enough: with 72 documents nothing is found any more."""
    suite = load_suite("smoke", Path())
    assert suite.documents is not None
    for most, hopeless in ((71, True), (72, False)):
        documents = suite.documents.model_copy(update={"max": most})
        changed = suite.model_copy(update={"documents": documents})
        assert bool(list(find_hopeless([load_gate("ship", Path())], [changed]))) is hopeless


@pytest.mark.parametrize("mended", [False, True])
def test_plan_says_it_beside_mistakes_and_without_any(tmp_path: Path, mended: bool) -> None:
    suite = "smoke"
    if mended:
        suite = "./few.yaml"
        (tmp_path / "few.yaml").write_text(Path("suites/core.yaml").read_text().replace("max: 200", "max: 40"))
    (tmp_path / "v.yaml").write_text(
        "name: v\nreference: {model: pocket}\nvariant: {compress: [{backend: round_to_nearest, bits: 8}]}\n"
        f"suites: [{suite}]\ngates: [ship]\n"
    )
    code, out, error = said("plan", str(tmp_path / "v.yaml"))
    assert code == (0 if mended else 2)
    assert "can never pass the gate ship" in out + error
    assert "measure 72 documents or more" in out + error
