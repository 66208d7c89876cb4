"""The key ``variant.artifact``: what it means without being written, and where it cannot mean anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.judge import rejudge
from harness.plan import load_gate, make_plan, resolve_plan
from harness.planning.specs import Plan
from tests.helpers.made_run import make_run

STEPS = "{compress: [{backend: round_to_nearest, bits: 4}]%s}"
SUITE = "documents: {data: pocket-heldout, max: 20}\nmeasures: [%s]\n"
GATE = "rules:\n  - {rule: at_most, metric: %s, limit: 0.01, decide: point, why: w%s}\n"


def write(
    folder: Path,
    artifact: str = "",
    variant: str = STEPS,
    measures: str = "divergence, artifact",
    metric: str = "artifact.kl_max",
    more: str = "",
) -> Path:
    (folder / "suite.yaml").write_text(SUITE % measures)
    (folder / "gate.yaml").write_text(
        GATE % (metric, more) + "  - {rule: at_most, metric: divergence.kl_mean, limit: 0.05, why: w}\n"
    )
    path = folder / "v.yaml"
    variant = variant % (f", artifact: {artifact}" if artifact else "") if "%s" in variant else variant
    path.write_text(
        f"name: v\nreference: {{model: pocket}}\nvariant: {variant}\nsuites: [./suite.yaml]\ngates: [./gate.yaml]\n"
    )
    return path


def plan(path: Path) -> Plan:
    return make_plan(path)


@pytest.mark.parametrize("artifact", ["", "save"])
def test_what_is_made_is_saved_where_a_suite_measures_it(artifact: str, tmp_path: Path) -> None:
    made = plan(write(tmp_path, artifact))
    assert made.variant.artifact == "save"
    assert made.variant.made_here
    assert [probe.kind for probe in made.suites[0].probes] == ["artifact", "comparability", "tokens"]
    assert resolve_plan(made)["variant"]["artifact"] == "save"


def test_a_suite_that_does_not_measure_it_needs_nothing(tmp_path: Path) -> None:
    assert plan(write(tmp_path, measures="divergence", metric="divergence.kl_max"))
    assert plan(write(tmp_path, "none", measures="divergence", metric="divergence.kl_max"))


def test_none_is_fine_for_gates_that_do_not_ask(tmp_path: Path) -> None:
    assert plan(write(tmp_path, "none", metric="divergence.kl_max")).variant.artifact == "none"
    assert plan(write(tmp_path, "none", more=", level: warn"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifact": "none"}, ("none, and the gate gate has blocking rules on artifact.kl_max", "expected save")),
        ({"artifact": "none", "metric": '"*.kl_max"'}, ("blocking rules on *.kl_max",)),
        (
            {"artifact": "save", "measures": "divergence", "metric": "divergence.kl_max"},
            ("no suite measures the artifact", "add artifact to the measures"),
        ),
        ({"artifact": "always"}, ("'always'", "'save' or 'none'")),
        (
            {"variant": "{model: reference, artifact: save}"},
            ("the variant is not changed", "no such key without steps"),
        ),
        ({"variant": "{artifact: none}"}, ("the variant is not changed",)),
    ],
)
def test_a_mistake_is_named_with_its_line(changes: dict[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        plan(write(tmp_path, **changes))
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "variant.artifact")
    assert all(word in str(problem) for word in words), problem


def test_a_suite_without_documents_cannot_measure_it(tmp_path: Path) -> None:
    path = write(tmp_path, measures="artifact")
    (tmp_path / "suite.yaml").write_text("measures: [artifact]\n")
    (tmp_path / "gate.yaml").write_text(GATE % ("artifact.kl_max", ""))
    with pytest.raises(PlanError, match="no documents, expected documents, which artifact needs"):
        plan(path)


def test_the_shipped_gates_ask_for_it(tmp_path: Path) -> None:
    for gate in ("ship", "strict"):
        path = write(tmp_path, "none")
        path.write_text(path.read_text().replace("./suite.yaml", "core").replace("./gate.yaml", gate))
        with pytest.raises(PlanError, match=rf"the gate {gate} has blocking rules on artifact\.kl_max"):
            plan(path)


def test_an_old_run_that_never_looked_is_an_error_and_no_pass() -> None:
    verdicts = rejudge(make_run().run, [load_gate("ship", Path())]).verdicts
    found = {each.metric: (each.status, each.level) for each in verdicts if each.metric.startswith("artifact.")}
    assert found["artifact.kl_max"] == found["artifact.texts_changed"] == ("error", "block")
