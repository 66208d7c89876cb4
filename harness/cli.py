"""The command line. It stays small: measures and gates are configured in YAML files.

Exit codes: 0 passed · 1 a blocking rule failed · 2 could not be run or judged · 3 nothing failed but a blocking rule
is inconclusive · 128 + n ended by signal n.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from harness import __version__
from harness.errors import (
    OUT_OF_MEMORY,
    HarnessError,
    PlanError,
    classify,
    is_out_of_memory,
    name_failure,
    trace_causes,
)
from harness.system.address_space import MODELS, NUMBERS, AddressSpaceError, check_address_space
from harness.system.foreign import EndedBySignal, refuse_silent_exits
from harness.system.streams import endure

if TYPE_CHECKING:
    from harness.commands.workflows import CiSystem

RUN = click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
"""The folder of a finished run."""


PRINT_ONLY = {"plan", "lint", "list", "compare", "schema"}
"""Commands that leave nothing but what they print: lost output is an error there."""


LOADS_MODELS = {"check", "selftest"}


class _Command(click.Command):
    """A command that starts only where its libraries can be loaded; its help loads none and is always shown."""

    def invoke(self, ctx: click.Context) -> Any:
        check_address_space(MODELS if self.name in LOADS_MODELS else NUMBERS)
        return super().invoke(ctx)


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group)
@click.version_option(__version__, prog_name="harness")
def app() -> None:
    """Evaluation and quality gates for compressed language models."""


@app.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("variant.yaml"))
@click.option("--reference", default="pocket", show_default=True, help="Model to compare with: a folder or hub id.")
@click.option("--variant", default="", help="A compressed checkpoint; without it the reference is compressed.")
@click.option(
    "--documents", multiple=True, type=click.Path(path_type=Path),
    help="Your own texts: a .jsonl, .txt, .csv or .parquet file, or a folder; may be given several times.",
)  # fmt: skip
@click.option(
    "--tasks", multiple=True, metavar="NAME|FILE",
    help="lm-eval task to score, by name or by its file (.yaml); may be given several times.",
)  # fmt: skip
@click.option("--ci", type=click.Choice(["github", "gitlab"]), help="Write a pipeline that checks FILE, too.")
def init(
    file: Path, reference: str, variant: str, documents: tuple[Path, ...], tasks: tuple[str, ...], ci: CiSystem | None
) -> int:
    """Write a commented FILE (default: variant.yaml) that fits the model and your texts, and runs as it stands."""
    from harness.commands.starter import write_starter
    from harness.commands.workflows import place_of, write_workflow

    if ci:
        place_of(ci, file)  # before anything is written
    said = write_starter(file, reference, variant, documents, tasks)
    if ci:
        said.insert(-1, f"wrote {write_workflow(ci, file)}")
    for found in said:
        click.echo(_defuse(found))
    return 0


@app.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the run folders."
)
@click.option(
    "--shard", metavar="I/N",
    help="Compute one of N parts, for harness merge: 3/8; auto in a Slurm array; auto/8 in a Kubernetes job.",
)  # fmt: skip
def check(files: tuple[Path, ...], out: Path, shard: str | None) -> int:
    """Measure variants, judge them by their gates, write a report for each.

    \b
    Exit codes: 0 passed, 1 a blocking rule failed, 2 could not be run or judged,
    3 nothing failed but a blocking rule is inconclusive. With --shard there is
    no verdict: 0 says that this part is stored.
    """
    from harness.system.stopwatch import keep_time, measure_shared, seconds_of_process

    if shard is None:
        with keep_time(seconds_of_process()):
            with measure_shared("start"):
                from harness.check import check as run_check
                from harness.terminal import Terminal

            return run_check(files, out, Terminal())
    from harness.sharing.compute import compute_shard, read_share
    from harness.terminal import Terminal

    try:
        share = read_share(shard, os.environ)
    except ValueError as error:
        raise HarnessError(f"--shard: {error}") from error
    return compute_shard(files, out, *share, Terminal())


@app.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option(
    "--file", "files", multiple=True, type=click.Path(path_type=Path),
    help="Variant file, where it is no longer where the shards read it; may be given several times.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the run folders."
)
def merge(folders: tuple[Path, ...], files: tuple[Path, ...], out: Path) -> int:
    """Judge what all shards in FOLDERs measured, as one process would have. Loads no model.

    Exit codes: as those of check.
    """
    from harness.sharing.merge import merge as run_merge
    from harness.terminal import Terminal

    return run_merge(folders, files, out, Terminal())


@app.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("variant.yaml"))
@click.option(
    "--run", type=click.Path(path_type=Path), help="Folder of an earlier run, which provides variances and times."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the run folders."
)
def plan(file: Path, run: Path | None, out: Path) -> int:
    """Show the plan of FILE (default: variant.yaml), the power of its rules, and the cost. Loads no model.

    Exit codes: 0, or 2 for a mistake in a file.
    """
    from harness.commands.preview import preview_plan

    return preview_plan(file, run, out)


@app.command()
@click.argument("gate")
@click.option("--suite", "suites", multiple=True, help="Suite to check against: a bundled name, or a suite file.")
@click.option("--variant", type=click.Path(path_type=Path), help="Check against the suites of this variant file.")
@click.option(
    "--run", type=click.Path(path_type=Path), help="Folder of an earlier run, which provides variances and scores."
)
def lint(gate: str, suites: tuple[str, ...], variant: Path | None, run: Path | None) -> int:
    """Check GATE for rules that can never pass, can never fail, or lack power. Loads no model.

    Exit codes: 0 no errors (there may be warnings), 2 errors, or a mistake in a file.
    """
    from harness.commands.preview import lint_gate

    if suites and variant:
        raise click.UsageError("give either --suite or --variant: a variant file names its suites")
    return lint_gate(gate, suites, variant, run)


@app.command()
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("variant", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON instead of a table.")
def compare(reference: Path, variant: Path, as_json: bool) -> int:
    """Compare two model folders without their weights: configuration, stop tokens, chat template, tokenizer.

    \b
    Exit codes: 0 comparable, 1 a difference changes behaviour at once,
    2 a folder that cannot be read.
    """
    from harness.commands.compare import compare_folders

    return compare_folders(reference, variant, as_json)


@app.command()
@RUN
@click.option("--gate", "gates", multiple=True, required=True, help="Gate: a bundled name, or a gate file.")
def judge(run: Path, gates: tuple[str, ...]) -> int:
    """Judge the finished run in folder RUN by other gates. Loads no model, changes no file."""
    from harness.judge import rejudge
    from harness.plan import load_gate
    from harness.terminal import Terminal
    from harness.write import read_run

    judged = rejudge(read_run(run), [load_gate(name, Path.cwd()) for name in gates])
    Terminal().verdict(judged)
    return judged.exit_code


@app.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--as", "kinds", multiple=True, default=["report_html"], show_default=True, metavar="NAME",
    help="Writer of the output (see harness list); may be given several times.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("overview.html"), show_default=True,
    help="The page about several runs.",
)  # fmt: skip
def report(runs: tuple[Path, ...], kinds: tuple[str, ...], out: Path) -> int:
    """Write outputs of the run in folder RUN again, or one page about several. Loads no model.

    A writer that the variant file gave settings gets the same again. Several runs become one page: variants of one
    reference side by side, and runs of one name over time.
    """
    from harness.write import announce, write_again

    if len(runs) > 1:
        from harness.overview.page import write_overview

        click.echo(_defuse(f"wrote {write_overview(runs, out)}"))
        return 0
    (folder,) = runs
    told, writers, written = write_again(folder, kinds)
    for path in written:
        click.echo(_defuse(f"wrote {path}"))
    said, unsaid = announce(told, folder, writers, os.environ)
    click.echo(said, nl=False)
    if unsaid:
        click.echo(_defuse(unsaid), err=True)
    return 0


@app.command()
@click.option("--gate", default="ship", show_default=True, help="Gate: a bundled name, or a gate file.")
@click.option("--suite", default="selftest", show_default=True, help="Suite: a bundled name, or a suite file.")
@click.option("--model", default="pocket", show_default=True, help="Undamaged reference model: a folder or hub id.")
@click.option("--only", multiple=True, metavar="NAME", help="Try only this variation; may be given several times.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the run folders."
)
def selftest(gate: str, suite: str, model: str, only: tuple[str, ...], out: Path) -> int:
    """Test a gate: known-bad variants must fail, harmless changes must pass.

    \b
    Exit codes: 0 at least 95 % of the known-bad variants were killed and no
    harmless change was stopped, 1 otherwise, 2 could not be run or judged.
    """
    from harness.selftest.flow import selftest as run_selftest
    from harness.terminal import Terminal

    return run_selftest(model, gate, suite, only, out, Terminal())


@app.command(name="list")
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--terms", is_flag=True, help="Explain the terms used in files, reports and messages instead.")
def list_everything(name: str | None, terms: bool) -> int:
    """List everything that files can name, or the settings of NAME: type, default, range, meaning, example.

    \b
    NAME: a suite, gate, target, measure, backend, rule, probe, writer or engine;
    a group, such as backends; variant-file, suite-file or gate-file.
    """
    if terms:
        from harness.commands.terms import print_terms

        print_terms()
        return 0
    if name:
        from harness.commands.settings import print_named

        return print_named(name)
    from harness.commands.catalogue import print_catalogue

    print_catalogue()
    return 0


@app.command()
@click.argument("kind", type=click.Choice(["variant", "suite", "gate"]))
@click.option("--out", type=click.Path(path_type=Path), help="File to write the schema to, instead of printing it.")
def schema(kind: str, out: Path | None) -> int:
    """Print the JSON Schema of variant, suite or gate files, with every plugin that is installed.

    \b
    Editors use it to complete and check YAML, given this line in the file:
    # yaml-language-server: $schema=./variant.schema.json
    """
    from harness.commands.schema import print_schema

    click.echo(print_schema(kind, out), nl=False)
    return 0


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise EndedBySignal(number)


def main() -> None:
    """Run the command line and exit."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _on_signal)
    refuse_silent_exits()
    if sys.argv[1:2] == ["compare"]:
        # transformers imports torch wherever it finds it, which takes longer than the comparison.
        sys.modules["torch"] = None  # type: ignore[assignment]
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    out, _ = endure()
    code = _run(sys.argv[1:])
    out.flush()
    if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
        _say(f"error: standard output could not be written: {out.lost.strerror}")
        if code == 0 and sys.argv[1:2] and sys.argv[1] in PRINT_ONLY:
            code = 2
    sys.exit(code)


