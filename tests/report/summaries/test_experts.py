"""What the report says of mixtures of experts."""

from __future__ import annotations

import pandas as pd

from harness.report.summaries.experts import map_weight_errors, read_mixtures
from harness.report.summaries.layers import read_weight_errors
from harness.report.summaries.suite_tables import SuiteTables
from harness.system.resources import folder
from harness.writers.report_html import render
from tests.helpers.made_run import make_run
from tests.helpers.made_tables import MadeTables

COLUMNS = ["side", "module", "expert", "tokens", "agreeing", "calibration"]
ROUTED = [
    ("reference", "a", 0, 5, -1, -1), ("reference", "a", 1, 5, -1, -1),
    ("variant", "a", 0, 8, 6, 3), ("variant", "a", 1, 2, 1, 9),
    ("variant", "b", 0, 10, 10, 0), ("variant", "b", 1, 0, 0, 4),
]  # fmt: skip


def frames(**more: pd.DataFrame) -> MadeTables:
    return MadeTables({"experts": pd.DataFrame(ROUTED, columns=COLUMNS)} | more)


def test_each_mixture_of_the_variant_is_summed_up_the_uncalibrated_first() -> None:
    first, second = read_mixtures(SuiteTables("core", frames()))
    assert (first.module, first.unreached, first.unused, first.fewest_calibration) == ("b", (0,), (1,), 0)
    assert (second.module, second.fewest, second.most, second.agreement) == ("a", 2, 8, 0.7)
    assert (second.unreached_words, second.unused_words) == ("", "")


def test_what_is_not_known_is_not_made_up() -> None:
    unknown = pd.DataFrame([("variant", "a", 0, -1, -1, -1), ("variant", "a", 1, 3, -1, -1)], columns=COLUMNS)
    (found,) = read_mixtures(SuiteTables("core", MadeTables({"experts": unknown})))
    assert (found.fewest, found.most, found.agreement, found.fewest_calibration) == (None, None, None, None)
    assert found.unused == ()
    dense = pd.DataFrame([("none", "", -1, 0, -1, -1)], columns=COLUMNS)
    assert read_mixtures(SuiteTables("core", MadeTables({"experts": dense}))) == []
    assert read_mixtures(SuiteTables("core", MadeTables({}))) == []


def test_the_page_shows_experts_and_errors_of_weights() -> None:
    made = make_run("fail", documents=21, length=40)
    module = "model.layers.2.mlp.down_proj"
    weights = pd.DataFrame(
        {"side": ["reference", "variant", "variant"], "module": [module, module, "model.norm"],
         "relative_error": [float("nan"), 0.12345, float("nan")]}
    )  # fmt: skip
    tables = MadeTables(made.tables.frames | frames().frames | {"weights": weights})
    assert read_weight_errors(SuiteTables("core", tables)) == {module: 0.12345}
    page = render(made.run, tables, folder("reports"))
    assert "1 of 4 experts received no calibration tokens" in page
    assert "Weight error" in page
    assert "12.3" in page
    plain = render(made.run, made.tables, folder("reports"))
    assert "Weight error" not in plain
    assert "experts received" not in plain


def expert_weights(layers: int, experts: int, worst: tuple[int, int]) -> pd.DataFrame:
    rows = [
        (f"model.layers.{layer}.mlp.experts", expert, matrix, 0.5 if (layer, expert) == worst else 0.1 + 0.01 * k)
        for layer in range(layers)
        for expert in range(experts)
        for k, matrix in enumerate(("gate_up_proj", "down_proj"))
    ]
    return pd.DataFrame(rows, columns=["module", "expert", "matrix", "relative_error"])


def test_the_map_of_experts_shows_the_worst_matrix_of_each() -> None:
    tables = MadeTables({"expert_weights": expert_weights(32, 64, (7, 11))})
    found = map_weight_errors(SuiteTables("core", tables))
    assert found is not None
    assert found.labels == tuple(str(expert) for expert in range(64))
    assert [name for name, _ in found.rows] == [str(layer) for layer in range(32)]
    square = found.rows[7][1][11]
    assert square is not None
    assert (square.shade, square.error) == (9, 0.5)
    other = found.rows[7][1][12]
    assert other is not None
    assert other.hint.replace("\u202f", " ") == "model.layers.7.mlp.experts.12.down_proj: 11 % (0.11)"
    assert map_weight_errors(SuiteTables("core", MadeTables({}))) is None


def test_two_mixtures_of_one_block_are_told_apart() -> None:
    table = expert_weights(1, 4, (0, 1))
    both = pd.concat([table, table.assign(module="model.layers.0.audio.experts")])
    found = map_weight_errors(SuiteTables("core", MadeTables({"expert_weights": both})))
    assert found is not None
    assert [name for name, _ in found.rows] == ["model.layers.0.mlp.experts", "model.layers.0.audio.experts"]


def test_many_experts_are_taken_together_and_named_by_their_worst() -> None:
    found = map_weight_errors(SuiteTables("core", MadeTables({"expert_weights": expert_weights(2, 256, (1, 201))})))
    assert found is not None
    assert len(found.labels) == 128
    square = found.rows[1][1][100]
    assert square is not None
    assert "experts.201." in square.hint
    assert found.labels[100] == "200–201"


def test_a_map_of_too_many_squares_says_what_it_leaves_out() -> None:
    found = map_weight_errors(SuiteTables("core", MadeTables({"expert_weights": expert_weights(80, 128, (1, 7))})))
    assert found is not None
    assert (len(found.rows), found.left_out) == (64, 16)


def test_the_page_draws_the_map_of_experts() -> None:
    made = make_run("fail", documents=21, length=40)
    tables = MadeTables(made.tables.frames | frames().frames | {"expert_weights": expert_weights(2, 64, (1, 3))})
    page = render(made.run, tables, folder("reports"))
    assert "Weights of experts" in page
    assert page.count('title="model.layers.1.mlp.experts.') == 64
    assert "Weights of experts" not in render(made.run, made.tables, folder("reports"))
