"""The key ``matrix``: one variant for each combination, placeholders, and every mistake in it with its line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import PlanError
from harness.plan import make_plan, make_plans, names_of, resolve_plan
from harness.planning.specs import Plan

FILE = """name: m
reference: {model: pocket}
matrix:
  method:
    rtn: [{backend: round_to_nearest, bits: $bits, granularity: group, group_size: $size}]
    gptq:
      - {backend: gptq, bits: $bits, granularity: group, group_size: $size}
  bits: [3, 4]
  size: [32, 64]
  exclude:
    - {method: gptq, bits: 3}
variant: {compress: $method}
calibration: {data: pocket-calibration, documents: 8, tokens: 64}
suites: [smoke]
gates: [smoke]
"""


def plans_of(folder: Path, content: str) -> list[Plan]:
    (folder / "v.yaml").write_text(content)
    return make_plans(folder / "v.yaml")


def mistakes_of(folder: Path, content: str) -> list[str]:
    with pytest.raises(PlanError) as raised:
        plans_of(folder, content)
    return [str(problem).removeprefix(f"{folder}/") for problem in raised.value.problems]


def test_each_combination_is_a_variant_with_a_name_of_its_own(tmp_path: Path) -> None:
    plans = plans_of(tmp_path, FILE)
    assert [plan.name for plan in plans] == [
        "m-rtn-bits3-size32",
        "m-rtn-bits3-size64",
        "m-rtn-bits4-size32",
        "m-rtn-bits4-size64",
        "m-gptq-bits4-size32",
        "m-gptq-bits4-size64",
    ]
    steps = [plan.variant.compress[0] for plan in plans]
    settings_of = [(step.kind, step.settings()["bits"], step.settings()["group_size"]) for step in steps]
    assert settings_of[0] == ("round_to_nearest", 3, 32)
    assert settings_of[-1] == ("gptq", 4, 64)
    assert plans[-1].choice == {"method": "gptq", "bits": "4", "size": "64"}
    assert resolve_plan(plans[-1])["choice"] == plans[-1].choice


def test_a_variant_of_a_matrix_is_what_the_file_written_out_would_be(tmp_path: Path) -> None:
    expanded = plans_of(tmp_path, FILE)[0]
    step = "{backend: round_to_nearest, bits: 3, granularity: group, group_size: 32}"
    written = FILE.replace("variant: {compress: $method}", f"variant: {{compress: [{step}]}}")
    start, end = written.index("matrix:"), written.index("variant:")
    (alone,) = plans_of(tmp_path, written[:start] + written[end:])
    assert expanded.model_dump(exclude={"name", "choice"}) == alone.model_dump(exclude={"name", "choice"})
    assert "choice" not in resolve_plan(alone)


def test_a_file_without_a_matrix_keeps_its_dollar_signs(tmp_path: Path) -> None:
    mistakes = mistakes_of(
        tmp_path, "name: $x\nreference: {model: pocket}\nvariant: {}\nsuites: [smoke]\ngates: [smoke]\n"
    )
    assert mistakes[0].startswith("v.yaml:1: name: found '$x' (text)")


def test_one_plan_is_not_taken_from_a_file_with_many(tmp_path: Path) -> None:
    plans_of(tmp_path, FILE)
    with pytest.raises(PlanError, match="found 6 variants, expected a file with one variant"):
        make_plan(tmp_path / "v.yaml")
    assert len(names_of(tmp_path / "v.yaml")) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bits: [3, 4]", "bits: []", "v.yaml:8: matrix.bits: found no values"),
        ("bits: [3, 4]", "bits: 3", "v.yaml:8: matrix.bits: found 3 (a number), expected a list of plain values"),
        ("bits: [3, 4]", "bits: [3, 3]", "v.yaml:8: matrix.bits[1]: found 3 twice, expected every value once"),
        ("bits: [3, 4]", "bits: [3, [4]]", "v.yaml:8: matrix.bits[1]: found a list of 1"),
        ("bits: [3, 4]", "bits: {'../x': 3}", "v.yaml:8: matrix.bits.../x: found '../x'"),
        ("bits: [3, 4]", "Bits: [3, 4]", "v.yaml:8: matrix.Bits: found 'Bits', expected a name of lower-case"),
        ("$method}", "$methd}", "v.yaml:12: variant.compress: found '$methd', expected an axis of the matrix: method"),
        ("$method}", "[]}", "v.yaml:4: matrix.method: found an axis that nothing uses, expected the value $method"),
        ("size: [32, 64]", "size: {a: $method}", "v.yaml:9: matrix.size.a: found '$method', expected an axis that"),
        ("bits: 3}", "bits: 5}", "v.yaml:11: matrix.exclude[0].bits: found 5 (a number), expected one of 3, 4"),
        ("bits: 3}", "bit: 3}", "v.yaml:11: matrix.exclude[0].bit: found the unknown key 'bit'"),
        ("{method: gptq, bits: 3}", "{}", "v.yaml:11: matrix.exclude[0]: found no axis"),
        ("size: [32, 64]", f"size: {list(range(1, 300))}", "v.yaml:3: matrix: found more than 500 variants"),
        ("bits: [3, 4]", "bits: [3, 99]", "v.yaml:8: variant.compress[0].bits: found 99 (a number)"),
    ],
)  # fmt: skip
def test_mistakes_name_their_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in FILE
    assert any(each.startswith(message) for each in mistakes_of(tmp_path, FILE.replace(old, new)))


def test_excluding_everything_is_a_mistake(tmp_path: Path) -> None:
    everything = FILE.replace("- {method: gptq, bits: 3}", "- {bits: 3}\n    - {bits: 4}")
    assert mistakes_of(tmp_path, everything) == [
        "v.yaml:3: matrix: found no variant that is not excluded, expected 1 to 500 variants"
    ]


def test_a_mistake_of_some_variants_names_one_of_them_and_one_of_all_stands_once(tmp_path: Path) -> None:
    some = mistakes_of(tmp_path, FILE.replace("size: [32, 64]", "size: [32, 0]"))
    assert len(some) == 1
    assert "found 0 (a number) (with method rtn, bits 3, size 0)" in some[0]
    all_of_them = mistakes_of(tmp_path, FILE.replace("gates: [smoke]", "gates: [smok]"))
    assert len(all_of_them) == 1
    assert "with method" not in all_of_them[0]


@given(
    st.dictionaries(
        st.sampled_from(["seed", "context", "documents"]),
        st.sets(st.integers(1, 64), min_size=1, max_size=3),
        min_size=1,
    )
)
@settings(deadline=None, max_examples=20)
def test_there_are_as_many_variants_as_combinations_and_no_two_are_alike(
    tmp_path_factory: pytest.TempPathFactory, axes: dict[str, set[int]]
) -> None:
    folder = tmp_path_factory.mktemp("matrix")
    lists = {axis: sorted(values) for axis, values in axes.items()}
    matrix = "".join(f"  {axis}: {values}\n" for axis, values in lists.items())
    used = {"seed": "seed", "context": "tokens", "documents": "documents"}
    keys = ", ".join(f"{used[axis]}: ${axis}" for axis in lists)
    content = (
        f"name: m\nreference: {{model: pocket}}\nmatrix:\n{matrix}variant: {{}}\n"
        f"calibration: {{data: pocket-calibration, {keys}}}\nsuites: [smoke]\ngates: [smoke]\n"
    )
    if 1 in axes.get("context", ()):
        assert any("calibration.tokens" in each for each in mistakes_of(folder, content))
        return
    plans = plans_of(folder, content)
    assert [tuple(plan.choice.values()) for plan in plans] == [
        tuple(map(str, values)) for values in itertools.product(*lists.values())
    ]
    assert len({plan.name for plan in plans}) == len(plans)
