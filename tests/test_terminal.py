"""What the command line says: readable without a terminal, harmless with one, and never in the way of the exit code."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from harness import cli
from harness.report.display import shorten_path
from harness.report.outcomes import Outcome
from harness.terminal import EVERY_SECONDS, Terminal, defuse, standard_console
from tests.helpers.made_run import make_run


class Clock:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Terminal, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Terminal(Console(file=out, width=40), clock), out, clock


def test_without_a_terminal_there_are_plain_lines_and_few_of_them() -> None:
    terminal, out, clock = plain()
    terminal.stage("pocket: reference pocket")
    for done in range(1001):
        clock.now = done * 0.01
        terminal.step("shared pass", done, 1000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "pocket: reference pocket"
    assert lines[-1] == "  shared pass 1000/1000"
    assert len(lines) == 1 + 1 + 10 / EVERY_SECONDS
    assert "\x1b" not in out.getvalue()


def test_plain_lines_estimate_the_time_that_is_left() -> None:
    terminal, out, clock = plain()
    for now, done in ((0.0, 0), (6.0, 10), (12.0, 20), (18.0, 100)):
        clock.now = now
        terminal.step("layers", done, 100)
    assert out.getvalue().splitlines() == [
        "  layers 0/100",
        "  layers 10/100, about 54 seconds left",
        "  layers 20/100, about 48 seconds left",
        "  layers 100/100",
    ]


def test_on_a_terminal_progress_is_live_and_leaves_nothing_behind() -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, force_terminal=True, width=80))
    terminal.step("shared pass", 1, 2)
    terminal.step("items", 1, 4)
    terminal.step("items", 4, 4)
    assert "items" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[2K")
    terminal.stage("next")
    assert "next" in out.getvalue()


@pytest.mark.parametrize(
    ("verdict", "wanted"),
    [
        ("pass", ["✓ May ship  pocket-w4-g32", "All 5 blocking rules passed."]),
        ("pass", ["✓ Pass      perplexity.ratio  1.0015 [1.0011, 1.0019], limit 1.02"]),
        ("fail", ["✕ Must not ship", "✕ Fail      divergence.kl_mean  0.0847 [0.0796, 0.0898], limit 0.02"]),
        ("fail", ["(advisory)", "the whole 95 % interval is beyond the limit"]),
        ("inconclusive", ["? Undecided", "more documents would narrow it"]),
        ("error", ["! Could not be judged", "! Error     perplexity.ratio", "other token ids"]),
    ],
)  # fmt: skip
def test_the_verdict_names_every_rule_and_the_report(verdict: str, wanted: list[str]) -> None:
    terminal, out, _ = plain()
    run = make_run(verdict, documents=200, length=150).run
    terminal.verdict(run, [Path.cwd() / "runs" / "x" / name for name in ("report.html", "junit.xml")])
    for text in [
        *wanted,
        *(found.metric for found in run.verdicts),
        "report: runs/x/report.html",
        "report: runs/x/junit.xml",
    ]:
        assert text in out.getvalue()


def test_without_a_report_none_is_named() -> None:
    terminal, out, _ = plain()
    terminal.verdict(make_run("pass", documents=200).run)
    assert "report:" not in out.getvalue()


HOSTILE = "evil\x1b[2J\x1b]0;t\x07 [red]x[/red] :smile:\n::set-output name=a::b\r##[error]no\u202e hf_" + "a" * 30


def test_hostile_names_do_nothing_to_terminals_or_ci() -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=30, force_terminal=False))
    run = make_run("fail", documents=200).run
    verdicts = [found.model_copy(update={"metric": HOSTILE, "because": HOSTILE}) for found in run.verdicts]
    terminal.stage(HOSTILE)
    terminal.step(HOSTILE, 1, 1)
    terminal.note(HOSTILE)
    terminal.error(HOSTILE, "usage")
    terminal.verdict(run.model_copy(update={"name": HOSTILE, "verdicts": tuple(verdicts)}), [Path(HOSTILE)])
    text = out.getvalue()
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "::set-output" not in text
    assert "##[" not in text
    assert "hf_aaa" not in text
    assert "[red]x[/red] :smile:" in text
    assert r"\x1b[2J" in text


def test_an_error_keeps_its_lines() -> None:
    terminal, out, _ = plain()
    terminal.error("first\nsecond ::error::third", "numerics")
    assert out.getvalue() == "error first\n      second : :error: :third\n      class of failure: numerics\n"


def test_commands_to_azure_are_no_commands() -> None:
    assert defuse("x ##vso[task.complete result=Succeeded;]done") == "x # #vso[task.complete result=Succeeded;]done"


def test_a_plan_error_gives_no_commands_to_a_ci_runner_and_no_home_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "variant.yaml"
    path.write_text('"##vso[task.complete]": 1\n"::error::x": 2\nsuites: ["/home/ann/secret.yaml"]\n')
    assert cli._run(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "# #vso[task.complete]" in told
    assert ": :error: :x" in told
    assert not [part for part in ("##vso", "::error", "/home/ann") if part in told]
    assert len(told.splitlines()) > 3


def test_harmless_leaves_ordinary_names_alone() -> None:
    for name in ("pocket-w4-g32", "tasks.pocket_facts.accuracy", "größe ∞ 模型", "a: b :: c"):
        assert defuse(name) == name


def test_paths_are_shown_from_the_current_folder(tmp_path: Path) -> None:
    assert shorten_path(Path("runs/x")) == "runs/x"
    assert shorten_path(Path.cwd() / "runs") == "runs"
    assert shorten_path(tmp_path) == str(tmp_path)


SCRIPT = """
import sys
from harness.terminal import Terminal
terminal = Terminal()
for k in range(20_000):
    terminal.note(f"line {k} größe ✓ 模型")
