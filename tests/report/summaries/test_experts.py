"""What the report says of mixtures of experts."""

from __future__ import annotations

import pandas as pd

from harness.report.summaries.experts import read_mixtures
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
