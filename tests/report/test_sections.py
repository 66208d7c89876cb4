"""Which sections the report has, in which order, and what is said of one that is none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.report import sections
from harness.report.sections import Section, find_sections
from harness.system import resources
from harness.writers.report_html import modules, render
from tests.helpers.made_run import Made

TEMPLATES = resources.folder("reports")
OWN = '{% set title = "Energy" %}{% macro body() %}<p>{{ run.name }} used {{ joules(42) }} J</p>{% endmacro %}'
ENERGY = Section("energy", 65, "Energy of both sides.", OWN, {"joules": lambda value: value + 1})


def offer(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """An entry point ``energy`` with this value, or one that raises it."""

    def load() -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    point = SimpleNamespace(name="energy", value="outside:ENERGY", load=load)
    monkeypatch.setattr(sections, "entry_points", lambda group: [point] if group == "harness.sections" else [])


def test_every_shipped_section_says_what_it_shows() -> None:
    found = find_sections(TEMPLATES)
    assert len(found) >= 14
    for section in found:
        assert re.fullmatch(r"[A-Z].{10,118}\.", section.description), section.name


def test_shipped_sections_stand_in_the_order_of_their_numbers() -> None:
    places = [section.place for section in find_sections(TEMPLATES)]
    assert places == sorted(set(places))


def test_an_outside_section_stands_at_its_place_with_its_tools(
    made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, ENERGY)
    text = render(made["pass"].run, made["pass"].tables, TEMPLATES)
    assert "pocket-w4-g32 used 43 J" in text
    assert text.index('id="outliers"') < text.index('id="energy"') < text.index('id="cost"')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ImportError("no module named joules"), "does not load: ImportError: no module named joules"),
        ("<p>", "found str, expected a harness.report.sections.Section"),
        (Section("En ergy", 65, "", OWN), "found the name 'En ergy', expected lower-case letters"),
        (Section("cost", 65, "", OWN), "sections/70_cost.html is called 'cost' too"),
    ],
)
def test_what_is_no_section_is_named(monkeypatch: pytest.MonkeyPatch, value: Any, message: str) -> None:
    offer(monkeypatch, value)
    with pytest.raises(HarnessError, match=re.escape("energy = outside:ENERGY")) as caught:
        find_sections(TEMPLATES)
    assert message in str(caught.value)


def test_an_outside_section_that_fails_is_named(made: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, Section("energy", 65, "", OWN))  # without the tool that its template uses
    with pytest.raises(HarnessError, match=r"energy = outside:ENERGY in harness.sections failed: .*joules"):
        render(made["pass"].run, made["pass"].tables, TEMPLATES)


@pytest.mark.parametrize("name", ["energy.html", "65-energy.html", "65_Energy.html"])
def test_a_template_whose_name_has_no_place_is_named(tmp_path: Path, name: str) -> None:
    shutil.copytree(TEMPLATES, tmp_path / "reports")
    (tmp_path / "reports" / "sections" / name).write_text(OWN)
    with pytest.raises(HarnessError, match=f"{name}: expected a name such as 65_energy.html"):
        find_sections(tmp_path / "reports")


def test_modules_at_hand_in_templates_have_names_of_their_own() -> None:
    files = [path.stem for path in Path(sections.__file__).parent.rglob("*.py") if path.stem != "__init__"]
    assert sorted(files) == sorted(modules())
