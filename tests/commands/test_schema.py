"""The schemas against the planner: what it accepts validates, what it refuses by key or type does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli import _run
from harness.commands.schema import DRAFT, FILES, NAMEABLE, make_schema
from harness.commands.settings import find_example
from harness.errors import PlanError
from harness.plan import load_gate, load_suite, make_plans
from harness.plugins import base_of, load, names

jsonschema = pytest.importorskip("jsonschema", reason="checks schemas; pip install 'lm-shipcheck[test]'")

ROOT = Path(__file__).parents[2]
SCHEMAS = {kind: make_schema(kind) for kind in FILES}
SHIPPED = [(kind, path) for kind in ("suite", "gate") for path in sorted((ROOT / f"{kind}s").glob("*.yaml"))]
VARIANT: dict[str, Any] = {
    "name": "small",
    "reference": {"model": "pocket"},
    "variant": {"compress": [{"backend": "round_to_nearest", "bits": 4}]},
    "suites": ["smoke"],
    "gates": ["smoke"],
}
SUITE: dict[str, Any] = {"documents": {"data": "pocket-heldout", "max": 2}, "measures": ["divergence"]}
GATE: dict[str, Any] = {"rules": [{"rule": "at_most", "metric": "divergence.kl_mean", "limit": 1.0, "why": "any"}]}
WHOLE = {"variant": VARIANT, "suite": SUITE, "gate": GATE}


def explain(kind: str, content: Any) -> list[str]:
    """Why the schema refuses a file; empty if it does not."""
    found = jsonschema.Draft202012Validator(SCHEMAS[kind]).iter_errors(content)
    return [f"{error.json_path}: {error.message}" for error in found]


def plan_accepts(kind: str, content: Any, folder: Path) -> bool:
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(content))
    read = {"variant": lambda: make_plans(path)}.get(
        kind, lambda: (load_suite if kind == "suite" else load_gate)(str(path), folder)
    )
    try:
        read()
    except PlanError:
        return False
    return True


def find_guides() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every block of YAML in the README and the guides that is a file or some of its keys, made whole."""
    for page in (ROOT / "README.md", *sorted((ROOT / ".github").rglob("*.md"))):
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.M | re.S):
            content = yaml.safe_load(block)
            for kind, record in FILES.items():
                if isinstance(content, dict) and content and content.keys() <= record.model_fields.keys():
                    yield kind, WHOLE[kind] | content


@pytest.mark.parametrize("kind", FILES)
def test_it_is_a_schema_of_the_draft_it_names(kind: str) -> None:
    assert SCHEMAS[kind]["$schema"] == DRAFT
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_every_shipped_file_validates(kind: str, path: Path) -> None:
    assert explain(kind, yaml.safe_load(path.read_text())) == []


def test_every_example_of_the_guides_validates() -> None:
    found = list(find_guides())
    assert {kind for kind, _ in found} >= {"variant", "gate"}
    assert [(content, why) for kind, content in found if (why := explain(kind, content))] == []


@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for fs in NAMEABLE.values() for f in fs for n in names(base_of(f))]
)
def test_it_knows_every_plugin_and_refuses_keys_that_none_has(family: str, name: str) -> None:
    plugin = load(base_of(family), name)
    role, kind = plugin.role(), next(kind for kind, families in NAMEABLE.items() if family in families)
    schema = plugin.model_json_schema()
    entry = {
        key: find_example(schema["properties"][key], schema.get("$defs", {})) for key in schema.get("required", ())
    }

    def explain_entry(entry: Any) -> list[str]:
        places: dict[str, dict[str, Any]] = {
            "backend": {"variant": {"compress": [entry]}},
            "engine": {"variant": {"engine": entry}},
            "writer": {"outputs": [entry]},
            "measure": {"measures": [entry]},
            "rule": {"rules": [entry]},
        }
        return explain(kind, WHOLE[kind] | places[role])

    assert explain_entry({role: name, **entry}) == []
    assert explain_entry({role: name, **entry, "no_such_setting": 1})
    for key in entry:
        assert explain_entry({role: name} | {k: v for k, v in entry.items() if k != key}), f"{key} is required"
    assert explain_entry({role: f"{name}_misspelt", **entry})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("variant", {"calibraton": {}}),
        ("variant", {"suites": "core"}),
        ("variant", {"suites": []}),
        ("variant", {"target": "cuda-0.1"}),
        ("variant", {"reference": {"model": "pocket", "dtype": "float8"}}),
        ("variant", {"variant": {"compress": [{"backend": "round_to_nearest", "bits": 40}]}}),
        ("variant", {"variant": {"compress": [{"backend": "round_to_nearest", "bits": "4"}]}}),
        ("variant", {"variant": {"compress": [{"backend": "round_to_nearest", "bits": "$bits"}]}}),
        ("variant", {"variant": {"engine": None}}),
        ("suite", {"documents": {"data": "pocket-heldout", "context": 1}}),
        ("suite", {"measures": ["tasks"]}),
        ("suite", {"noise_floor": ["bach_size"]}),
        ("gate", {"sequential": "beting"}),
        ("gate", {"rules": [{"rule": "at_most", "metric": "m", "limit": True, "why": "any"}]}),
    ],
)
def test_the_planner_and_the_schema_refuse_the_same(kind: str, change: dict[str, Any], tmp_path: Path) -> None:
    assert plan_accepts(kind, WHOLE[kind], tmp_path)
    assert explain(kind, WHOLE[kind]) == []
    assert not plan_accepts(kind, WHOLE[kind] | change, tmp_path)
    assert explain(kind, WHOLE[kind] | change)


def test_a_placeholder_stands_for_any_value_where_there_is_a_matrix() -> None:
    step = {"backend": "round_to_nearest", "bits": "$bits", "group_size": 32}
    content = VARIANT | {"matrix": {"bits": [3, 4]}, "variant": {"compress": [step]}}
    assert explain("variant", content) == []
    assert explain("variant", content | {"variant": {"compress": [step | {"group_size": "32"}]}})
    assert explain("variant", content | {"variant": {"compress": "$steps"}, "matrix": {"steps": {"a": [step]}}}) == []


def list_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inside for place in list_places(each, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


PLACES = [(kind, place) for kind, content in WHOLE.items() for place in list_places(content) if place]
VALUES = st.sampled_from([None, True, 1.5, "text", "", [], {}, ["text"], {"text": 1}, -1, 10**6])


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_whatever_the_planner_accepts_validates(
    place: tuple[str, tuple[Any, ...]], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, path = place
    content = put(WHOLE[kind], path, value)
    if plan_accepts(kind, content, tmp_path_factory.mktemp("plan")):
        assert explain(kind, content) == []


def test_the_command_prints_the_schema_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["schema", "gate"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMAS["gate"]
    out = tmp_path / "gate.schema.json"
    assert _run(["schema", "gate", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == SCHEMAS["gate"]
    assert _run(["schema", "gate", "--out", str(out / "below-a-file.json")]) == 2
    assert _run(["schema", "suites"]) == 2
