"""Outcome: reads what harness check left, writes the outputs of the action and the files that its later steps send.

    outcome.py CODE OUT VARIANT... -- GATE...

Exits with 0: the last step of the action ends with the exit code that stands among the outputs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.judge import rejudge
from harness.plan import load_gate, names_of
from harness.terminal import Terminal
from harness.write import read_failure, read_run, write_again

WORST_FIRST = (2, 1, 3, 0)
VERDICTS = {0: "pass", 1: "fail", 2: "error", 3: "inconclusive"}


def main(arguments: list[str]) -> None:
    """Write the outputs."""
    split = arguments.index("--")
    checked, out, variants, gates = int(arguments[0]), Path(arguments[1]), arguments[2:split], arguments[split + 1 :]
    folders = [out / name for path in variants for name in sorted(names_of(Path(path)))]
    selected = {folder: find_selected(folder) for folder in folders}
    counted = [folder for folder in folders if selected[folder] in ("", folder.name)]
    temporary = Path(os.environ["RUNNER_TEMP"]) / "lm-shipcheck"
    found = {folder: judge(folder, gates) for folder in counted}
    for folder in folders:
        send(folder, temporary)
    known = checked if checked in VERDICTS else 2
    worst = min([known, *(code_ for code_, _ in found.values())], key=WORST_FIRST.index)
    folder = next((each for each, (code_, _) in found.items() if code_ == worst), out)
    report = folder / "report.html"
    outputs = {
        "verdict": VERDICTS[worst],
        "failure": "" if worst == 0 else found[folder][1] if folder in found else "usage",
        "exit-code": str(worst),
        "selected": ", ".join(sorted({*selected.values()} - {""})),
        "report": str(report if report.is_file() else folder),
        "sarif": str(temporary / "sarif") if (temporary / "sarif").is_dir() else "",
        "comments": str(temporary / "comments"),
    }
    append("GITHUB_OUTPUT", "".join(f"{key}={' '.join(value.split())}\n" for key, value in outputs.items()))


def find_selected(folder: Path) -> str:
    """The variant that was selected in place of all of a file; empty where all count."""
    try:
        return read_run(folder).selected
    except HarnessError:
        return ""


def judge(folder: Path, gates: list[str]) -> tuple[int, str]:
    """The worst exit code of a run, its own or by further gates, and its class of failure."""
    try:
        run = read_run(folder)
    except HarnessError:
        failure = read_failure(folder)
        return 2, failure.failure if failure else "usage"
    found = [(run.exit_code, run.failure or "")]
    for gate in gates:
        try:
            judged = rejudge(run, [load_gate(gate, Path.cwd())])
        except HarnessError as error:
            Terminal().error(str(error), error.failure)
            return 2, error.failure
        Terminal().verdict(judged)
        found.append((judged.exit_code, judged.failure or ""))
    return min(found, key=lambda each: WORST_FIRST.index(each[0]))


def send(folder: Path, temporary: Path) -> None:
    """Put the SARIF file and the comment of a run, or of why there is none, where the later steps look for them."""
    try:
        write_again(folder, ("sarif", "comment_md"))
    except HarnessError as error:
        Terminal().error(str(error), error.failure)
        return
    for file, target in (("results.sarif", f"sarif/{folder.name}.sarif"), ("comment.md", f"comments/{folder.name}.md")):
        (temporary / target).parent.mkdir(parents=True, exist_ok=True)
        (temporary / target).write_bytes((folder / file).read_bytes())


def append(variable: str, text: str) -> None:
    """Append to the file that the runner names."""
    if target := os.environ.get(variable):
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
