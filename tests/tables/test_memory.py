"""Tables in memory: sums of units are added up as they come, and read as if they had been kept."""

from __future__ import annotations

import random
import weakref
from functools import reduce

import pandas as pd

from harness.probes.channels import COLUMNS, Channels
from harness.tables.memory import MemoryTables

UNITS = 40


def sums(number: int) -> pd.DataFrame:
    """Sums of one block whose total depends on the order in which they are added."""
    chance = random.Random(number)
    labels = {"side": ["variant"] * 3, "module": ["q"] * 3, "layer": [0] * 3, "channel": range(3)}
    return pd.DataFrame(labels | {name: [chance.lognormvariate(0, 20) for _ in range(3)] for name in COLUMNS})


def test_sums_are_added_up_as_they_come_with_the_same_bits() -> None:
    probe = Channels()
    tables = MemoryTables(combine={probe.sums: probe.combine})
    blocks: list[weakref.ref[pd.DataFrame]] = []
    for number in range(UNITS):
        block = sums(number)
        blocks.append(weakref.ref(block))
        tables.commit(f"pass/{number}", {probe.sums: block, "tokens": pd.DataFrame({"n": [number]})})
        del block
        assert sum(held() is not None for held in blocks) <= 1
    expected = reduce(probe.combine, map(sums, range(UNITS)))
    (found,) = tables.read_parts(probe.sums)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    pd.testing.assert_frame_equal(tables.join()[probe.sums], expected, check_exact=True)
    rows = tables.read("tokens")
    assert rows is not None
    assert rows["n"].tolist() == list(range(UNITS))


def test_other_tables_keep_their_rows_unit_by_unit() -> None:
    tables = MemoryTables()
    for number in range(3):
        tables.commit(f"pass/{number}", {"channels": sums(number)})
    assert len(list(tables.read_parts("channels"))) == 3
