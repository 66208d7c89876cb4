"""From variant, suite and gate files to a plan, and every mistake in them, on toy plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from harness import plugins
from harness.backends import Backend, Compressed
from harness.errors import PlanError, Problem
from harness.lockstep.recording import PassContext, Recorder
from harness.measures import Measure
from harness.plan import check_together, load_gate, load_suite, make_plan, resolve_plan
from harness.planning.specs import Plan
from harness.probes import Context, Probe
from harness.records import HubData, Measurement, Metric, Plugin, Skipped
from harness.rules import Bound, Facts, Rule
from harness.system.resources import bundled_names


class Toy(Backend):
    """A step that is planned and never run."""

    def compress(self, model: Any, tokenizer: Any, calibration: Any) -> Compressed:
        raise AssertionError("a plan compresses nothing")


class Rounding(Toy):
    """Rounds."""

    bits: int = Field(ge=2, le=8, description="bits of one code")
    mode: Literal["group", "channel"] = "group"
    skip: tuple[str, ...] = ()
    size: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Rounding:
        if self.mode == "channel" and self.size is not None:
            raise ValueError("size belongs to mode group")
        return self


class Fitting(Toy):
    """Looks at documents."""

    needs_calibration: ClassVar[bool] = True


class Foreign(Toy):
    """Needs a library that nobody has."""

    requires: ClassVar[tuple[str, ...]] = ("no_such_library.part", "json")
    extra: ClassVar[str] = "foreign"


class Words(Probe):
    """Sees tokens."""

    runs = "shared_pass"

    width: int = Field(default=1, ge=1)
    depth: int = 1

    def begin(self, context: PassContext) -> Recorder:
        raise AssertionError("a plan observes nothing")


class Clocks(Probe):
    """Sees time."""

    runs = "alone"
    reads = "nothing"

    def observe(self, context: Context) -> None:
        raise AssertionError("a plan observes nothing")


class ToyMeasure(Measure):
    """A measure that is planned and never computed."""

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        raise AssertionError("a plan measures nothing")


class Nearness(ToyMeasure):
    """How near."""

    table: ClassVar[str] = "toy_words"
    width: int = 2

    def probe_settings(self) -> dict[str, Any]:
        return {"width": self.width}

    def produces(self) -> tuple[Metric, ...]:
        return (
            Metric(name="nearness.mean", unit="share", better="lower"),
            Metric(name="nearness.max", unit="share", better="lower"),
        )


class Farness(ToyMeasure):
    """How far."""

    table: ClassVar[str] = "toy_words"
    depth: int = 3
    width: int | None = None

    def probe_settings(self) -> dict[str, Any]:
        return {"depth": self.depth} | ({} if self.width is None else {"width": self.width})

    def produces(self) -> tuple[Metric, ...]:
        return (Metric(name="farness.mean", unit="share", better="higher"),)


class Quizzes(ToyMeasure):
    """Tasks."""

    table: ClassVar[str] = "toy_clocks"
    paths: ClassVar[tuple[str, ...]] = ("include",)
    quizzes: tuple[str, ...] = Field(min_length=1, description="which quizzes")
    include: tuple[str, ...] = ()

    def produces(self) -> tuple[Metric, ...]:
        return tuple(Metric(name=f"quizzes.{q}.*", unit="share", better="higher") for q in self.quizzes)


class Homeless(ToyMeasure):
    """Reads a table that nobody fills."""

    table: ClassVar[str] = "toy_nothing"

    def produces(self) -> tuple[Metric, ...]:
        return (Metric(name="homeless.mean", unit="share", better="lower"),)


class Below(Rule):
    """Below a limit."""

    limit: float = Field(ge=0, le=1)

    def bound(self, metric: Facts) -> Bound:
        if metric.better == "higher":
            return Bound("below", misfit="it is better when higher")
        return Bound("below", upper=self.limit)


TOYS: dict[str, dict[str, type[Plugin]]] = {
    "backends": {"toy_rounding": Rounding, "toy_fitting": Fitting, "toy_foreign": Foreign},
    "probes": {"toy_words": Words, "toy_clocks": Clocks},
    "measures": {
        "toy_nearness": Nearness,
        "toy_farness": Farness,
        "toy_quizzes": Quizzes,
        "toy_homeless": Homeless,
    },
    "rules": {"toy_below": Below},
    "writers": {},
    "engines": {},
}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy plugins, as if an outside package offered them."""

    def outside(family: str) -> dict[str, Any]:
        return {name: SimpleNamespace(load=lambda cls=cls: cls) for name, cls in TOYS.get(family, {}).items()}

    monkeypatch.setattr(plugins, "_entry_points", outside)


