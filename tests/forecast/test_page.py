"""What the printed plan says of the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.backends.round_to_nearest import RoundToNearest
from harness.forecast.cost import Cost
from harness.forecast.page import _artifact, _models, _range, _seconds, _suites
from harness.measures.memory import Memory
from harness.measures.tasks import Tasks
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.artifact import Artifact
from harness.probes.tokens import Tokens
from harness.records import ItemsSpec, ModelSpec
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse

RULE = RuleSpec(rule=AtMost(metric="memory.weight_bytes", limit=1e9, why="any size"), where="gate.yaml:1")


@pytest.mark.parametrize(
    ("fields", "probes", "said"),
    [
        ({"compress": (RoundToNearest(bits=8),)}, (Tokens(),), "not checked: no suite has the measure artifact"),
        ({"model": "folder"}, (Artifact(),), "the files that the variant is loaded from; nothing is saved"),
        ({"compress": (RoundToNearest(bits=8),), "artifact": "none"}, (Artifact(),), "none: the variant is judged"),
        ({"compress": (RoundToNearest(bits=8),)}, (Artifact(),), "saved, reloaded in a fresh process"),
    ],
)
def test_what_becomes_of_the_artifact_is_said(fields: dict[str, Any], probes: tuple[Any, ...], said: str) -> None:
    plan = Plan(
        name="p",
        source="p.yaml",
        reference=ModelSpec(model="pocket", dtype="float32"),
        variant=VariantSpec(**fields),
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),), probes=probes),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RULE,)),),
    )
    assert _artifact(plan).startswith(said)


def test_folders_whose_python_code_will_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("task: odd\ndataset_path: json\n")
    own = Tasks(tasks=("odd",), include=(str(tmp_path),))
    suites = [
        SuiteSpec(name="s", source="s.yaml", measures=(measure,), probes=())
        for measure in (own, Tasks(tasks=("pocket_facts",)))
    ]
    executed = [line.strip() for line in _suites(suites, ()) if "executes" in line]
    assert executed == [f"executes   Python code that the files in {tmp_path} name, with your rights"]


def test_the_looks_at_items_of_tasks_are_shown_with_the_rules_that_wait() -> None:
    drawn = Tasks(tasks=("pocket_facts", "pocket_sums"), items=ItemsSpec(min=250, max=1000, seed=3))
    suite = SuiteSpec(name="s", source="s.yaml", measures=(Memory(), drawn), probes=())
    waits = NotWorse(metric="tasks.*.accuracy", margin=0.03, why="w")
    gate = GateSpec(name="g", source="g.yaml", rules=(RULE, RuleSpec(rule=waits, where="g.yaml:2")))
    lines = list(_suites([suite], [gate]))
    assert "    items      at most pocket_facts 1000, pocket_sums 1000" in lines
    looks = "250, 315, 397, 500, 630, 794 and 1000 items of each task in random order (seed 3)"
    assert f"    interim    looks after {looks}, group-sequential intervals" in lines
    assert "    stops      when tasks.*.accuracy are decided on its task" in lines
    alone = list(_suites([suite], [gate.model_copy(update={"rules": (RULE,)})]))
    assert "    stops      at max: no rule extends the sample on its task" in alone


def test_time_is_a_range_where_the_rules_decide_how_long_it_takes() -> None:
    found = _range(Cost(400.0, "", None, "", 40.0))
    assert found == f"{_seconds(40.0)}, if every rule is decided at its first look, to {_seconds(400.0)}"
    assert (
        _seconds(40.0)
        != _seconds(400.0)
        == _range(Cost(400.0, "", None, "", 400.0))
        == _range(Cost(400.0, "", None, ""))
    )


@pytest.mark.parametrize("merge", [True, False])
def test_a_variant_that_is_an_adapter_alone_is_not_called_the_reference(merge: bool) -> None:
    plan = Plan(
        name="p",
        source="p.yaml",
        reference=ModelSpec(model="pocket", dtype="float32"),
        variant=VariantSpec(adapter="./tuned", merge=merge),
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),), probes=()),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RULE,)),),
    )
    lines = list(_models(plan))
    assert "  variant      the reference with an adapter, float32, 0 steps" in lines
    assert f"  adapter      ./tuned, {'merged before the steps' if merge else 'attached, not merged'}" in lines
