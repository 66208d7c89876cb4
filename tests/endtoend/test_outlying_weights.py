"""Scales that belong to other rows: what documents hardly show, the weights show; the rule of ``ship`` decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plan import load_gate
from harness.rules.at_most import AtMost
from tests.endtoend.test_check import run

SUITE = "description: weights\ndocuments: {data: pocket-heldout, max: 2, context: 64}\nmeasures: [weight_error]\n"


def limit_of(gate: str) -> float:
    (rule,) = [each.rule for each in load_gate(gate, Path()).rules if each.rule.metric == "weights.outlying"]
    assert isinstance(rule, AtMost)
    assert rule.level == "block"
    return float(rule.limit)


@pytest.mark.parametrize("gate", ["ship", "strict"])
def test_permuted_row_scales_of_one_tensor_are_killed_and_good_weights_are_not_stopped(
    tmp_path: Path, gate: str
) -> None:
    (tmp_path / "weights.yaml").write_text(SUITE)
    rule = f"{{rule: at_most, metric: weights.outlying, limit: {limit_of(gate)}, why: as in {gate}}}"
    (tmp_path / "gate.yaml").write_text(f"description: weights\nrules: [{rule}]\n")
    only = [part for name in ("row_scales_permuted", "int8", "int4") for part in ("--only", name)]
    code, output = run(tmp_path, "selftest", "--gate", "./gate.yaml", "--suite", "./weights.yaml", *only)
    assert code == 0, output
    assert "kills 1 of 1" in output