VARIANT = """\
name: toy
reference: {model: pocket, dtype: float32}
variant:
  compress:
    - {backend: toy_rounding, bits: 4}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SUITE = """\
documents: {data: pocket-heldout, max: 20}
measures: [toy_nearness, toy_farness, {measure: toy_quizzes, quizzes: [a, b]}]
"""
GATE = """\
rules:
  - {rule: toy_below, metric: nearness.mean, limit: 0.5, why: because}
  - {rule: toy_below, metric: "quizzes.*.score", limit: 1e-2, why: because, level: warn}
"""


class Desk:
    """A folder with a variant file, a suite and a gate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write()

    def write(self, variant: str = VARIANT, suite: str = SUITE, gate: str = GATE) -> Desk:
        for name, text in (("variant", variant), ("suite", suite), ("gate", gate)):
            (self.folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return self

    def plan(self) -> Plan:
        return make_plan(self.folder / "variant.yaml")

    def problems(self) -> tuple[Problem, ...]:
        with pytest.raises(PlanError) as caught:
            self.plan()
        return caught.value.problems

    def problem(self) -> Problem:
        problems = self.problems()
        assert len(problems) == 1, "\n".join(map(str, problems))
        return problems[0]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


# What a plan holds


def test_a_plan_holds_everything_that_was_asked(desk: Desk) -> None:
    plan = desk.plan()
    assert plan.name == "toy"
    assert plan.reference.model == "pocket"
    assert plan.variant.model == "reference"
    assert [(step.kind, step.settings()["bits"]) for step in plan.variant.compress] == [("toy_rounding", 4)]
    (suite,), (gate,) = plan.suites, plan.gates
    assert suite.name == "suite"
    assert suite.documents is not None
    assert suite.documents.max == 20
    assert [measure.kind for measure in suite.measures] == [
        "toy_nearness",
        "toy_farness",
        "toy_quizzes",
        "comparability",
    ]
    assert {p.kind: p.settings() for p in suite.probes} == {
        "comparability": {},
        "toy_clocks": {},
        "toy_words": {"width": 2, "depth": 3},
    }
    assert [each.where for each in gate.rules] == [f"{desk.folder}/gate.yaml:{line}" for line in (2, 3)]
    assert gate.rules[1].rule.settings()["limit"] == 0.01


def test_the_asked_record_is_json_and_the_same_every_time(desk: Desk) -> None:
    record = resolve_plan(desk.plan())
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert json.dumps(record) == json.dumps(resolve_plan(desk.plan()))
    step = {"backend": "toy_rounding", "bits": 4, "mode": "group", "skip": [], "size": None}
    assert record["variant"]["compress"] == [step]
    assert record["suites"][0]["measures"][2] == {
        "measure": "toy_quizzes",
        "quizzes": ["a", "b"],
        "include": [],
    }
    assert record["suites"][0]["probes"][2] == {"probe": "toy_words", "width": 2, "depth": 3}
    rule = record["gates"][0]["rules"][0]
    assert (rule["rule"], rule["metric"], rule["limit"]) == ("toy_below", "nearness.mean", 0.5)
    assert rule["where"].endswith("gate.yaml:2")


def test_the_record_is_the_same_in_another_process(tmp_path: Path) -> None:
    """With other hash seeds; shipped files only, because a new process knows no toys."""
    path = tmp_path / "v.yaml"
    path.write_text("name: n\nreference: {model: pocket}\nvariant: {}\nsuites: [smoke]\ngates: [smoke]\n")
    code = (
        "import json, pathlib, sys; from harness.plan import make_plan, resolve_plan\n"
        f"print(json.dumps(resolve_plan(make_plan(pathlib.Path({str(path)!r})))))\n"
        "assert not {'torch', 'transformers', 'datasets', 'lm_eval'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert other.decode() == json.dumps(resolve_plan(make_plan(path))) + "\n"


def test_paths_are_relative_to_the_file_that_names_them(desk: Desk) -> None:
    inner = desk.folder / "inner"
    inner.mkdir()
    (inner / "texts.jsonl").write_text('{"text": "x"}\n')
    (inner / "quizzes").mkdir()
    (desk.folder / "fit.txt").write_text("x")
    (desk.folder / "model").mkdir()
    suite = change(SUITE, "pocket-heldout", "../inner/texts.jsonl")
    (inner / "suite.yaml").write_text(change(suite, "[a, b]", "[a, b], include: [quizzes]"))
    variant = change(VARIANT, "./suite.yaml", "inner/suite.yaml")
    variant = change(variant, "model: pocket", "model: ./model")
    desk.write(variant + "calibration: {data: fit.txt, documents: 8, tokens: 16}\n")
    plan = desk.plan()
    assert plan.reference.model == str(desk.folder / "model")
    assert plan.suites[0].documents is not None
    assert plan.suites[0].documents.data == str(inner / "texts.jsonl")
    assert plan.suites[0].measures[2].settings()["include"] == [str(inner / "quizzes")]
    assert plan.calibration is not None
    assert plan.calibration.data == str(desk.folder / "fit.txt")


def test_a_folder_is_a_model_without_a_dot_too_and_hub_ids_stay(desk: Desk) -> None:
    (desk.folder / "owner" / "name").mkdir(parents=True)
    desk.write(change(VARIANT, "model: pocket", "model: owner/name"))
    assert desk.plan().reference.model == str(desk.folder / "owner" / "name")
    desk.write(change(VARIANT, "model: pocket", "model: owner/other, revision: main"))
    assert desk.plan().reference.model == "owner/other"


def test_hub_data(desk: Desk) -> None:
    hub = "{hub: owner/name, config: c, split: test, revision: abc}, text_field: page"
    desk.write(suite=change(SUITE, "pocket-heldout", hub))
    documents = desk.plan().suites[0].documents
    assert documents is not None
    assert documents.data == HubData(hub="owner/name", config="c", split="test", revision="abc")


def test_shipped_names_are_never_shadowed(desk: Desk) -> None:
    for kind in ("suites", "gates"):
        (desk.folder / kind).mkdir()
        (desk.folder / kind / "smoke.yaml").write_text("not: read\n")
    (desk.folder / "smoke.yaml").write_text("not: read\n")
    assert load_gate("smoke", desk.folder).source == "gates/smoke.yaml"
    assert load_suite("smoke", desk.folder).source == "suites/smoke.yaml"
    with pytest.raises(PlanError, match="unknown key 'not'"):
        load_gate("gates/smoke.yaml", desk.folder)


@pytest.mark.parametrize("name", bundled_names("suites"))
def test_shipped_suites_load_and_say_what_they_are(name: str) -> None:
    suite = load_suite(name, Path())
    assert suite.name == name
    assert suite.documents is not None


@pytest.mark.parametrize("name", bundled_names("gates"))
def test_shipped_gates_load_and_every_limit_has_a_reason(name: str) -> None:
    gate = load_gate(name, Path())
    assert gate.name == name
    for each in gate.rules:
        rule = each.rule
        assert isinstance(rule, Rule)
        assert len(rule.why.split()) >= 8
        assert each.where.startswith(f"gates/{name}.yaml:")


@pytest.mark.parametrize(
    ("suite", "gate"),
    [
        *(("smoke", "smoke"), ("core", "ship"), ("core", "strict"), ("standard", "ship"), ("standard", "strict")),
        *(("student", "student"), ("standard", "student")),
    ],
)
def test_shipped_suites_measure_what_shipped_gates_ask(desk: Desk, suite: str, gate: str) -> None:
    desk.write(change(change(VARIANT, "./suite.yaml", suite), "./gate.yaml", gate))
    assert desk.plan().gates[0].name == gate


# Mistakes, one at a time: (file, old text, new text, line, key, fragments of the message)

V, S, G = "variant", "suite", "gate"
MISTAKES = [
    # the variant file
    (V, "name: toy", "name: ../toy", 1, "name", ("'../toy'", "folder")),
    (V, "name: toy", "name: a/b", 1, "name", ("'a/b'",)),
    (V, "name: toy", "name: a..b", 1, "name", ("'a..b'",)),
    (V, "name: toy", "name: /abs", 1, "name", ("'/abs'",)),
    (V, "name: toy", 'name: "a\\0b"', 1, "name", ("U+0000",)),
    (V, "name: toy", 'name: "toy\\n"', 1, "name", ("toy\\n",)),
    (V, "name: toy", "name: 3", 1, "name", ("3 (a number)",)),
    (V, "name: toy", "nam: toy", 1, "nam", ("unknown key 'nam'", "did you mean name?")),
    (V, "name: toy", "name: toy\nname: toy", 2, "name", ("again (first on line 1)",)),
    (V, "dtype: float32", "dtype: float23", 2, "reference.dtype", ("did you mean float32?",)),
    (V, "dtype: float32", "dtyp: float32", 2, "reference.dtyp", ("did you mean dtype?",)),
    (V, "dtype: float32", "device: gpu", 2, "reference.device", ("'gpu'", "cuda")),
    (V, "dtype: float32", "trust_remote_code: yes", 2, "reference.trust_remote_code", ("true or false",)),
    (V, "dtype: float32", "trust_remote_code: true", 2, "reference.trust_remote_code", ("no code",)),
    (V, "dtype: float32", "revision: main", 2, "reference.revision", ("not on the hub",)),
    (V, "dtype: float32", "revision: 1.0", 2, "reference.revision", ("1.0",)),
    (V, "dtype: float32", "attention: flash_attention_2", 2, "reference.attention", ("GPU",)),
    (V, "{model: pocket,", "{model: poket,", 2, "reference.model", ("did you mean pocket?",)),
    (V, "{model: pocket,", "{model: ./gone,", 2, "reference.model", ("no such folder",)),
    (V, "{model: pocket,", "{model: ../x,", 2, "reference.model", ("no such folder",)),
    (V, "{model: pocket,", "{model: ./gate.yaml,", 2, "reference.model", ("a file",)),
    (V, "{model: pocket,", "{model: $HOME/x,", 2, "reference.model", ("not expanded",)),
    (V, "{model: pocket,", "{model: ~/x,", 2, "reference.model", ("not expanded",)),
    (V, "{model: pocket,", "{model: a/b/c,", 2, "reference.model", ("hub id",)),
    (V, "{model: pocket,", "{model: 7,", 2, "reference.model", ("expected text",)),
    (V, "{model: pocket,", "{", 2, "reference.model", ("found nothing",)),
    (V, "reference: {model: pocket, dtype: float32}", "reference: pocket", 2, "reference", ("a mapping",)),
    (V, "{model: pocket, dtype: float32}", "!env {model: pocket}", 2, "reference", ("tag !env",)),
    (V, "backend: toy_rounding", "backend: toy_roundig", 5, "variant.compress[0].backend",
     ("did you mean toy_rounding?",)),
    (V, "backend: toy_rounding", "backnd: toy_rounding", 5, "variant.compress[0]", ("backend by backnd",)),
    (V, "bits: 4", "bits: 9", 5, "variant.compress[0].bits", ("9 (a number)", "at most 8")),
    (V, "bits: 4", "bits: four", 5, "variant.compress[0].bits", ("whole number",)),
    (V, "bits: 4", 'bits: "4"', 5, "variant.compress[0].bits", ("remove the quotes",)),
    (V, "bits: 4", "bits: true", 5, "variant.compress[0].bits", ("a truth value",)),
    (V, "bits: 4", "bits: 4.5", 5, "variant.compress[0].bits", ("whole number",)),
    (V, ", bits: 4", "", 5, "variant.compress[0].bits", ("found nothing", "bits of one code")),
    (V, "bits: 4", "bits: 4, mode: grup", 5, "variant.compress[0].mode", ("did you mean group?",)),
    (V, "bits: 4", "bits: 4, skip: x", 5, "variant.compress[0].skip", ("a list",)),
    (V, "bits: 4", "bits: 4, skip: [x, 2]", 5, "variant.compress[0].skip[1]", ("expected text",)),
    (V, "bits: 4", "bits: 4, mode: channel, size: 2", 5, "variant.compress[0]", ("size belongs to",)),
    (V, "bits: 4", "bits: 4, bit: 4", 5, "variant.compress[0].bit", ("did you mean bits?",)),
    (V, "- {backend: toy_rounding, bits: 4}", "{backend: x}", 4, "variant.compress", ("a list",)),
    (V, "{backend: toy_rounding, bits: 4}", "toy_rounding", 5, "variant.compress[0]", ("{backend: name}",)),
    (V, "toy_rounding, bits: 4", "toy_foreign", 5, "variant.compress[0]",
     ("no_such_library.part", 'pip install "lm-shipcheck[foreign]"')),
    (V, "toy_rounding, bits: 4", "toy_fitting", 5, "variant.compress[0].backend", ("no calibration",)),
    (V, "variant:\n", "variant:\n  model: ./gone\n", 4, "variant.model", ("no such folder",)),
    (V, "variant:\n", "variant:\n  revision: abc\n", 4, "variant.revision", ("not on the hub",)),
    (V, "variant:\n", "variant:\n  model: o/n\n  trust_remote_code: true\n", 3, "variant.revision",
     ("40 hex digits",)),
    (V, "variant:\n", "variant:\n  dtype: int8\n", 4, "variant.dtype", ("'int8'",)),
    (V, "[./suite.yaml]", "[]", 6, "suites", ("an empty list",)),
    (V, "[./suite.yaml]", "./suite.yaml", 6, "suites", ("a list",)),
    (V, "[./suite.yaml]", "[./suite.yaml, ./suite.yaml]", 6, "suites[1]", ("different names",)),
    (V, "[./suite.yaml]", "[./suite.yaml, cor]", 6, "suites[1]", ("did you mean core?",)),
    (V, "[./suite.yaml]", "[./suite.yaml, suite]", 6, "suites[1]",
     ("did you mean the file ./suite.yaml?",)),
    (V, "[./suite.yaml]", "[./suite.yaml, 3]", 6, "suites[1]", ("3 (a number)",)),
    (V, "[./gate.yaml]", "[]", 7, "gates", ("at least one",)),
    (V, "gates: [./gate.yaml]", "", 1, "gates", ("found nothing",)),
    (V, "[./gate.yaml]", "[./gate.yaml, stric]", 7, "gates[1]", ("did you mean strict?",)),
    (V, "gates:", "calibration: {data: pocket-calib, documents: 1}\ngates:", 7, "calibration.data",
     ("pocket-calibration",)),
    (V, "gates:", "calibration: {data: pocket-train, documents: 0}\ngates:", 7, "calibration.documents",
     ("greater than 0",)),
    # suites
    (S, "max: 20", "max: 0", 1, "documents.max", ("greater than 0",)),
    (S, "max: 20", "max: 1e2", 1, "documents.max", ("100.0 (a number)", "whole number")),
    (S, "max: 20", "maximum: 20", 1, "documents.maximum", ("did you mean max?",)),
    (S, "max: 20", "bos: on", 1, "documents.bos", ("'on' (text)",)),
    (S, "max: 20", "context: 1", 1, "documents.context", ("at least 2",)),
    (S, "max: 20", "text_field: x", 1, "documents.text_field", ("does not use it",)),
    (S, "data: pocket-heldout, ", "", 1, "documents.data", ("found nothing",)),
    (S, "data: pocket-heldout", "data: pocket-held-out", 1, "documents.data",
     ("did you mean pocket-heldout",)),
    (S, "data: pocket-heldout", "data: ./suite.txt", 1, "documents.data",
     ("no such file", "did you mean suite.yaml")),
    (S, "data: pocket-heldout", "data: owner/name", 1, "documents.data", ("{hub: owner/name, split: …}",)),
    (S, "data: pocket-heldout", "data: [a]", 1, "documents.data", ("a list of 1",)),
    (S, "data: pocket-heldout", "data: {hub: a/b}", 1, "documents.data.split", ("found nothing",)),
    (S, "data: pocket-heldout", "data: {hub: a/b, split: c, x: 1}", 1, "documents.data.x",
     ("unknown key",)),
    (S, "{data: pocket-heldout, max: 20}", "20", 1, "documents", ("a mapping",)),
    (S, "documents: {data: pocket-heldout, max: 20}\n", "", 1, "",
     ("no documents", "toy_nearness, toy_farness")),
    (S, "documents:", "document:", 1, "document", ("did you mean documents?",)),
    (S, "measures:", "description: 3\nmeasures:", 2, "description", ("expected text",)),
    (S, "toy_nearness,", "toy_nearnes, toy_nearness,", 2, "measures[0]", ("did you mean toy_nearness?",)),
    (S, "toy_nearness,", "toy_nearness, toy_nearness,", 2, "measures[1]", ("again (first on line 2)",)),
    (S, "toy_nearness,", "toy_nearness, 3,", 2, "measures[1]", ("{measure: name}",)),
    (S, "quizzes: [a, b]", "quizzes: []", 2, "measures[2].quizzes", ("at least 1",)),
    (S, "{measure: toy_quizzes, quizzes: [a, b]}", "toy_quizzes", 2, "measures[2].quizzes",
     ("which quizzes",)),
    (S, "[a, b]", "[a, b], include: [gone]", 2, "measures[2].include[0]", ("not found",)),
    (S, "toy_farness", "{measure: toy_farness, width: 7}", 2, "measures[1]",
     ("width 7", "width 2", "toy_nearness")),
    (S, "toy_nearness,", "{measure: toy_nearness, width: 0},", 2, "measures[0].width", ("at least 1",)),
    (S, "toy_nearness,", "toy_nearness, toy_homeless,", 2, "measures[1]", ("no probe writes",)),
    # gates
    (G, "limit: 0.5", "limit: .nan", 2, "rules[0].limit", (".nan", "finite")),
    (G, "limit: 0.5", "limit: .inf", 2, "rules[0].limit", ("finite",)),
    (G, "limit: 0.5", "limit: -0.5", 2, "rules[0].limit", ("at least 0",)),
    (G, "limit: 0.5", "limit: 50", 2, "rules[0].limit", ("50 (a number)", "at most 1")),
    (G, "limit: 0.5", 'limit: "1e-2"', 2, "rules[0].limit",
     ("'1e-2' (text)", "a number", "remove the quotes")),
    (G, "limit: 0.5", "limit: 2 %", 2, "rules[0].limit", ("'2 %' (text)",)),
    (G, "limit: 0.5", "limit: no", 2, "rules[0].limit", ("'no' (text)",)),
    (G, "limit: 0.5", "limit: true", 2, "rules[0].limit", ("truth value",)),
    (G, "limit: 0.5", "limit: 0.5, limit: 100", 2, "rules[0].limit", ("again (first on line 2)",)),
    (G, "limit: 0.5", "limit: 0.5, better: lower", 2, "rules[0].better", ("unknown key",)),
    (G, "limit: 0.5", "limit: 0.5, level: off", 2, "rules[0].level", ("'off' (text)", "block")),
    (G, ", why: because}\n  -", "}\n  -", 2, "rules[0].why", ("found nothing",)),
    (G, "rule: toy_below, metric: near", "rule: toy_belo, metric: near", 2, "rules[0].rule",
     ("did you mean toy_below?",)),
    (G, "nearness.mean", "nearnes.mean", 2, "rules[0].metric", ("did you mean nearness.mean?",)),
    (G, "nearness.mean", "homeless.mean", 2, "rules[0].metric", ("the measure toy_homeless provides it",)),
    (G, "nearness.mean", "xyz", 2, "rules[0].metric", ("the suites measure nearness.mean, nearness.max",)),
    (G, "nearness.mean", '"nearness.*.mean"', 2, "rules[0].metric", ("a metric that the suites measure",)),
    (G, "nearness.mean", "farness.mean", 2, "rules[0]", ("it is better when higher",)),
    (G, "quizzes.*.score", "quizzes.c.score", 3, "rules[1].metric", ("did you mean",)),
    (G, "limit: 0.5, why: because", "limit: 0.5, why: because, level: warn", 7, "gates", ("level warn",)),
    (G, GATE, "rules: []\n", 1, "rules", ("an empty list",)),
    (G, GATE, "rule: []\n", 1, "rule", ("did you mean rules?",)),
    (G, GATE, "rules:\n", 1, "rules", ("found nothing",)),
    (G, GATE, "# nothing\n", 1, "", ("an empty file",)),
    (G, GATE, "- a\n", 1, "", ("a list of 1",)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "line", "key", "fragments"), MISTAKES)
def test_a_mistake_is_named_with_its_line(
    desk: Desk, file: str, old: str, new: str, line: int, key: str, fragments: tuple[str, ...]
) -> None:
    texts = {"variant": VARIANT, "suite": SUITE, "gate": GATE}
    desk.write(**texts | {file: change(texts[file], old, new)})
    problems = desk.problems()
    found = [problem for problem in problems if problem.line == line and problem.key == key]
    assert found, "\n".join(map(str, problems))
    shown = str(found[0])
    where = f"{'variant' if key == 'gates' else file}.yaml:{line}: "
    assert where in shown
    for fragment in fragments:
        assert fragment in shown


SHIPPED = """\
name: shipped
reference: {model: pocket}
variant: {}
suites: [smoke]
gates: [./gate.yaml]
"""


@pytest.mark.parametrize(
    ("rule", "fragments"),
    [
        ("not_worse, metric: perplexity.ratio, margin: 2", ("not_worse for perplexity.ratio", "200 %")),
        ("not_worse, metric: perplexity.ratio, margin: 0", ("margin", "greater than 0")),
        ("not_worse, metric: perplexity.ratio, margin: -0.02", ("margin", "greater than 0")),
        ('not_worse, metric: perplexity.ratio, margin: "0.02"', ("margin", "remove the quotes")),
        ("not_worse, metric: perplexity.ratio, margin: .nan", ("margin", "finite")),
        ("not_worse, metric: perplexity.ratio, limit: 0.02", ("unknown key 'limit'", "margin")),
        ("not_worse, metric: perplexity.rato, margin: 0.02", ("did you mean perplexity.ratio?",)),
        ("at_most, metric: divergence.top1_agreement, limit: 0.9", ("write at_least",)),
        ("at_least, metric: divergence.kl_mean, limit: 0.9", ("write at_most",)),
        ("at_least, metric: divergence.top1_agreement, limit: 90", ("never above 1",)),
        ("at_most, metric: divergence.total_variation, limit: 5", ("never above 1",)),
        ("not_worse, metric: perplexity.ratio, margin: 0.02, better: higher", ("unknown key 'better'",)),
        ('not_worse, metric: "tasks.*.accuracy", margin: 0.02', ("the measure tasks provides it",)),
        ("retains, metric: perplexity.value, share: 98", ("share", "at most 1")),
    ],
)
def test_shipped_rules_refuse_limits_on_the_wrong_side_or_scale(
    desk: Desk, rule: str, fragments: tuple[str, ...]
) -> None:
    """Before anything is measured: a limit that can never be met, or never be missed, is no limit."""
    desk.write(SHIPPED, gate=f"rules:\n  - {{rule: {rule}, why: because}}\n")
    shown = "\n".join(map(str, desk.problems()))
    assert "gate.yaml:2: rules[0]" in shown
    for fragment in fragments:
        assert fragment in shown


def test_one_mistake_is_reported_once(desk: Desk) -> None:
    """A wrong measure or rule must not make other lines look wrong."""
    desk.write(suite=change(SUITE, "toy_nearness", "toy_nearnes"))
    assert desk.problem().key == "measures[0]"
    desk.write(gate=change(GATE, "limit: 0.5", "limit: .nan"))
    assert desk.problem().key == "rules[0].limit"
    desk.write(variant=change(VARIANT, "./suite.yaml", "./gone.yaml"))
    assert "variant.yaml:6: suites[0]: found './gone.yaml': no such file" in str(desk.problem())
    desk.write(suite=change(SUITE, "[a, b]", "[a, {]"))
    assert "broken YAML" in desk.problem().found


def test_all_mistakes_of_all_files_are_reported_together(desk: Desk) -> None:
    desk.write(
        "name: ../up\n"
        "referense: {model: pocket}\n"
        "reference: {model: ./gone, dtype: float23}\n"
        "variant:\n"
        "  dtype: int4\n"
        "  compress:\n"
        "    - {backend: toy_roundin, bits: 4}\n"
        "    - {backend: toy_rounding, bits: 99, bist: 4}\n"
        "    - {backend: toy_foreign}\n"
        "    - {backend: toy_fitting}\n"
        "    - &step {backend: toy_rounding, bits: 4}\n"
        "suites: [./suite.yaml, cor]\n"
        "gates: [./gate.yaml]\n"
        "gates: [./gate.yaml]\n",
        "documents: {data: pocket-heldout, max: -1}\nmeasures: [toy_farnes, toy_nearness]\nmore: 1\n",
        "rules:\n"
        "  - {rule: toy_below, metric: nearness.maen, limit: 0.1, why: x}\n"
        "  - {rule: toy_belo, metric: nearness.mean, limit: 0.1, why: x}\n"
        "  - {rule: toy_below, metric: nearness.mean, limit: 2, why: 7}\n",
    )
    found = {(Path(p.file).name, p.line, p.key) for p in desk.problems()}
    assert found == {
        ("variant.yaml", 1, "name"),
        ("variant.yaml", 2, "referense"),
        ("variant.yaml", 3, "reference.model"),
        ("variant.yaml", 3, "reference.dtype"),
        ("variant.yaml", 5, "variant.dtype"),
        ("variant.yaml", 7, "variant.compress[0].backend"),
        ("variant.yaml", 8, "variant.compress[1].bits"),
        ("variant.yaml", 8, "variant.compress[1].bist"),
        ("variant.yaml", 9, "variant.compress[2]"),
        ("variant.yaml", 10, "variant.compress[3].backend"),
        ("variant.yaml", 11, "variant.compress[4]"),
        ("variant.yaml", 12, "suites[1]"),
        ("variant.yaml", 14, "gates"),
        ("suite.yaml", 1, "documents.max"),
        ("suite.yaml", 2, "measures[0]"),
        ("suite.yaml", 3, "more"),
        ("gate.yaml", 2, "rules[0].metric"),
        ("gate.yaml", 3, "rules[1].rule"),
        ("gate.yaml", 4, "rules[2].limit"),
        ("gate.yaml", 4, "rules[2].why"),
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02",
        b"\xef\xbb\xbfname: x",
        b"\xff\xfe",
        b"name: caf\xe9",
        b"[" * 5000,
        b"a: &a [x]\n" + b"b: [*a,*a,*a,*a]\n" * 10,
        b"x" * 1_000_001,
        b"!!python/object/apply:os.system ['true']",
        b"a: 1\n---\nb: 2\n",
        b"- 1",
        b"text",
    ],
)
def test_what_is_no_variant_file_is_an_error(desk: Desk, content: bytes) -> None:
    (desk.folder / "variant.yaml").write_bytes(content)
    assert all(problem.file.endswith("variant.yaml") for problem in desk.problems())


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(PlanError):
            make_plan(path)
    with pytest.raises(PlanError, match=r"gate: found 'shi', expected one of .* \(did you mean ship\?\)"):
        load_gate("shi", tmp_path)
    with pytest.raises(PlanError, match="no such file"):
        load_gate("../../etc/passwd", tmp_path)
    with pytest.raises(PlanError, match="did you mean core"):
        load_suite("croe", tmp_path)


def test_a_symlinked_or_odd_gate_file_name_never_becomes_a_folder_name(desk: Desk) -> None:
    (desk.folder / "a b.yaml").write_text(GATE)
    desk.write(change(VARIANT, "./gate.yaml", '"./a b.yaml"'))
    assert "the file name 'a b.yaml'" in desk.problem().found


def test_calibrating_on_the_documents_that_are_judged_is_refused(desk: Desk) -> None:
    fitting = change(VARIANT, "toy_rounding, bits: 4", "toy_fitting")
    desk.write(fitting + "calibration: {data: pocket-heldout}\n")
    assert desk.problem().key == "calibration.data"
    for other in ("{data: pocket-calibration}", "{data: pocket-heldout, seed: 1}"):
        desk.write(f"{fitting}calibration: {other}\n")
        assert desk.plan().calibration is not None
    desk.write(VARIANT + "calibration: {data: pocket-heldout}\n")  # nothing looks at them
    desk.plan()


def test_two_variants_of_one_name_cannot_go_together(desk: Desk) -> None:
    first = desk.plan()
    (desk.folder / "other.yaml").write_text(change(VARIANT, "name: toy", "name: TOY"))
    second = make_plan(desk.folder / "other.yaml")
    third = second.model_copy(update={"name": "third"})
    assert list(check_together([first, third])) == [first, third]
    with pytest.raises(PlanError, match=r"other\.yaml: name: found 'TOY', which is also the name of .*variant\.yaml"):
        check_together([first, second])


def test_a_broken_plugin_is_a_problem_that_names_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Undocumented(Rounding):
        __doc__ = None

    monkeypatch.setitem(TOYS["backends"], "toy_rounding", Undocumented)
    monkeypatch.setattr(Undocumented, "summary", classmethod(lambda cls: ""))
    problem = desk.problem()
    assert problem.key == "variant.compress[0].backend"
    assert "has no docstring" in problem.found


_LINES = st.sampled_from([*VARIANT.splitlines(), *SUITE.splitlines(), *GATE.splitlines(), "", "gates: [ship]"])
_SPOILED = st.builds(
    lambda text, at, new: text[: at % len(text)] + new + text[at % len(text) + 1 :],
    st.sampled_from([VARIANT, SUITE, GATE]),
    st.integers(0, 1000),
    st.text(max_size=3) | st.sampled_from(["null", "[]", "{}", "!!", "*a", "&a", "1e999", "\n", ": ", "-"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(
    variant=st.text(max_size=100) | st.lists(_LINES, max_size=12).map("\n".join) | _SPOILED,
    suite=st.just(SUITE) | _SPOILED | st.text(max_size=50),
    gate=st.just(GATE) | _SPOILED | st.text(max_size=50),
)
def test_any_text_makes_a_plan_or_a_plan_error(desk: Desk, variant: str, suite: str, gate: str) -> None:
    for name, text in (("variant", variant), ("suite", suite), ("gate", gate)):
        (desk.folder / f"{name}.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    problems: tuple[Problem, ...] = ()
    try:
        json.dumps(resolve_plan(desk.plan()), allow_nan=False)
    except PlanError as error:
        problems = error.problems
        assert problems
    assert all(problem.file and problem.found and problem.expected for problem in problems)
