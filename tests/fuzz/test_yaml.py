"""Variant, suite and gate files of any content: a plan that says what the file says, or mistakes with their lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError, PlanError
from harness.plan import load_gate
from harness.rules import Rule
from tests.fuzz.budget import attempt, budget, command
from tests.fuzz.edits import CORPUS, byte_edits, edit_bytes, edit_tree, tree_edits

ROOT = Path(__file__).parents[2]
VARIANT = b"""\
name: w4
reference: {model: pocket}
variant:
  compress:
    - {backend: round_to_nearest, bits: 4, group_size: 32}
calibration: {data: pocket-calibration, documents: 8, tokens: 64}
suites: [./suite.yaml]
gates: [./gate.yaml]
outputs: [report_html, junit]
"""
FILES = {
    "variant": VARIANT,
    "suite": (ROOT / "suites/core.yaml").read_bytes(),
    "gate": (ROOT / "gates/ship.yaml").read_bytes(),
}
every_file = pytest.mark.parametrize("name", FILES)


def encode(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=False, sort_keys=False).encode("utf-8", "surrogatepass")


def disturbed(name: str) -> st.SearchStrategy[bytes]:
    data = FILES[name]
    tree = yaml.safe_load(data)
    trees = tree_edits(tree).map(lambda edits: encode(edit_tree(tree, edits)))
    return st.one_of(trees, trees, byte_edits(data).map(lambda edits: edit_bytes(data, edits)), st.binary(max_size=60))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], None]]:
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def check(name: str, data: bytes) -> None:
            for each, shipped in FILES.items():
                (folder / f"{each}.yaml").write_bytes(data if each == name else shipped)
            ended = command("plan", "variant.yaml")
            assert ended.code in (0, 2)
            assert (ended.code == 2) == bool(ended.err), "a mistake is told, and only a mistake"
            if ended.code == 2:
                assert re.match(r"(variant|suite|gate)\.yaml(:\d+)?: ", ended.err), "where the mistake is"
            if name == "gate":
                check_gate(folder / "gate.yaml", data)

        yield check


def check_gate(path: Path, data: bytes) -> None:
    """A gate that is accepted has exactly the rules and settings that another parser finds in the file."""
    gate = attempt(lambda: load_gate(f"./{path.name}", path.parent))
    if isinstance(gate, HarnessError):
        assert isinstance(gate, PlanError)
        assert all(problem.file and problem.expected for problem in gate.problems)
        return
    written = yaml.load(data, yaml.BaseLoader)["rules"]  # noqa: S506 - every scalar as its text
    assert len(written) == len(gate.rules)
    for entry, spec in zip(written, gate.rules, strict=True):
        assert isinstance(spec.rule, Rule)
        assert entry.pop("rule") == spec.rule.kind
        settings = spec.rule.settings()
        assert {key: told(settings[key]) for key in entry} == {key: read(text) for key, text in entry.items()}


def told(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def read(text: str) -> Any:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    try:
        return float(int(text, 0)) if text[:2] in ("0x", "0o") else float(text)
    except ValueError:
        return text


@every_file
def test_the_shipped_files_make_a_plan(name: str, plan: Callable[[str, bytes], None]) -> None:
    plan(name, FILES[name])
    plan(name, encode(yaml.safe_load(FILES[name])))
    assert command("plan", "variant.yaml").code == 0


@pytest.mark.parametrize("case", sorted(CORPUS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_kept_files(case: Path, plan: Callable[[str, bytes], None]) -> None:
    plan(case.parent.name, case.read_bytes())


@every_file
@given(draw=st.data())
@budget(40)
def test_any_file(name: str, plan: Callable[[str, bytes], None], draw: st.DataObject) -> None:
    plan(name, draw.draw(disturbed(name)))
