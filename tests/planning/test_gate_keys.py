"""What gate files may ask of every rule: read from YAML, and refused with the line where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.plan import load_gate
from harness.rules.at_most import AtMost

README = Path(__file__).parents[2] / "README.md"


def test_the_gate_in_the_readme_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(rules:.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "mine.yaml").write_text(blocks[0], encoding="utf-8")
    first, memory, largest = (spec.rule for spec in load_gate("./mine.yaml", tmp_path).rules)
    assert (first.slices, first.min_documents, first.on_inconclusive) == ("kind", 20, "warn")
    assert (first.implausible_gain, first.level, first.decide) == (0.1, "block", "interval")
    assert isinstance(memory, AtMost)
    assert (memory.of, memory.limit) == ("reference", 0.3)
    assert (largest.decide, largest.level) == ("point", "warn")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("on_inconclusive: sometimes", "'block', 'warn' or 'extend'"),
        ("min_documents: 1", "a number of at least 2"),
        ("implausible_gain: 0", "a number greater than 0"),
        ("slices: colour", "text that matches"),
        ("decide: median", "'interval' or 'point'"),
        ("min_document: 20", "did you mean min_documents?"),
    ],
)
def test_a_mistake_is_named_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    text = f"rules:\n  - rule: not_worse\n    metric: perplexity.ratio\n    margin: 0.1\n    {line}\n    why: w\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_gate("./mine.yaml", tmp_path)
    assert re.search(r"mine\.yaml:5", str(caught.value))
    assert said in str(caught.value)
