"""What ``harness list NAME`` prints, and the contract that every setting of every plugin explains itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field, TypeAdapter

from harness.cli import _run
from harness.commands.schema import FILES
from harness.commands.settings import list_settings
from harness.plugins import FAMILIES, base_of, load, names
from harness.records import Entry

RECORDS = [*FILES.values(), *(load(base_of(family), name) for family in FAMILIES for name in names(base_of(family)))]


def freeze(value: object) -> object:
    """Lists as the planner reads them."""
    if isinstance(value, dict):
        return {key: freeze(each) for key, each in value.items()}
    return tuple(map(freeze, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.__module__}.{record.__name__}")
def test_every_setting_says_what_it_means_and_gives_an_example_that_is_accepted(record: type[Entry]) -> None:
    for setting in list_settings(record):
        assert setting.meaning, setting.key
        assert setting.type, setting.key
        assert setting.type != "any value", setting.key
        assert setting.example.startswith(f"{setting.key.rpartition('.')[2]}: "), setting.key
        example = freeze(yaml.safe_load(setting.example))
        field = record.model_fields.get(setting.key)
        if field is not None and record not in FILES.values():
            assert isinstance(example, dict)
            annotated: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            TypeAdapter(annotated).validate_python(example[setting.key], strict=True)


class Inner(Entry):
    """Inside."""

    deep: int = Field(ge=1, lt=9, examples=[3])
    """How deep."""


class Left(Entry):
    """One kind."""

    kind: Literal["left"] = "left"
    """Its name."""
    deep: int = Field(default=1, examples=[2])
    """How deep."""


class Right(Entry):
    """Another kind."""

    kind: Literal["right"] = "right"
    """Its name."""
    wide: bool = False
    """Whether it is wide."""


class Mixed(Entry):
    """Entries of two kinds."""

    many: tuple[Annotated[Left | Right, Field(discriminator="kind")], ...] = Field(examples=[[{"kind": "left"}]])
    """Several."""


def test_entries_of_several_kinds_are_told_apart() -> None:
    found = {setting.key: setting.type for setting in list_settings(Mixed)}
    assert found == {
        "many": "list of (mapping)",
        "many[left].kind": "left",
        "many[left].deep": "whole number",
        "many[right].kind": "right",
        "many[right].wide": "true or false",
    }


class Outer(Entry):
    """Outside."""

    given: str = Field(examples=["word"])
    """Must be given."""
    choice: int | None = Field(default=None, gt=0, examples=[7])
    """A number or none."""
    inside: tuple[Inner, ...] = ()
    """More of them."""
    silent: int | None = None


def test_a_setting_has_type_range_default_meaning_and_example() -> None:
    found = {each.key: each for each in list_settings(Outer)}
    assert list(found) == ["given", "choice", "inside", "inside[].deep", "silent"]
    given, choice, deep = found["given"], found["choice"], found["inside[].deep"]
    assert (given.type, given.default, given.meaning, given.example) == ("text", "", "Must be given.", "given: word")
    assert (choice.type, choice.range, choice.default) == ("whole number or null", "above 0", "null")
    assert (deep.range, deep.example, deep.meaning) == ("at least 1, below 9", "deep: 3", "How deep.")
    assert found["inside"].example == "inside: [{deep: 3}]"
    assert (found["silent"].meaning, found["silent"].example) == ("", "")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert _run(["list", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gptq", "damping: number, above 0, at most 1, default 0.01"),
        ("at_most", "why: text, not empty, required"),
        ("tasks", "example: tasks: [hellaswag]"),
        ("artifact", "It has no settings."),
        ("core", "max: 200"),
        ("ship", "suite"),
        ("smoke", "gate smoke"),
        ("cuda-9.0", "target cuda-9.0"),
        ("nf4", "number format nf4"),
        ("junit", "writer junit"),
        ("llama_cpp", "engine llama_cpp"),
        ("backends", "round_to_nearest"),
        ("variant-file", "variant.compress: list of (entry of the backends)"),
        ("variant-file", "reference.dtype: one of auto, float32, float16, bfloat16"),
        ("suite-file", "documents.context: whole number, at least 2, default 512"),
        ("gate-file", "sequential: one of betting, group_sequential or null"),
    ],
)
def test_it_explains(name: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in printed(capsys, name)


def test_a_misspelt_name_is_an_error_that_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["list", "round_to_nearst"]) == 2
    assert "nothing is called 'round_to_nearst'; the nearest names are round_to_nearest" in capsys.readouterr().err
    assert _run(["list", "xyzzy"]) == 2
    assert "harness list shows every name" in capsys.readouterr().err
