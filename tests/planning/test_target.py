"""The entry ``target``: strict, told beforehand what settings can tell, and asked for by gates that need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.backends._common.weights import Granularity
from harness.backends.round_to_nearest import RoundToNearest
from harness.commands.catalogue import print_catalogue
from harness.errors import PlanError
from harness.measures.hardware import Hardware
from harness.numerics.hardware.profiles import target_names
from harness.plan import make_plan, resolve_plan
from harness.planning.specs import Plan
from harness.planning.target import target_notes

VARIANT = """\
name: v
reference: {{model: pocket}}
variant:
  compress:
    - {{backend: round_to_nearest, {step}}}
{more}suites: [smoke]
gates: [{gates}]
"""
HARD_SUITE = "measures: [memory, {measure: hardware, target: apple}]\n"


def plan(folder: Path, step: str = "bits: 4", target: str | None = None, gates: str = "smoke", **extra: str) -> Plan:
    more = f"target: {target}\n" if target else ""
    text = VARIANT.format(step=step, more=more, gates=gates)
    for old, new in extra.items():
        text = text.replace(f"[{old}]", f"[{new}]")
    path = folder / "v.yaml"
    path.write_text(text)
    return make_plan(path)


def test_the_target_reaches_the_plan_the_measure_and_run_json(tmp_path: Path) -> None:
    made = plan(tmp_path, target="cuda-9.0")
    assert made.target == "cuda-9.0"
    assert resolve_plan(made)["target"] == "cuda-9.0"
    (measure,) = [each for each in made.suites[0].measures if isinstance(each, Hardware)]
    assert measure.target == "cuda-9.0"
    assert plan(tmp_path).target is None
    assert resolve_plan(plan(tmp_path))["target"] is None


def test_a_target_of_the_suite_wins(tmp_path: Path) -> None:
    (tmp_path / "hard.yaml").write_text(HARD_SUITE)
    (tmp_path / "any.yaml").write_text(
        "rules: [{rule: at_least, metric: hardware.supported, limit: 1.0, why: all of it}]\n"
    )
    made = plan(tmp_path, target="cuda-9.0", gates="./any.yaml", smoke="./hard.yaml")
    assert [each.target for each in made.suites[0].measures if isinstance(each, Hardware)] == ["apple"]
    assert plan(tmp_path, gates="./any.yaml", smoke="./hard.yaml").target is None, "the suite's target is enough"


@pytest.mark.parametrize(
    ("target", "fragment"),
    [
        ("cuda-9", "did you mean cuda-9.0?"),
        ("toaster", "expected one of x86-avx512, x86-amx, cuda-8.0"),
        ("9.0", "found 9.0"),
        ("[arm]", "v.yaml:6: target"),
        ("true", "found true"),
    ],
)
def test_other_targets_are_mistakes(tmp_path: Path, target: str, fragment: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, target=target)
    assert fragment in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_suite_with_an_unknown_target_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "hard.yaml").write_text(HARD_SUITE.replace("apple", "aple"))
    with pytest.raises(PlanError, match=r"hard\.yaml:1: measures\[1\]\.target.*did you mean apple"):
        plan(tmp_path, smoke="./hard.yaml")


def test_a_gate_that_needs_a_target_asks_for_it_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"gates/target\.yaml:\d+: .*add for example target: cuda-9\.0") as caught:
        plan(tmp_path, gates="smoke, target")
    assert len(caught.value.problems) == 2, "one for each of its rules"
    assert [gate.name for gate in plan(tmp_path, target="arm", gates="smoke, target").gates] == ["smoke", "target"]
    soft = tmp_path / "soft.yaml"
    soft.write_text(
        "rules:\n"
        "  - {rule: at_least, metric: hardware.supported, limit: 1.0, level: warn, why: all of it}\n"
        "  - {rule: at_most, metric: divergence.kl_mean, limit: 1.0, why: any}\n"
    )
    assert plan(tmp_path, gates="./soft.yaml").gates, "a warning may stay open"


@pytest.mark.parametrize(
    ("step", "target", "fragment"),
    [
        ("bits: 4, group_size: 128", "cuda-9.0", None),
        ("bits: 4", "cuda-9.0", None),
        ("bits: 4, group_size: 48", "cuda-9.0", "int4 in groups of 48 (step round_to_nearest) has no kernel"),
        ("bits: 3", "cuda-9.0", "no kernel for int3 weights on cuda-9.0 is known"),
        ("bits: 3", "apple", None),
        ("format: nf4", "cuda-8.0", None),
        ("format: nf4", "arm", "no kernel for nf4 weights on arm is known"),
        ("format: nvfp4", "apple", None),
        ("format: mxfp4", "cuda-9.0", "mxfp4 in groups of 32"),
        ("bits: 4, granularity: block", "cuda-9.0", "int4 in blocks of 128"),
        ("bits: 8, granularity: channel", "x86-amx", "INT8 (oneDNN) takes symmetric int8"),
        ("bits: 4, overrides: [{modules: ['*.q_proj'], bits: 3}]", "cuda-9.0", "int3 in groups of 32"),
    ],
)
def test_formats_without_a_kernel_are_told_beforehand(
    tmp_path: Path, step: str, target: str, fragment: str | None
) -> None:
    said = [note.text for note in target_notes(plan(tmp_path, step=step, target=target))]
    assert len(said) == (fragment is not None)
    assert not fragment or fragment in said[0]
    assert target_notes(plan(tmp_path, step=step)) == [], "without a target there is nothing to say"


def test_inputs_that_another_step_rounds_are_left_to_the_run(tmp_path: Path) -> None:
    """Which modules both steps touch is not known yet: only what no kernel can take is told."""
    inputs = "}\n    - {backend: activations, bits: 8"
    assert target_notes(plan(tmp_path, step=f"bits: 8, granularity: channel{inputs}", target="x86-amx")) == []
    (said,) = target_notes(plan(tmp_path, step=f"bits: 3{inputs}", target="x86-amx"))
    assert "int3" in said.text


KINDS = ("int", "fp8_e4m3", "fp4_e2m1", "nf4", "mxfp4", "nvfp4", "mxfp8_e5m2")


@pytest.mark.parametrize("kind", KINDS)
def test_settings_tell_the_size_of_groups_that_the_step_will_use(kind: str) -> None:
    """Beside the numerics, which need torch: both know how many inputs share a scale."""
    own = kind.startswith(("mx", "nv"))
    every: tuple[Granularity, ...] = ("tensor", "channel", "group", "block")
    for granularity in every[2:3] if own else every:
        for size in (None, 48) if granularity in ("group", "block") and not own else (None,):
            bits = 4 if kind == "int" else None
            step = RoundToNearest(format=kind, bits=bits, granularity=granularity, group_size=size)
            assert step.number_format().group_size == step.weight_format().blocks.size


def test_warnings_load_no_torch(tmp_path: Path) -> None:
    plan(tmp_path, step="bits: 3", target="cuda-9.0")
    code = (
        "import sys; from pathlib import Path; from harness.plan import make_plan\n"
        "from harness.planning.target import target_notes\n"
        "print(target_notes(make_plan(Path(sys.argv[1])))[0].text); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "v.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("cuda-9.0: int3 in groups of 32")
    assert done.stdout.splitlines()[1] == "False"


def test_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    print_catalogue()
    shown = capsys.readouterr().out
    assert all(name in shown for name in target_names())
