"""The small summaries that the sections draw, each against plain loops or an outside reference."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve

from harness.report.summaries import channels, layers, modules, perplexity, tasks, tokens
from harness.report.summaries.heat import MOST_COLUMNS
from harness.report.summaries.layers import block_of, role_of
from harness.report.summaries.suite_tables import SuiteTables
from tests.helpers.made_run import Made, make_run


@pytest.fixture(scope="module")
def made() -> Made:
    return make_run("fail", documents=21, length=40)


@pytest.fixture(scope="module")
def suite(made: Made) -> SuiteTables:
    return SuiteTables("core", made.tables)


@pytest.fixture(scope="module")
def seen(suite: SuiteTables) -> tokens.SuiteTokens:
    found = tokens.read_tokens(suite)
    assert found is not None
    return found


def test_layer_errors_are_those_of_all_documents_together(made: Made, suite: SuiteTables) -> None:
    found = layers.read_layers(suite)
    assert found is not None
    table = made.tables.frames["layers"]
    assert [module.name for module in found.modules] == list(table.sort_values("depth")["module"].drop_duplicates())
    for module in found.modules[::7]:
        rows = table[table["module"] == module.name]
        error, reference = rows["sum_squared_error"].sum(), rows["sum_squared_reference"].sum()
        assert module.error == pytest.approx(math.sqrt(error / reference))
        assert module.sqnr_db == pytest.approx(10 * math.log10(reference / error))
        cosine = rows["dot"].sum() / math.sqrt(reference * rows["sum_squared_variant"].sum())
        assert module.cosine == pytest.approx(cosine)


def test_the_worst_modules_and_the_largest_jump(suite: SuiteTables) -> None:
    found = layers.read_layers(suite)
    assert found is not None
    inside = [module.error for module in found.modules if module.kind != "block"]
    assert [module.error for module in found.worst(5)] == sorted(inside, reverse=True)[:5]
    errors = [0.0] + [block.error for block in found.blocks]
    jump = found.jump()
    assert jump is not None
    assert jump.after - jump.before == max(np.diff(errors))
    assert errors[jump.block + 1] == jump.after


def test_equal_models_have_no_jump() -> None:
    same = layers.ModuleError("model.layers.0", "block", 0, "", 0.0, math.inf, 1.0, 0.0, 0.0)
    assert layers.LayerSummary((same,), ()).jump() is None


def test_zero_over_zero_is_named_not_drawn(made: Made) -> None:
    frame = made.tables.frames["layers"].copy()
    silent = frame["module"] == "lm_head"
    frame.loc[silent, ["sum_squared_error", "sum_squared_reference"]] = 0.0
    found = layers.read_layers(SuiteTables("core", type(made.tables)({"layers": frame})))
    assert found is not None
    assert found.undefined == ("lm_head",)
    assert "lm_head" not in [module.name for module in found.modules]


@pytest.mark.parametrize(
    ("name", "block", "role"),
    [
        ("model.layers.2.mlp.down_proj", 2, "mlp.down_proj"),
        ("transformer.h.11.attn.c_attn", 11, "attn.c_attn"),
        ("model.layers.3.mlp.experts.17.w1", 3, "mlp.experts.*.w1"),
        ("lm_head", None, "lm_head"),
    ],
)
def test_places_of_modules(name: str, block: int | None, role: str) -> None:
    assert block_of(name) == block
    assert role_of(name) == role


def test_heat_map_takes_blocks_together_by_their_worst() -> None:
    found = [
        layers.ModuleError(f"model.layers.{k}.q_proj", "linear", k, "q_proj", float(k), 0.0, 1.0, 0.0, 0.0)
        for k in range(200)
    ]
    drawn = layers.map_modules(layers.LayerSummary(tuple(found), ()))
    assert drawn is not None
    assert len(drawn.labels) == MOST_COLUMNS
    ((role, cells),) = drawn.rows
    assert role == "q_proj"
    shown = [cell for cell in cells if cell is not None]
    assert len(shown) == MOST_COLUMNS
    assert max(cell.error for cell in shown) == 199
    assert [cell.shade for cell in shown] == sorted(cell.shade for cell in shown)
    assert (shown[0].shade, shown[-1].shade) == (0, 9)
    assert shown[-1].hint.startswith("model.layers.199.q_proj: ")


def test_documents_and_kinds(made: Made, seen: tokens.SuiteTokens) -> None:
    table = made.tables.frames["tokens"].merge(made.tables.frames["documents"][["document", "id", "kind"]])
    worst = tokens.group_by_document(seen, 3)
    means = table.groupby("id")["kl"].mean().sort_values(ascending=False)
    assert [group.name for group in worst] == list(means.index[:3])
    assert [group.kl for group in worst] == pytest.approx(list(means[:3]))
    for group in tokens.group_by_kind(seen, 99):
        rows = table[table["kind"] == group.name]
        assert group.tokens == len(rows)
        assert group.documents == rows["id"].nunique()
        assert group.agreement == (rows["reference_top1"] == rows["variant_top1"]).mean()
    assert tokens.count_kinds(seen) == 7


def test_tokens_that_moved_most(made: Made, seen: tokens.SuiteTokens) -> None:
    top = tokens.rank_tokens(seen, 5)
    assert [token.kl for token in top] == sorted(made.tables.frames["tokens"]["kl"], reverse=True)[:5]


def test_a_histogram_counts_everything_once(seen: tokens.SuiteTokens) -> None:
    kl = tokens.get_column(seen, "kl")
    bins, below = tokens.count_by_decade(kl, 1e-4) or pytest.fail("no bins")
    assert sum(bins.counts) + below == len(kl)
    assert below == (kl <= 1e-4).sum()
    for count, low, high in zip(bins.counts, bins.edges, bins.edges[1:], strict=False):
        assert count == pytest.approx(((kl >= low) & (kl < high) & (kl > 1e-4)).sum(), abs=1)
    assert tokens.count_by_decade(np.zeros(3), 1e-9) is None
    even = tokens.count_evenly(tokens.compute_delta_p(seen))
    assert sum(even.counts) == len(kl)
    assert even.edges[0] == -even.edges[-1]
    assert sum(tokens.count_evenly(np.zeros(4)).counts) == 4


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_reliability_against_scikit_learn(seen: tokens.SuiteTokens, side: str) -> None:
    right = (seen.frame[f"{side}_top1"] == seen.frame["target"]).to_numpy()
    accuracy, confidence = calibration_curve(right, tokens.get_column(seen, f"{side}_top1_p"), n_bins=10)
    found = [row for row in tokens.compute_reliability(seen, side) if row[2]]
    assert [row[0] for row in found] == pytest.approx(list(confidence))
    assert [row[1] for row in found] == pytest.approx(list(accuracy))
    assert sum(row[2] for row in found) == seen.total


def test_agreement_by_confidence_counts_every_token(seen: tokens.SuiteTokens) -> None:
    rows = tokens.compute_agreement(seen)
    assert sum(count for _, count, _ in rows) == seen.total
    same = (seen.frame["reference_top1"] == seen.frame["variant_top1"]).sum()
    assert sum(count * share for _, count, share in rows) == pytest.approx(same)


def test_perplexity_by_kind(made: Made, seen: tokens.SuiteTokens) -> None:
    table = made.tables.frames["tokens"].merge(made.tables.frames["documents"][["document", "kind"]])
    rows = perplexity.group_by_kind(seen, 99)
    assert [row.ratio for row in rows] == sorted((row.ratio for row in rows), reverse=True)
    for row in rows:
        own = table[table["kind"] == row.name]
        assert row.reference == pytest.approx(math.exp(own["reference_nll"].mean()))
        assert row.ratio == pytest.approx(row.variant / row.reference)
        assert row.low is not None
        assert row.high is not None
        assert row.low < row.ratio < row.high
        bits = own["variant_nll"].sum() / math.log(2) / own["bytes"].sum()
        assert row.variant_bits == pytest.approx(bits, rel=1e-6)
    assert [row.name for row in perplexity.group_by_kind(seen, 2)] == [row.name for row in rows[:2]]


def test_bytes_that_are_not_known_are_not_zero(made: Made) -> None:
    frame = made.tables.frames["tokens"].copy()
    frame.loc[0, "bytes"] = np.nan
    suite = SuiteTables("core", type(made.tables)(made.tables.frames | {"tokens": frame}))
    found = tokens.read_tokens(suite)
    assert found is not None
    by_name = {row.name: row for row in perplexity.group_by_kind(found, 99)}
    assert by_name["story"].variant_bits is None
    assert by_name["tale"].variant_bits is not None


def test_one_document_has_no_interval(made: Made) -> None:
    frame = made.tables.frames["tokens"]
    suite = SuiteTables("core", type(made.tables)(made.tables.frames | {"tokens": frame[frame["document"] == 0]}))
    found = tokens.read_tokens(suite)
    assert found is not None
    (row,) = perplexity.group_by_kind(found, 99)
    assert (row.low, row.high) == (None, None)


def test_flips_go_both_ways_and_mind_the_direction(made: Made) -> None:
    items = pd.DataFrame(
        {
            "task": "t", "doc_id": range(6), "metric": ["up"] * 3 + ["down"] * 3,
            "better": ["higher"] * 3 + ["lower"] * 3,
            "target": "x", "reference_score": [1.0, 0.0, 1.0] * 2, "variant_score": [0.0, 1.0, 0.0] * 2,
            "reference_answer": "a", "variant_answer": "b", "output_type": "generate_until",
            "reference_loglikelihoods": [[]] * 6, "variant_loglikelihoods": [[]] * 6,
        }
    )  # fmt: skip
    up, down = tasks.read_tasks(SuiteTables("core", type(made.tables)({"items": items})), made.run)
    assert (up.lost, up.gained, [flip.item for flip in up.flips if flip.lost]) == (2, 1, [0, 2])
    assert (down.lost, down.gained, [flip.item for flip in down.flips if flip.lost]) == (1, 2, [4])
    assert [[flip.item for flip in each.flips if not flip.lost] for each in (up, down)] == [[1], [3, 5]]
    assert up.measurement is None


def test_channels_that_stand_out(made: Made, suite: SuiteTables) -> None:
    found = channels.read_channels(suite, 3)
    assert found is not None
    rows, total = found
    assert total == 28
    assert rows[0].module == "model.layers.2.mlp.down_proj"
    assert rows[0].channel == 60
    table = made.tables.frames["channels"]
    own = table[(table["module"] == rows[0].module) & (table["side"] == "variant")]["max_abs"]
    assert rows[0].variant == pytest.approx(own.max() / own.median())


def test_a_silent_channel_has_no_ratio(made: Made) -> None:
    frame = made.tables.frames["channels"].assign(max_abs=0.0)
    rows, _ = channels.read_channels(SuiteTables("core", type(made.tables)({"channels": frame})), 3) or pytest.fail(
        "no rows"
    )
    assert rows[0].reference is None
    assert channels.draw_ratios(rows[0], channels.make_scale(rows)) == ""


def test_formats_are_grouped_with_everything_counted(made: Made) -> None:
    groups = modules.formats(made.run.variant.modules)
    assert [(group.words, group.modules) for group in groups] == [("int4, group 32, simulated", 28), ("float32", 2)]
    assert groups[0].bits == 4.5
    assert sum(group.stored_bytes for group in groups) == sum(m.stored_bytes for m in made.run.variant.modules)
