"""Texts side by side: the pairs that differ most, and where they part."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.report.summaries.generation import AFTER, BEFORE, read_texts
from harness.report.summaries.suite_tables import SuiteTables
from tests.helpers.made_run import make_run
from tests.helpers.made_tables import MadeTables


def suite(*rows: dict[str, Any]) -> SuiteTables:
    plain = {
        "id": "d", "kind": "", "prompt": "p", "reference_text": "one two", "variant_text": "one two",
        "reference_ended": False, "variant_ended": False, "same_tokens": True, "diverged": False, "first": 9,
        "first_character": 7, "similarity": 1.0,
    }  # fmt: skip
    return SuiteTables("core", MadeTables({"generations": pd.DataFrame([plain | row for row in rows])}))


def parted(at: int, **row: Any) -> dict[str, Any]:
    return {"diverged": True, "first": at, "first_character": at, "similarity": 0.5} | row


def test_the_least_alike_come_first_and_only_a_few() -> None:
    rows = [parted(5, id=f"d{index}", similarity=index / 10) for index in (3, 1, 4, 2)] + [{"id": "same"}]
    found = read_texts(suite(*rows), 3)
    assert found is not None
    assert [pair.id for pair in found.worst] == ["d1", "d2", "d3"]
    assert (found.total, found.equal, found.unit) == (5, 1, "token")


def test_the_first_other_word_is_set_apart_from_what_is_common() -> None:
    row = parted(8, reference_text="the old stair broke", variant_text="the old lamp", variant_ended=True, first=3)
    found = read_texts(suite(row), 3)
    assert found is not None
    (pair,) = found.worst
    assert pair.common == "the old "
    assert (pair.reference.word, pair.reference.rest, pair.reference.end) == ("stair", " broke", "")
    assert (pair.variant.word, pair.variant.rest, pair.variant.end) == ("lamp", "", "ends here")
    assert pair.place == "after 3 tokens"


def test_a_text_that_ends_has_no_other_word() -> None:
    found = read_texts(suite(parted(3, reference_text="one two", variant_text="one", variant_ended=True)), 3)
    assert found is not None
    assert (found.worst[0].variant.word, found.worst[0].variant.end) == ("", "ends here")
    assert found.worst[0].reference.word == " two"


def test_long_texts_are_shortened_and_line_breaks_are_seen() -> None:
    common, rest = "a" * 500 + "\n", "b " * 500
    found = read_texts(suite(parted(501, reference_text=common + rest, variant_text=common + "c")), 3)
    assert found is not None
    pair = found.worst[0]
    assert pair.common.startswith("… a")
    assert pair.common.endswith("⏎ ")
    assert len(pair.common) == BEFORE + 2
    assert len(pair.reference.rest) == AFTER + 2


def test_positions_are_those_of_texts_that_part() -> None:
    found = read_texts(suite(*(parted(at) for at in (0, 2, 2, 5)), {}), 3)
    assert found is not None
    assert found.positions is not None
    assert found.positions.counts == (1, 0, 2, 0, 0, 1)
    assert found.median == 2
    characters = read_texts(suite(parted(400, same_tokens=False, first=-1)), 3)
    assert characters is not None
    assert (characters.unit, characters.worst[0].place) == ("character", "after 400 characters")
    assert characters.positions is not None
    assert sum(characters.positions.counts) == 1
    assert read_texts(suite({}), 3).positions is None  # type: ignore[union-attr]


def test_a_run_without_texts_has_none() -> None:
    made = make_run("pass", documents=10, length=10)
    assert read_texts(SuiteTables("core", MadeTables({})), 3) is None
    assert read_texts(SuiteTables("core", made.tables), 3) is not None
