"""The properties of test_gate_properties.py for every other family of metrics, and for every rule there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import MeasureError
from harness.measures import Measure
from harness.measures.divergence import Divergence
from harness.measures.latency import Latency
from harness.measures.layer_error import LayerError
from harness.measures.logits import Logits
from harness.measures.outliers import Outliers
from harness.measures.perplexity import Perplexity
from harness.measures.tasks import Tasks
from harness.plugins import load, names
from harness.rules import Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.rules.retains import Retains
from tests.helpers.results import measurements
from tests.rules import test_gate_properties as tokens_of

GOODNESS = {"error": 0, "fail": 0, "inconclusive": 1, "pass": 2}
FEW = settings(max_examples=12, deadline=None)
damages = st.sampled_from([0.0, 0.02, 0.1, 0.2, 0.5, 1.0])
pairs = st.tuples(*[st.floats(0.001, 0.9)] * 2)


def status(measure: Measure, rule: Rule, table: pd.DataFrame) -> str:
    """The verdict; a measure that raises is an error, as in a run."""
    try:
        return tokens_of.status(measure, rule, table)
    except MeasureError:
        return "error"


# Layers


def layers(documents: int, damage: float, seed: int) -> pd.DataFrame:
    """Sums over the outputs of two modules, whose documents are damaged by different amounts."""
    generator, parts = np.random.default_rng(seed), []
    for depth, (module, kind) in enumerate((("model.layers.0.mlp.up", "linear"), ("model.layers.0", "block"))):
        reference = generator.gamma(20, 50, documents)
        error = (damage * np.exp(0.3 * generator.normal(size=documents))) ** 2 * reference
        variant = reference + 0.1 * error
        columns: dict[str, Any] = {
            "document": np.arange(documents), "module": module, "kind": kind, "depth": depth,
            "sum_squared_error": error, "sum_squared_reference": reference, "sum_squared_variant": variant,
            "dot": (reference + variant - error) / 2, "max_abs_diff": damage, "n": 640,
        }  # fmt: skip
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


ERROR = LayerError()
LAYER_RULES = {
    "relative error": AtMost(metric="layers.relative_error", limit=0.3, why="w"),
    "worst": AtMost(metric="layers.worst", limit=0.3, why="w"),
    "worst, point": AtMost(metric="layers.worst", limit=0.3, decide="point", min_documents=2, why="w"),
    "cosine": AtLeast(metric="layers.cosine", limit=0.9, why="w"),
    "cosine, margin": NotWorse(metric="layers.cosine", margin=0.1, why="w"),
    "sqnr": AtLeast(metric="layers.sqnr_db", limit=10.0, why="w"),
}
every_layer_rule = pytest.mark.parametrize("rule", LAYER_RULES.values(), ids=LAYER_RULES)


@every_layer_rule
@given(documents=st.integers(2, 30), damage=damages, seed=st.integers(0, 999), copied=st.integers(0, 29))
@FEW
def test_a_document_again_never_turns_pass_into_fail(
    rule: Rule, documents: int, damage: float, seed: int, copied: int
) -> None:
    table = layers(documents, damage, seed)
    again = table[table["document"] == copied % documents].assign(document=documents)
    equal = again.assign(
        sum_squared_error=0.0, sum_squared_variant=again["sum_squared_reference"], dot=again["sum_squared_reference"]
    )
    before = status(ERROR, rule, table)
    for more in (again, equal):
        assert (before, status(ERROR, rule, pd.concat([table, more]))) != ("pass", "fail")


@given(documents=st.integers(2, 30), damage=damages, seed=st.integers(0, 999), shards=st.integers(1, 5))
@FEW
def test_order_names_and_shards_of_documents_change_no_bit(
    documents: int, damage: float, seed: int, shards: int
) -> None:
    table = layers(documents, damage, seed)
    generator = np.random.default_rng(seed)
    renamed = generator.permutation(documents) + 100
    parts = [table[table["document"] % shards == shard] for shard in generator.permutation(shards)]
    joined = pd.concat([part.sample(frac=1, random_state=seed) for part in parts], ignore_index=True)
    joined["document"] = renamed[joined["document"]]
    assert list(ERROR.measure(joined)) == list(ERROR.measure(table))


@every_layer_rule
@given(
    documents=st.integers(2, 30), seed=st.integers(0, 999), bad=st.sampled_from([np.nan, np.inf]),
    column=st.sampled_from(["sum_squared_error", "sum_squared_variant", "sum_squared_reference"]),
)  # fmt: skip
@FEW
def test_one_number_that_is_not_finite_never_passes(
    rule: Rule, documents: int, seed: int, bad: float, column: str
) -> None:
    table = layers(documents, 0.001, seed)
    table.loc[seed % len(table), column] = bad
    assert status(ERROR, rule, table) == ("error" if column.endswith("reference") else "fail")


@every_layer_rule
def test_much_that_is_good_passes_and_little_or_nothing_never_does(rule: Rule) -> None:
    good = layers(40, 0.01, 1)
    assert status(ERROR, rule, good) == "pass", "else the rest of this test says nothing"
    assert status(ERROR, rule, good.iloc[:0]) == "error"
    assert status(ERROR, rule, good[good["document"] == 0]) == "inconclusive"
    assert status(ERROR, rule, layers(1, 0.0, 1)) == "inconclusive", "no change on one document proves nothing"
    assert status(ERROR, rule.model_copy(update={"metric": f"{rule.metric}x"}), good) == "error"
    assert status(ERROR, rule.model_copy(update={"min_documents": 41}), good) == "inconclusive"


# Channels, which have no intervals: only rules on the number alone decide


def channels(damage: float, seed: int = 0) -> pd.DataFrame:
    generator, parts = np.random.default_rng(seed), []
    for side, more in (("reference", 0.0), ("variant", damage)):
        for layer in range(4):
            largest = generator.uniform(1, 2, 16)
            largest[3] += 20 * (more + 1)
            columns: dict[str, Any] = {
                "side": side, "module": f"model.layers.{layer}.mlp.up", "layer": layer, "channel": np.arange(16),
                "max_abs": largest, "sum": 0.0, "sum_squares": 90.0 * (1 + more), "sum_fourth": 400.0 * (1 + more) ** 3,
                "over_threshold": np.where(np.arange(16) < 1 + 5 * more, 50, 0), "tokens": 100,
            }  # fmt: skip
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("metric", ["outliers.channels", "outliers.max_to_median", "outliers.kurtosis"])
def test_channels_pass_only_by_numbers_that_are_there_and_finite(metric: str) -> None:
    point = AtMost(metric=metric, limit=30.0, decide="point", why="w")
    good = channels(0.0)
    assert status(Outliers(), point, good) == "pass"
    assert status(Outliers(), point.model_copy(update={"decide": "interval"}), good) == "inconclusive"
    assert status(Outliers(), point, good.iloc[:0]) == "error"
    for bad in (np.nan, np.inf):
        for side, expected in (("variant", "fail"), ("reference", "error")):
            broken = good.copy()
            broken.loc[broken["side"] == side, ["max_abs", "sum_squares"]] = bad
            assert status(Outliers(), point, broken) == expected
    shuffled = good.sample(frac=1, random_state=0)
    changes = [
        sorted((m.name, sorted(m.labels.items()), m.change) for m in measurements(Outliers().measure(table)))
        for table in (good, shuffled)
    ]
    assert changes[0] == changes[1]


# Tasks


TASKS = Tasks(tasks=("quiz",))
TASK_RULES = {
    "score": NotWorse(metric="tasks.quiz.exact_match", margin=0.05, why="w"),
    "score, value": AtLeast(metric="tasks.quiz.exact_match", limit=0.3, why="w"),
    "score, retained": Retains(metric="tasks.quiz.exact_match", share=0.8, why="w"),
    "recovery": AtLeast(metric="tasks.quiz.recovery", limit=0.8, why="w"),
    "flips": AtMost(metric="tasks.quiz.flips", limit=0.1, why="w"),
    "flips to wrong": AtMost(metric="tasks.quiz.flips_to_wrong", limit=0.1, why="w"),
}
every_task_rule = pytest.mark.parametrize("rule", TASK_RULES.values(), ids=TASK_RULES)


@every_task_rule
def test_many_equal_answers_pass_and_few_or_none_never_do(rule: Rule) -> None:
    assert status(TASKS, rule, tokens_of.items(0, 0, 300)) == "pass", "else the rest of this test says nothing"
    assert status(TASKS, rule, tokens_of.items(0, 0, 300).iloc[:0]) == "error"
    assert status(TASKS, rule, tokens_of.items(0, 0, 1)) in ("inconclusive", "error")
    copies = tokens_of.items(0, 0, 300).assign(doc_hash="one")
    assert status(TASKS, rule, copies) in ("inconclusive", "error"), "copies of one document are no sample"
    assert status(TASKS, rule.model_copy(update={"min_documents": 301}), tokens_of.items(0, 0, 300)) == "inconclusive"


@every_task_rule
@pytest.mark.parametrize("side", ["reference", "variant"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_score_that_is_not_finite_never_passes(rule: Rule, side: str, bad: float) -> None:
    table = tokens_of.items(0, 0, 300)
    table.loc[7, f"{side}_score"] = bad
    assert status(TASKS, rule, table) in ("error", "fail")


@every_task_rule
@given(lost=st.integers(0, 8), gained=st.integers(0, 8), same=st.integers(1, 200), wrong=st.booleans())
@FEW
def test_an_item_again_never_turns_pass_into_fail(rule: Rule, lost: int, gained: int, same: int, wrong: bool) -> None:
    table = tokens_of.items(lost, gained, same)
    before = status(TASKS, rule, table)
    row = table.iloc[[0 if wrong else -1]].assign(doc_id=len(table), prompt_hash="again")
    for more in (row, row.assign(doc_hash="new")):
        assert (before, status(TASKS, rule, pd.concat([table, more]))) != ("pass", "fail")
    shards = [table[table["doc_id"] % 3 == shard] for shard in (2, 0, 1)]
    assert status(TASKS, rule, pd.concat(shards)) == before


# Latency


def timings(blocks: int, ratio: float = 1.0, seed: int = 0) -> pd.DataFrame:
    generator, rows = np.random.default_rng(seed), []
    for repeat in range(2 * blocks):
        second = "variant" if repeat < blocks else "floor"
        for order, side in enumerate(("reference", second, second, "reference")):
            seconds = 0.01 * np.exp(0.01 * generator.normal()) * (ratio if side == "variant" else 1.0)
            rows.append(("decode", repeat, side, order, 1, 32, seconds, False))
    columns = ["phase", "repeat", "side", "order", "batch", "tokens", "seconds", "simulated"]
    return pd.DataFrame(rows, columns=columns)


SPEED = AtMost(metric="latency.ratio", limit=1.1, why="w")


def decode(rule: Rule, table: pd.DataFrame) -> str:
    """Of the one phase that was timed; the others are Skipped, which every rule that covers them minds."""
    try:
        found = [m for m in Latency().measure(table) if getattr(m, "labels", {}).get("phase") == "decode"]
    except MeasureError:
        return "error"

    class Found(Latency):
        """Only what was found."""

        def measure(self, table: pd.DataFrame) -> list[Any]:
            return list(found)

    return tokens_of.status(Found(), rule, table)


def test_times_pass_only_if_there_are_enough_that_can_be() -> None:
    assert decode(SPEED, timings(20)) == "pass"
    assert decode(SPEED, timings(20, 1.3)) == "fail"
    assert decode(SPEED, timings(1)) == "inconclusive"
    assert decode(SPEED, timings(20).iloc[:0]) == "error"
    assert decode(SPEED.model_copy(update={"above_noise": 3.0}), timings(20)) == "pass"
    for bad in (np.nan, np.inf, -np.inf, 0.0, -1.0):
        broken = timings(20)
        broken.loc[5, "seconds"] = bad
        assert decode(SPEED, broken) == "error"
    assert decode(SPEED, timings(20).sample(frac=1, random_state=1)) == "pass"


# Every family: a looser limit


LIMITS: dict[str, tuple[Measure, Any, Any]] = {
    "tokens, not_worse": (
        Perplexity(), tokens_of.tokens, lambda x: NotWorse(metric="perplexity.ratio", margin=x, why="w")
    ),
    "tokens, at_most": (
        Divergence(), tokens_of.tokens, lambda x: AtMost(metric="divergence.kl_mean", limit=x, why="w")
    ),
    "tokens, quantile": (
        Divergence(), tokens_of.tokens, lambda x: AtMost(metric="divergence.kl_p99", limit=x, why="w")
    ),
    "tokens, maximum": (
        Logits(), tokens_of.tokens, lambda x: AtMost(metric="logits.max_abs_diff", limit=x, decide="point", why="w")
    ),
    "tokens, at_least": (
        Divergence(), tokens_of.tokens, lambda x: AtLeast(metric="divergence.top1_agreement", limit=1 - x, why="w")
    ),
    "tokens, retains": (
        Perplexity(), tokens_of.tokens, lambda x: Retains(metric="perplexity.value", share=1 - x, why="w")
    ),
    "layers, at_most": (ERROR, layers, lambda x: AtMost(metric="layers.worst", limit=x, why="w")),
    "layers, at_least": (ERROR, layers, lambda x: AtLeast(metric="layers.cosine", limit=1 - x, why="w")),
    "layers, not_worse": (ERROR, layers, lambda x: NotWorse(metric="layers.cosine", margin=x, why="w")),
    "layers, retains": (ERROR, layers, lambda x: Retains(metric="layers.cosine", share=1 - x, why="w")),
}  # fmt: skip


@pytest.mark.parametrize(("measure", "table", "make"), LIMITS.values(), ids=LIMITS)
@given(documents=st.integers(2, 30), damage=damages, seed=st.integers(0, 999), limits=pairs)
@FEW
def test_a_looser_limit_never_makes_a_verdict_worse(
    measure: Measure,
    table: Callable[[int, float, int], pd.DataFrame],
    make: Callable[[float], Rule],
    documents: int,
    damage: float,
    seed: int,
    limits: tuple[float, float],
) -> None:
    drawn = table(documents, damage, seed)
    strict, loose = (status(measure, make(limit), drawn) for limit in sorted(limits))
    assert GOODNESS[loose] >= GOODNESS[strict]


@given(
    lost=st.integers(0, 8), gained=st.integers(0, 8), same=st.integers(1, 200), limits=pairs,
    name=st.sampled_from(["not_worse", "at_most", "at_least", "retains"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_looser_limit_on_a_task_never_makes_a_verdict_worse(
    lost: int, gained: int, same: int, limits: tuple[float, float], name: str
) -> None:
    metric = "tasks.quiz.exact_match"
    make: dict[str, Any] = {
        "not_worse": lambda x: NotWorse(metric=metric, margin=x, why="w"),
        "at_most": lambda x: AtMost(metric="tasks.quiz.flips", limit=x, why="w"),
        "at_least": lambda x: AtLeast(metric=metric, limit=1 - x, why="w"),
        "retains": lambda x: Retains(metric=metric, share=1 - x, why="w"),
    }
    strict, loose = (status(TASKS, make[name](limit), tokens_of.items(lost, gained, same)) for limit in sorted(limits))
    assert GOODNESS[loose] >= GOODNESS[strict]


def test_every_rule_there_is_has_been_held_to_this() -> None:
    tried = [rule for _, rule in tokens_of.RULES.values()]
    tried += [*LAYER_RULES.values(), *TASK_RULES.values(), SPEED]
    assert {type(rule) for rule in tried} == {load(Rule, name) for name in names(Rule)}
