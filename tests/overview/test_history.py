"""What changed between two runs, what moved, and whether that is noise."""

from __future__ import annotations

import pytest

from harness.overview.history import find_changes, find_moves, find_series, find_steps
from harness.records import Run
from tests.overview.conftest import MakeRun


def moved(run: Run, name: str, by: float) -> Run:
    """The run with one metric and its interval shifted."""
    shifted = [
        m.model_copy(
            update={key: None if getattr(m, key) is None else getattr(m, key) + by for key in ("change", "low", "high")}
        )
        if m.name == name
        else m
        for m in run.measurements
    ]
    return run.model_copy(update={"measurements": tuple(shifted)})


def with_versions(run: Run, **packages: str) -> Run:
    environment = run.environment.model_copy(update={"packages": run.environment.packages | packages})
    return run.model_copy(update={"environment": environment, "data_key": "7e" * 32})


def test_equal_runs_have_no_changes_and_no_moves(alike: MakeRun) -> None:
    (step,) = find_steps([alike("a"), alike("a")])
    assert (step.changes, step.moves, step.flipped, step.same_inputs) == ((), (), False, True)
    assert step.explanation == "The inputs and all numbers are the same."


def test_a_move_with_the_same_inputs_is_noise(alike: MakeRun) -> None:
    (step,) = find_steps([alike("a"), moved(alike("a"), "divergence.kl_mean", 0.5)])
    assert step.explanation.startswith("The inputs are the same, so what moved is noise of the computation")


def test_another_gate_is_named_as_the_cause_of_another_verdict(alike: MakeRun) -> None:
    before, after = alike("a"), alike("a", "fail", measurements=alike("a").measurements)
    gates = [gate | {"rules": gate["rules"][:1]} for gate in after.asked["gates"]]
    after = after.model_copy(update={"asked": after.asked | {"gates": gates}})
    (step,) = find_steps([before, after])
    assert step.flipped
    assert {change.topic for change in step.changes} >= {"gates"}
    assert step.same_inputs
    assert step.explanation == "The inputs are the same; only the rules changed."


def test_one_change_is_the_cause_of_what_left_its_interval(alike: MakeRun) -> None:
    (step,) = find_steps([alike("a"), moved(with_versions(alike("a"), torch="2.14.1"), "divergence.kl_mean", 0.5)])
    assert [(c.topic, c.what, c.before, c.after) for c in step.changes] == [("versions", "torch", "2.13.0", "2.14.1")]
    assert step.explanation.endswith("comes from the one thing that changed: versions of libraries.")
    (move,) = step.moves
    assert move.beyond


def test_a_move_within_the_interval_is_noise_of_the_sample(alike: MakeRun) -> None:
    (step,) = find_steps([alike("a"), moved(with_versions(alike("a"), torch="2.14.1"), "divergence.kl_mean", 1e-5)])
    assert not step.moves[0].beyond
    assert "within the noise of the sample" in step.explanation


def test_documents_with_other_content_are_named_where_nothing_else_changed(alike: MakeRun) -> None:
    after = moved(alike("a"), "divergence.kl_mean", 0.5).model_copy(update={"data_key": "11" * 32})
    (step,) = find_steps([alike("a"), after])
    assert step.explanation.endswith("comes from the documents: other content from the same source.")


@pytest.mark.parametrize(
    ("side", "field", "topic"),
    [("reference", "weights_sha256", "reference"), ("variant", "tokenizer_sha256", "variant")],
)
def test_other_files_of_a_model_are_a_change_of_that_side(alike: MakeRun, side: str, field: str, topic: str) -> None:
    run = alike("a")
    after = run.model_copy(update={side: getattr(run, side).model_copy(update={field: "00" * 32})})
    (change,) = find_changes(run, after)
    assert (change.topic, change.what, change.after) == (topic, field.removesuffix("_sha256"), "0" * 12)


def test_where_a_file_stood_is_no_change(alike: MakeRun) -> None:
    run = alike("a")
    gates = [gate | {"source": "elsewhere.yaml"} for gate in run.asked["gates"]]
    assert find_changes(run, run.model_copy(update={"asked": run.asked | {"gates": gates}})) == []


def test_metrics_of_rules_that_are_decided_otherwise_come_first(alike: MakeRun) -> None:
    before = alike("a")
    after = alike("a", "fail")
    moves = find_moves(before, after)
    decided = [move.decided for move in moves]
    assert any(decided)
    assert decided == sorted(decided, reverse=True)


def test_a_series_has_a_point_for_every_run_with_the_limit_of_that_run(alike: MakeRun) -> None:
    runs = [alike("a"), alike("a", "fail"), alike("a")]
    series = find_series(runs)
    assert series
    for each in series:
        assert [point.run for point in each.points] == sorted({point.run for point in each.points})
        assert all(point.limits for point in each.points)
    assert any(len(each.points) == 3 for each in series)
