"""``harness plan`` and ``harness lint`` as users meet them: what is printed, and exit codes."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from harness import cli
from harness.check import check
from harness.comparability import assume_same
from harness.errors import HarnessError
from harness.measures.comparability import Comparability
from harness.records import Measurement, Run
from harness.terminal import Terminal
from tests.helpers.made_run import make_run

VARIANT = """\
name: planned
reference: {model: pocket}
variant:
  compress: [{backend: round_to_nearest, bits: 4, group_size: 32}]
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SUITE = """\
documents: {data: pocket-heldout, max: 50, context: 256}
measures: [perplexity, divergence, {measure: tasks, tasks: [pocket_two_hop], limit: 300}]
"""
GATE = """\
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: w}
  - {rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.03, why: w}
  - {rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.01, level: warn, why: w}
  - {rule: at_most, metric: divergence.kl_max, limit: 5.0, decide: point, why: w}
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("variant", VARIANT), ("suite", SUITE), ("gate", GATE)):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return tmp_path


def said(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli._run(list(arguments))
    return code, out.getvalue(), err.getvalue()


def write_run(folder: Path, name: str) -> Run:
    made = make_run().run
    table = pd.DataFrame({"comparison": [assume_same("reference").model_dump_json()]})
    compared = [each for each in Comparability().measure(table) if isinstance(each, Measurement)]
    run = made.model_copy(update={"name": name, "measurements": (*made.measurements, *compared)})
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(run.model_dump_json())
    return run


PAGE = """\
plan planned  (variant.yaml)
  reference    pocket, float32 (auto) on cpu: 2.755 million parameters, 5.5 MB on disk
  variant      the reference, float32, 1 step
  artifact     not checked: no suite has the measure artifact
"""
REST = """\
  calibration  none
  suite        suite: 50 documents of pocket-heldout, up to 256 tokens each
    measures   perplexity, divergence, tasks, comparability
    items      pocket_two_hop 300
rules  power at the planned sample sizes n; variances from declared assumptions, as there is no earlier run
  powered      gate: not_worse perplexity.ratio margin 0.02  n = 50 documents; 80 % power needs n = 11; \
between-document SD 0.02 (log scale), assumed
  underpowered gate: not_worse tasks.pocket_two_hop.accuracy margin 0.03  power 55 % at n = 300 items; 80 % power \
needs n = 512; 5 % discordant items, assumed
  cannot pass  gate: not_worse tasks.pocket_two_hop.accuracy margin 0.01 (advisory)  cannot pass at n = 300 items, \
even without any change; 80 % power needs n = 4020; 5 % discordant items, assumed
  no sampling  gate: at_most divergence.kl_max limit 5  compares the point estimate alone (decide: point), whatever n is
cost
  time    about TIME (SPEED GFLOP/s, measured on this machine in float32)
  memory  979.5 MB (reference in float32, variant in float32, working memory 0.3 GB, libraries 0.65 GB)
