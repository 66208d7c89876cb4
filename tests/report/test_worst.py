"""The module, document and task with the largest loss, named for who has no report."""

from __future__ import annotations

from harness.records import Measurement
from harness.report.digest import digest
from harness.report.worst import list_worst
from tests.helpers.hostile import small


def found(name: str, change: float, **labels: str) -> Measurement:
    return Measurement(
        name=name, unit="ratio", better="lower", basis="counted", n=1, clusters=1, method="", change=change,
        labels=labels,
    )  # fmt: skip


def test_what_lost_most_is_named_and_what_lost_nothing_is_not() -> None:
    run = small().run
    measurements = (
        found("layers.worst", 0.75, module="model.layers.3.o_proj", kind="linear"),
        found("weights.worst", 0.0, module="model.layers.0.q_proj"),
        found("perplexity.broken_documents", 0.5, worst_document="long/33"),
        found("layers.relative_error", 0.9, module="model.layers.9"),
    )
    said = list_worst(run.model_copy(update={"measurements": measurements}))
    assert said[0].startswith("model.layers.3.o_proj (")
    assert "0.75" in said[0]
    assert said[1:] == ["document long/33 (largest loss)"]


def test_a_rule_without_a_number_sends_nobody_to_the_worst_modules() -> None:
    stopping = {
        verdict: [each for each in digest(small(verdict).run).findings if each.stops] for verdict in ("fail", "error")
    }
    assert [each for each in stopping["fail"] if "; look first at " in each.remedy]
    assert [each.remedy for each in stopping["error"]] == [
        "correct the file, setting or task that the reason names, and check again"
    ]
