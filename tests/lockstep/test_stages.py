"""Blocks of a pass: computed in any order by anybody, added up in their own."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import TableError
from harness.lockstep import batches
from harness.lockstep.batches import Block, plan_stages
from harness.lockstep.driver import LivePass
from harness.lockstep.stages import SETUP, Wanted, run_stages, store_sums
from harness.probes.channels import COLUMNS, Channels
from harness.probes.coverage import Coverage
from harness.probes.experts import Experts
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.tables.store import Store, SuiteSink
from tests.helpers.pass_pairs import Silent, as_bytes, damaged, llama, loaded, make_documents
from tests.helpers.pass_pairs import tables_of as read_all

PROBES = (Tokens(), Layers(), Channels(), Coverage(), Experts())
NAMES = COLUMNS[1:]
LENGTHS = (9, 23, 2, 23, 14, 5, 31, 12, 40, 3, 17, 8)


def run_pass(folder: Path, shares: int, seed: int | None = None) -> dict[str, bytes]:
    """The tables of a pass whose blocks were computed by ``shares`` passes, in the order of a shuffle by ``seed``."""
    documents = make_documents(LENGTHS)
    models = [loaded("reference", llama()), loaded("variant", damaged(llama()))]
    with Store(folder, "key") as store:
        sink = store.sink("s")
        passes = [LivePass(models, documents, PROBES, [sink], Silent(), batch_tokens=32) for _ in range(shares)]

        def compute(wanted: Wanted) -> None:
            for number, each in enumerate(
                wanted if seed is None else random.Random(seed).sample(list(wanted), len(wanted))
            ):
                passes[number % shares].run([each])

        run_stages(passes[0].stages, [sink], None, compute)
        store_sums(PROBES, sink)
        return as_bytes(read_all(store))


@pytest.mark.parametrize(("shares", "seed"), [(1, 0), (2, None), (3, 1), (7, 2)])
def test_who_computes_a_block_and_when_changes_no_bit(tmp_path: Path, shares: int, seed: int | None) -> None:
    assert run_pass(tmp_path / "split", shares, seed) == run_pass(tmp_path / "whole", 1)


def test_sums_of_blocks_add_up_to_those_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = []
    for most in (1, 32):
        monkeypatch.setattr(batches, "MOST_BLOCKS", most)
        folder = tmp_path / str(most)
        run_pass(folder, 1)
        with Store(folder, "key") as store:
            frames.append({name: store.read("s", name) for name in ("channels", "coverage", "experts")})
            blocks = [unit for unit in store.units("s") if unit not in (SETUP, "pass/sums")]
            assert (len(blocks) == 1) == (most == 1)
    one, many = frames
    for name, table in one.items():
        other = many[name]
        assert table is not None
        assert other is not None
        pd.testing.assert_frame_equal(table, other, rtol=1e-12)


def test_only_the_sums_of_the_whole_pass_stay_on_disk(tmp_path: Path) -> None:
    run_pass(tmp_path, 1)
    assert len(list((tmp_path / "s").glob("*.channels.parquet"))) == 1
    assert len(list((tmp_path / "s").glob("*.tokens.parquet"))) > 1


def test_sums_of_blocks_are_read_one_by_one(tmp_path: Path) -> None:
    blocks: list[weakref.ref[pd.DataFrame]] = []
    most = 0

    class Kept(SuiteSink):
        def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
            nonlocal most
            for block in super().read_parts(table):
                blocks.append(weakref.ref(block))
                most = max(most, sum(held() is not None for held in blocks))
                yield block
                del block

    with Store(tmp_path, "key") as store:
        sink = Kept(store, "s")
        for number in range(12):
            sink.commit(f"pass/{number}", {"channels": pd.DataFrame({"max_abs": [1.0], **dict.fromkeys(NAMES, 1.0)})})
        store_sums([Channels()], sink)
        total = store.read("s", "channels")
    assert total is not None
    assert total["sum"].tolist() == [12.0]
    assert len(blocks) == 12
    assert most <= 3, "the one before, which reduce lets go of late, the next, and the first as the total"


def test_a_block_that_nobody_committed_is_an_error(tmp_path: Path) -> None:
    stages = plan_stages(make_documents(LENGTHS), 32)
    with (
        Store(tmp_path, "key") as store,
        pytest.raises(TableError, match=r"the rows of pass/0, .* are missing although"),
    ):
        run_stages(stages, [store.sink("s")], None, lambda wanted: None)


def test_a_stage_is_asked_for_after_the_look_at_the_one_before() -> None:
    """The first variant stops after two stages, the second goes on to the end."""
    stages = [[Block(0, ()), Block(1, ())], [Block(2, ())], [Block(3, ())]]
    done: list[set[str]] = [set(), {"pass/1"}]
    asked: list[tuple[str, list[int]]] = []

    class Sink:
        def __init__(self, units: set[str]) -> None:
            self.units = units

        def done(self, unit: str) -> bool:
            return unit in self.units

    class Looks:
        sizes = (1, 2, 3)

        def goes_on(self, variant: int, look: int) -> bool:
            assert {"pass/0", "pass/1"} <= done[variant]
            return variant == 1 or look < 1

    def compute(wanted: Wanted) -> None:
        for block, variants in wanted:
            asked.append((block.unit, list(variants)))
            for variant in variants:
                done[variant].add(block.unit)

    run_stages(stages, [Sink(units) for units in done], Looks(), compute)  # type: ignore[misc]
    assert asked == [("pass/0", [0, 1]), ("pass/1", [0]), ("pass/2", [0, 1]), ("pass/3", [1])]
