"""What the kill table says."""

from __future__ import annotations

import io

from rich.console import Console

from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Verdict
from harness.rules.at_most import AtMost
from harness.selftest.mutants import Variation
from harness.selftest.outcomes import assess, record_omission
from harness.selftest.table import conclusion, print_tables
from harness.terminal import Terminal

RULES = (
    RuleSpec(rule=AtMost(metric="divergence.kl_mean", limit=0.05, why="w"), where="g.yaml:3"),
    RuleSpec(rule=AtMost(metric="tasks.*.flips", limit=0.1, why="w"), where="g.yaml:4"),
)
GATE = GateSpec(name="g", source="g.yaml", rules=RULES)


def verdict(where: str, status: str, metric: str) -> Verdict:
    return Verdict.model_validate(
        {"gate": "g", "rule": "at_most", "metric": metric, "status": status, "expected": "", "found": "",
         "because": f"{metric} is too large", "level": "block", "where": where}
    )  # fmt: skip


KILLED = assess(Variation("dead", "mutant", "A bug."), [verdict("g.yaml:3", "fail", "divergence.kl_mean")], ())
ALIVE = assess(Variation("alive", "mutant", "Another bug."), [verdict("g.yaml:3", "pass", "divergence.kl_mean")], ())
OPEN = assess(Variation("open", "mutant", "A third."), [verdict("g.yaml:4", "inconclusive", "tasks.x.flips")], ())
STOPPED = assess(Variation("calm", "benign", "A recast."), [verdict("g.yaml:4", "inconclusive", "tasks.x.flips")], ())
NOBODY = record_omission(Variation("none", "mutant", "A fourth.", equivalent="nobody looks"), "nobody looks")


def test_the_conclusion_names_survivors_and_what_was_not_counted() -> None:
    lines = conclusion([KILLED, ALIVE, OPEN, STOPPED, NOBODY], "g")
    assert lines[0].startswith("not good enough: gate g kills 1 of 3 mutants (33.3 %, required 95 %)")
    assert lines[0].endswith("stops 1 of 1 harmless changes")
    assert "survived: alive: Another bug." in lines
    assert "undecided, not counted as killed: open: A third." in lines
    assert "harmless but stopped: calm: tasks.x.flips is too large" in lines
    assert "equivalent, not counted: none: nobody looks" in lines


def test_every_rule_has_a_row_also_one_that_caught_nothing() -> None:
    text = io.StringIO()
    print_tables([KILLED, OPEN], GATE, Terminal(Console(file=text, width=120)))
    rows = {line.split()[1]: line.split()[-3:] for line in text.getvalue().splitlines() if line.startswith("at_most")}
    assert rows == {"divergence.kl_mean": ["1", "1", "0"], "tasks.*.flips": ["0", "0", "1"]}
