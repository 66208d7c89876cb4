"""The glossary: one file of terms, printed by ``harness list --terms`` and shown as a page."""

from __future__ import annotations

import re

import pytest

from harness.cli import app
from harness.commands.terms import read_terms
from harness.plugins import FAMILIES
from tests.helpers.glossary import PAGE, glossary


def test_the_page_is_made_of_the_terms() -> None:
    assert PAGE.read_text(encoding="utf-8") == glossary(), "run: python tests/helpers/glossary.py"


def test_every_term_is_explained_once_in_sentences() -> None:
    pairs = [pair for terms in read_terms().values() for pair in terms.items()]
    names = [term.casefold() for term, _ in pairs]
    assert len(set(names)) == len(names)
    for term, meaning in pairs:
        assert re.fullmatch(r"[A-Z0-9][^|]{15,300}\.", meaning), (term, meaning)


def test_every_plugin_family_has_a_term() -> None:
    names = {term for terms in read_terms().values() for term in terms}
    assert {family.rstrip("s") for family in FAMILIES} <= names


def test_list_prints_them_by_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["list", "--terms"], standalone_mode=False) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    for topic, terms in read_terms().items():
        assert topic in (line.strip() for line in lines)
        for term in terms:
            assert any(line.startswith(f"{term} ") for line in lines), term
    assert "round_to_nearest" not in said