sys.exit(3)
"""


def run_script(**environment: str) -> subprocess.Popen[bytes]:
    given = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_reader_that_goes_away_changes_no_exit_code() -> None:
    process = run_script()
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"note line 0")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_encoding_of_the_output_will_do(encoding: str) -> None:
    out, error = run_script(PYTHONIOENCODING=encoding).communicate()
    assert error == b""
    assert rb"\u2713" in out


def test_a_stream_without_a_file_descriptor_will_do() -> None:
    out = io.StringIO()
    Terminal(standard_console(out)).note("x")
    assert out.getvalue() == "note x\n"


def test_one_of_several_variants_takes_few_lines() -> None:
    terminal, out, _ = plain()
    terminal.brief(make_run("fail", documents=200).run, [Path.cwd() / "runs" / "x" / "report.html"])
    lines = out.getvalue().splitlines()
    assert lines[0] == "✕ Must not ship  pocket-w4-g32"
    assert lines[-1] == "  report: runs/x/report.html"
    assert len(lines) <= 4


@pytest.mark.parametrize("width", [80, 120])
def test_several_variants_end_with_a_table(width: int) -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=width))
    runs = [make_run(verdict, documents=200).run for verdict in ("pass", "fail")]
    outcomes = [Outcome.from_run(run, run.exit_code) for run in runs]
    broken = Outcome("broken", 2, "error", "resources", "out of memory [red]x[/red]\x1b[2J")
    terminal.summarize([*outcomes, broken])
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(out.getvalue().split())
    assert "variant verdict class bits size KL perplexity reason" in text
    assert ["✓ Pass" in text, "✕ Fail" in text, "! Error" in text] == [True] * 3
    assert "resources" in text
    assert "\x1b" not in text
    kl = next(m for m in runs[1].measurements if m.name == "divergence.kl_mean").change
    assert kl is not None
    assert f"{kl:.3g}" in text


REASON = "memory ran out while the artifact was being written; check fewer variants at a time"
MANY = [
    Outcome("llama-8b-w4-g128-gptq", 1, "fail", "quality", "perplexity ratio (1.09, limit 1.02)", "4.25",
            "4.1 GB (26 %)", "0.0123", "1.09"),
    Outcome("llama-8b-w8", 0, "pass", None, "", "8.13", "8.1 GB (52 %)", "0.0003", "1.002"),
    Outcome("broken", 2, "error", "resources", REASON),
    Outcome("w3", 3, "inconclusive", "comparability", "tasks.arc_easy.recovery (0.981)", "3.25", "3 GB", "0.04"),
]  # fmt: skip


def summary(width: int, outcomes: Sequence[Outcome] = MANY, is_terminal: bool = True) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None)
    Terminal(console).summarize(outcomes)
    return out.getvalue().splitlines()[1:]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_a_table_of_variants_loses_nothing_in_a_narrow_terminal(width: int) -> None:
    lines = summary(width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for each in MANY:
        told = (each.name, each.failure or "", each.reason, each.bits, each.size, each.kl, each.perplexity)
        assert [cell for cell in told if cell != "–" and cell not in text] == []


def test_reasons_without_room_stand_below_their_rows() -> None:
    assert summary(80)[:4] == [
        "variant                verdict      bits           size      KL  perplexity",
        "llama-8b-w4-g128-gptq  ✕ Fail       4.25  4.1 GB (26 %)  0.0123        1.09",
        "    quality: perplexity ratio (1.09, limit 1.02)",
        "llama-8b-w8            ✓ Pass       8.13  8.1 GB (52 %)  0.0003       1.002",
    ]
    assert summary(200)[2:4] == [
        "llama-8b-w8            ✓ Pass                      8.13  8.1 GB (52 %)  0.0003       1.002",
        f"broken                 ! Error      resources         –              –       –           –  {REASON}",
    ]


def test_a_terminal_without_room_for_columns_gets_sentences() -> None:
    assert summary(40, MANY[:2]) == [
        "llama-8b-w4-g128-gptq: ✕ Fail, bits",
        "    4.25, size 4.1 GB (26 %), KL 0.0123,",
        "    perplexity 1.09",
        "    quality: perplexity ratio (1.09,",
        "    limit 1.02)",
        "llama-8b-w8: ✓ Pass, bits 8.13, size 8.1",
        "    GB (52 %), KL 0.0003, perplexity",
        "    1.002",
    ]


def test_a_pipe_gets_reasons_on_one_line() -> None:
    assert f"    resources: {REASON}" in summary(80, is_terminal=False)


def test_an_outcome_names_the_first_rule_that_decided() -> None:
    run = make_run("fail", documents=200).run
    assert Outcome.from_run(run, 1).reason == "perplexity ratio (1.09, limit 1.02)"
    assert Outcome.from_run(run, 2, "disk full").reason == "disk full"
    passed = make_run("pass", documents=200).run
    assert (Outcome.from_run(passed, 0).reason, Outcome.from_run(passed, 0).failure) == ("", None)
