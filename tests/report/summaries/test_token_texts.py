"""Tokens as text, and the passages around those that lost most probability."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.summaries.suite_tables import SuiteTables
from harness.report.summaries.token_texts import (
    LONGEST,
    LOSSES,
    NO_TEXTS,
    WORST,
    Passage,
    Texts,
    find_passages,
    read_token_texts,
    show_token,
)
from harness.report.summaries.tokens import COLUMNS, SuiteTokens
from tests.helpers.made_run import make_run
from tests.helpers.made_tables import MadeTables

WORDS = Texts({number: f" w{number}" for number in range(100)}, {})


def scored(*documents: list[tuple[int, float]]) -> SuiteTokens:
    """Documents of (token, loss in nats), each token with a probability of one half on the reference."""
    rows = [
        {
            "document": d,
            "position": at,
            "target": token,
            "reference_nll": math.log(2),
            "variant_nll": math.log(2) + loss,
        }
        for d, document in enumerate(documents)
        for at, (token, loss) in enumerate(document, start=1)
    ]
    frame = pd.DataFrame(rows).assign(kl=0.5, reference_top1=7, variant_top1=8, kind="prose")
    rest = {name: 0.5 for name in COLUMNS if name not in frame}
    return SuiteTokens(frame.assign(id=[f"doc/{n}" for n in frame["document"]], **rest), 0)


def words(passage: Passage) -> str:
    return "".join(piece.text for piece in passage.pieces)


def test_documents_are_ranked_by_their_worst_token_and_shown_around_it() -> None:
    quiet = [(n, 0.01) for n in range(9)]
    first, second = quiet.copy(), quiet.copy()
    first[5], second[3] = (50, 1.5), (60, 4.21)
    found = find_passages(scored(first, second, [(1, -0.5)]), WORDS, 5, 2)
    assert [(each.document, each.number, each.worst.position) for each in found] == [("doc/1", 1, 4), ("doc/0", 0, 6)]
    assert [words(each) for each in found] == [" w1 w2 w60 w4 w5", " w3 w4 w50 w6 w7"]
    assert [(each.before, each.after) for each in found] == [(1, 3), (3, 1)]
    assert [piece.level for piece in found[0].pieces] == [0, 0, len(LOSSES), 0, 0]
    assert [piece.worst for piece in found[0].pieces] == [False, False, True, False, False]
    worst = found[0].worst
    assert (worst.text, worst.reference_top1, worst.variant_top1) == ("␣w60", "␣w7", "␣w8")
    assert (worst.reference_p, worst.variant_p) == pytest.approx((0.5, 0.5 * math.exp(-4.21)))
    assert worst.lost == pytest.approx(4.21)
    assert found[0].pieces[2].hint == "token 4: 50 % → 0.742 % (−4.21 nats)".replace(" %", "\u202f%")


def test_the_numbers_of_a_passage_are_those_of_its_worst_tokens() -> None:
    losses = [0.3, -0.2, 2.0, 0.3, 0.1, 0.9, 0.4, 0.2]
    (found,) = find_passages(scored([(n, loss) for n, loss in enumerate(losses)]), WORDS, 5, 3)
    assert [token.position for token in found.ranked] == [3, 6, 1, 4, 5]
    assert len(found.ranked) == WORST


@given(
    st.lists(st.lists(st.floats(-3, 6, width=32), min_size=1, max_size=12), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_passages_against_plain_loops(losses: list[list[float]], most: int, around: int) -> None:
    found = find_passages(
        scored(*([(10 * d % 97 + at, loss) for at, loss in enumerate(each)] for d, each in enumerate(losses))),
        WORDS, most, around,
    )  # fmt: skip
    ends = [max(each) for each in losses]
    tops = [max(each.worst.lost for each in found)] if found else []
    assert len(found) <= most
    assert tops == pytest.approx([max(ends)] if max(ends) > 1e-12 else [])
    for each in found:
        own = losses[each.number]
        assert each.worst.lost == pytest.approx(max(own))
        assert each.before + len(each.pieces) + each.after == len(own)
        assert len(each.pieces) <= 2 * around + 1
        assert sum(piece.worst for piece in each.pieces) == 1


def test_the_same_words_in_several_documents_are_one_passage() -> None:
    copies = [[(1, 0.1), (2, 3.0)]] * 4
    found = find_passages(scored(*copies, [(3, 1.0)]), WORDS, 5, 4)
    assert [each.document for each in found] == ["doc/0", "doc/4"]


def test_parts_of_a_character_are_read_together() -> None:
    euro, smile = "\u20ac".encode(), "\U0001f600".encode()
    parts = dict(enumerate([euro[:1], euro[1:2], euro[2:], smile[:2], smile[2:]]))
    texts = Texts({number: part.decode("utf-8", "backslashreplace") for number, part in parts.items()}, parts)
    losses = [0.0, 2.5, 0.0, 0.4, 0.0, 0.0]
    (found,) = find_passages(scored([*zip([0, 1, 2, 3, 4, 1], losses, strict=True)]), texts, 5, 9)
    assert [piece.text for piece in found.pieces] == ["€", "\U0001f600", "\\x82"]
    assert [piece.level for piece in found.pieces] == [4, 2, 0]
    assert found.pieces[0].hint.count("token") == 3
    assert found.worst.text == "\\x82"


@given(st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=12))
def test_no_byte_is_lost_whatever_the_parts_are(contents: list[bytes]) -> None:
    parts = dict(enumerate(contents))
    texts = Texts({number: part.decode("utf-8", "backslashreplace") for number, part in parts.items()}, parts)
    (found,) = find_passages(scored([(number, 1.0) for number in parts]), texts, 1, 20)
    assert sum(piece.hint.count("token ") for piece in found.pieces) == len(contents)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a b", "␣a␣b"),
        ("\n\t", "↵⇥"),
        ("\u202eevil\x1b[31m", "\\u202eevil\\x1b[31m"),
        ("</script>", "</script>"),
        ("\U0001f600\u200d", "\U0001f600\\u200d"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("", "id 5"),
    ],
)
def test_tokens_are_shown_readably(text: str, shown: str) -> None:
    assert show_token(Texts({5: text}, {}), 5) == shown


def test_a_token_without_a_text_is_its_id_and_a_long_one_is_cut() -> None:
    assert show_token(NO_TEXTS, 5) == "id 5"
    assert len(show_token(Texts({5: "x" * 10_000}, {}), 5)) <= LONGEST + 3
    (found,) = find_passages(scored([(1, 1.0), (200, 0.0)]), WORDS, 5, 5)
    assert words(found) == " w1[id 200]"


def test_without_texts_there_is_no_passage() -> None:
    assert find_passages(scored([(1, 1.0)]), NO_TEXTS, 5, 5) == []
    assert read_token_texts(SuiteTables("core", MadeTables({}))) == NO_TEXTS


def test_texts_are_read_from_the_table_and_edited_bytes_do_no_harm() -> None:
    frame = make_run("fail", documents=3, length=5).tables.frames["token_texts"]
    texts = read_token_texts(SuiteTables("core", MadeTables({"token_texts": frame})))
    assert texts.parts == {7: b"\xe2"}
    assert texts.unknown == 1
    edited = frame.assign(bytes=np.where(frame["id"] == 3, "no bytes", ""))
    assert read_token_texts(SuiteTables("core", MadeTables({"token_texts": edited}))).parts == {3: b""}