LAST_WORDS = (
    f"error: out of memory, even for its message; what was measured is kept\n{name_failure('resources')}\n".encode()
)


def _run(arguments: list[str]) -> int:
    """The exit code of a command line; every error ends here, and none of them with 0."""
    try:
        return int(app.main(arguments, prog_name="harness", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return 2
    except AddressSpaceError as error:  # told without terminal.py, which would load what there is no memory for
        _say(f"error: {error}\n{name_failure(error.failure)}")
        return 2
    except EndedBySignal as ended:
        _say("ended by a signal; what was measured is kept, and the same command resumes")
        return 128 + ended.number
    except BaseException as error:  # noqa: BLE001 - the last line of defence: whatever ends the work, it is not with 0
        try:
            _say(_defuse(f"{_explain(error)}\n{name_failure(classify(error))}"))
        except MemoryError:  # Python would end with 1 then, the exit code of a rule that failed
            os.write(2, LAST_WORDS)
        return 2


def _explain(error: BaseException) -> str:
    """What a person can do about an error; of a defect, where it is."""
    if isinstance(error, PlanError):
        return f"{error}\n{len(error.problems)} mistake{'s' * (len(error.problems) > 1)} found; nothing was run"
    if isinstance(error, HarnessError):
        return f"error: {error}"
    if any(map(is_out_of_memory, trace_causes(error))):
        return f"error: {OUT_OF_MEMORY}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("harness"):
        found = [str(each) for each in trace_causes(error) if isinstance(each, ImportError)]
        return f"error: a library cannot be loaded: {found[-1]}; install it again, or give the process more memory"
    if isinstance(error, OSError):
        return f"error: {error.filename or 'the system'}: {error.strerror or error}"
    if isinstance(error, SystemExit):
        return f"error: a plugin or a library ended the process with {error.code!r}; nothing that it did counts"
    return f"this is a defect of the harness, not of your input:\n{''.join(traceback.format_exception(error))}"


def _defuse(text: str) -> str:
    """Text that no terminal and no CI runner takes for a command, without home folders."""
    try:
        from harness.terminal import defuse_lines
    except (ImportError, OSError, MemoryError):  # where files or memory have run out, nothing more can be imported
        return text.replace("::", ": :").replace("##", "# #")
    return defuse_lines(text)


def _say(text: str) -> None:
    """Print to standard error, whatever its encoding."""
    sys.stderr.write(f"{text}\n".encode("utf-8", "backslashreplace").decode("utf-8"))
