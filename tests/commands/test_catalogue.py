"""What ``harness list`` says of backends that need a library."""

from __future__ import annotations

import importlib.util

import pytest

from harness.commands.catalogue import print_catalogue
from harness.plan import is_installed


def shown(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """The entry of a backend, on one line."""
    print_catalogue()
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:1] == [name])
    rest = next(number for number, line in enumerate(lines[start + 1 :], start + 1) if not line.startswith("  "))
    return " ".join(" ".join(lines[start:rest]).split())


def test_missing_libraries_are_named_with_what_installs_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if "torchao" in name else find(name, *more)
    )
    assert '(needs torchao, not installed: pip install "lm-shipcheck[torchao]")' in shown(capsys, "torchao")


def test_libraries_that_are_there_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.commands.catalogue.is_installed", lambda library: True)
    assert "(needs optimum.quanto, installed)" in shown(capsys, "quanto")
    assert "needs" not in shown(capsys, "round_to_nearest")


def test_a_part_of_a_package_that_is_not_there_is_not_installed() -> None:
    assert is_installed("email.mime.text")
    assert not is_installed("email.no_such_part")
    assert not is_installed("no_such_package.part")


def test_writers_and_sections_of_the_report_are_shown_with_their_descriptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "junit.xml: one test case a rule" in shown(capsys, "junit")
    assert "Where the error arises: by layer" in shown(capsys, "cause")