underpowered  2 of 4 comparisons have less than 80 % power
"""


def test_a_plan_is_printed_before_any_run(desk: Path) -> None:
    code, out, err = said("plan", "variant.yaml")
    assert (code, err) == (0, "")
    # The only numbers that depend on the machine.
    plain = re.sub(r"about [\d.]+ \w+ \(\d+ GFLOP", "about TIME (SPEED GFLOP", out)
    assert plain.startswith(PAGE)
    assert REST in plain
    assert "gate.yaml:3: not_worse on tasks.pocket_two_hop.accuracy: power 55 % at n = 300" in out.splitlines()[-2]
    assert "\x1b" not in out


def test_the_run_of_the_same_name_is_found_and_used(desk: Path) -> None:
    run = write_run(desk / "runs" / "planned", "planned")
    code, out, _ = said("plan")
    assert code == 0
    assert "variances from the run planned" in out
    assert "(log scale), as in the run planned" in out
    assert run.name == "planned"


def test_a_run_may_be_named_and_must_then_be_there(desk: Path) -> None:
    write_run(desk / "elsewhere", "other")
    assert "as in the run other" in said("plan", "variant.yaml", "--run", "elsewhere")[1]
    code, _, err = said("plan", "variant.yaml", "--run", "nowhere")
    assert (code, "not found" in err) == (2, True)


def test_a_damaged_run_of_the_same_name_is_left_out_with_a_note(desk: Path) -> None:
    (desk / "runs" / "planned").mkdir(parents=True)
    (desk / "runs" / "planned" / "run.json").write_text("{")
    code, out, _ = said("plan")
    assert (code, "the earlier run is not used" in out, "as there is no earlier run" in out) == (0, True, True)


def test_mistakes_in_files_end_a_plan_with_2(desk: Path) -> None:
    (desk / "gate.yaml").write_text(GATE.replace("perplexity.ratio", "perplexity.ratoi"))
    code, out, err = said("plan")
    assert (code, out) == (2, "")
    assert "gate.yaml:2" in err
    assert "perplexity.ratio" in err


def test_lint_prints_place_key_what_why_and_do(desk: Path) -> None:
    code, out, _ = said("lint", "./gate.yaml", "--variant", "variant.yaml")
    assert code == 0
    assert out.splitlines()[:4] == [
        f"warning {desk}/gate.yaml:3 rules[1].margin",
        "  what  tasks.pocket_two_hop.accuracy: power 55 % at n = 300 items; 80 % power needs n = 512",
        "  why   with too few items the verdict is likely to be inconclusive; 5 % discordant items, assumed",
        "  do    measure 512 items or allow a change of 0.0409",
    ]
    assert out.splitlines()[-2:] == [
        "gate gate, 4 rules, checked against suites suite and declared variances (no earlier run given)",
        "0 errors, 2 warnings",
    ]


def test_lint_ends_with_2_where_a_rule_cannot_do_its_work(desk: Path) -> None:
    (desk / "gate.yaml").write_text(GATE.replace(", level: warn", "").replace("divergence.kl_max", "divergence.kl_mox"))
    code, out, _ = said("lint", "./gate.yaml", "--suite", "./suite.yaml")
    assert code == 2
    assert "did you mean divergence.kl_max?" in out
    assert out.splitlines()[-1] == "2 errors, 1 warning"


def test_lint_with_a_run_alone_and_with_nothing(desk: Path) -> None:
    write_run(desk / "runs" / "a", "a")
    code, out, _ = said("lint", "smoke", "--run", "runs/a")
    assert (code, "checked against the run a" in out) == (0, True)
    code, out, _ = said("lint", "ship")
    assert (code, out.splitlines()[-1]) == (0, "no findings")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lint", "shop"), "did you mean ship?"),
        (("lint", "./gone.yaml"), "no such file"),
        (("lint", "ship", "--suite", "cores"), "did you mean core?"),
        (("lint", "ship", "--suite", "core", "--variant", "variant.yaml"), "either --suite or --variant"),
        (("lint", "ship", "--run", "gone"), "not found"),
        (("plan", "gone.yaml"), "gone.yaml"),
    ],
)
def test_mistakes_on_the_command_line_end_with_2(desk: Path, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = said(*arguments)
    assert (code, words in err) == (2, True), err


def test_a_check_says_it_too_before_it_starts(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise HarnessError("far enough")

    notes: list[str] = []
    # In place of the module that loads models.
    running = SimpleNamespace(run_group=stop)
    monkeypatch.setitem(sys.modules, "harness.run", running)
    monkeypatch.setattr(Terminal, "note", lambda self, text: notes.append(text))
    assert check([desk / "variant.yaml"], desk / "runs", Terminal()) == 2
    assert [note for note in notes if "80 % power needs n = 512" in note and note.startswith("planned: ")]


def test_help_names_both_commands() -> None:
    _, out, _ = said("--help")
    assert "plan" in out
    assert "lint" in out
    assert "2 errors" in " ".join(said("lint", "--help")[1].split())


def test_what_is_not_known_is_said_to_be_unknown(desk: Path) -> None:
    (desk / "variant.yaml").write_text(VARIANT.replace("pocket", "nobody/such-a-model"))
    (desk / "suite.yaml").write_text(SUITE.replace("context: 256", "context: 256, packed: true"))
    code, out, _ = said("plan")
    assert code == 0
    assert "nobody/such-a-model is not on this machine yet" in out
    assert "an unknown number of windows" in out
    assert "80 % power needs n = 11 documents; the plan's n is known only when it runs; between-document SD 0.02" in out
    assert "  time    not known" in out
