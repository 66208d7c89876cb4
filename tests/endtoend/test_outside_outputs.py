"""A writer and a section of the report in packages of their own, installed like any other."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from harness.check import MARKER
from harness.system.library_log import LOG
from tests.helpers.outside_package import OutsidePackage, outside_package

WRITER = '''\
from pathlib import Path
from typing import ClassVar

from harness.errors import WriteError
from harness.writers import Writer


class Markdown(Writer):
    """summary.md: the verdict of every rule as a list."""

    file_name: ClassVar[str] = "summary.md"
    bullet: str = "*"
    """What stands before every rule."""
    broken: bool = False
    """Whether it fails."""

    def write(self, run, tables, folder: Path) -> Path:
        if self.broken:
            raise WriteError("the disk is full")
        path = folder / self.file_name
        path.write_text("".join(f"{self.bullet} {each.status} {each.metric}\\n" for each in run.verdicts))
        return path
'''
SECTION = '''\
from harness.report.sections import Section

TEMPLATE = """
{% import "parts.html" as part with context %}
{% set title = "Weights in kilobytes" %}
{% macro body() %}
<p>{{ kilobytes(run) }} kB, {{ words.STATUSES[run.verdict].headline }}: {{ part.status(run.verdict) }}</p>
{% endmacro %}
"""


def kilobytes(run):
    return sum(module.stored_bytes for module in run.variant.modules) // 1000


KILOBYTES = Section("kilobytes", 72, "Size of the weights in kilobytes.", TEMPLATE, {"kilobytes": kilobytes})
'''
VARIANT = """\
name: small
reference: {{model: pocket}}
variant:
  compress: [{{backend: round_to_nearest, bits: 8, granularity: channel}}]
suites: [./suite.yaml]
gates: [./gate.yaml]
{outputs}
"""
GATE = "rules: [{rule: at_most, metric: memory.bits_per_weight, limit: 32.0, why: any number of bits}]\n"


def write_files(package: OutsidePackage, outputs: str = "") -> None:
    (package.work / "suite.yaml").write_text("measures: [memory]\n")
    (package.work / "gate.yaml").write_text(GATE)
    (package.work / "v.yaml").write_text(VARIANT.format(outputs=outputs))


def files(package: OutsidePackage) -> set[str]:
    return {
        path.name
        for path in (package.work / "runs" / "small").iterdir()
        if path.is_file() and path.name not in (MARKER, LOG)
    }


@pytest.fixture(scope="module")
def markdown(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    folder = tmp_path_factory.mktemp("writer")
    return outside_package(folder, "writers", "markdown", "outside_markdown:Markdown", outside_markdown=WRITER)


def test_an_outside_writer_is_listed_planned_run_and_asked_again(markdown: OutsidePackage) -> None:
    listed = markdown.harness("list")
    assert re.search(r"^markdown +summary\.md: the verdict of every rule as a list\.", listed.stdout, re.MULTILINE)
    write_files(markdown, "outputs: [{writer: markdown, bullet: '-'}, junit]")
    planned = markdown.harness("plan", "v.yaml")
    assert re.search(r"outputs +run\.json, summary\.md, junit\.xml", planned.stdout), planned.stderr
    checked = markdown.harness("check", "v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    folder = markdown.work / "runs" / "small"
    assert files(markdown) == {"run.json", "summary.md", "junit.xml"}
    written = (folder / "summary.md").read_text()
    assert written == "- pass memory.bits_per_weight\n"
    assert "report: runs/small/summary.md" in checked.stdout
    asked = json.loads((folder / "run.json").read_text())["asked"]["outputs"]
    assert asked == [{"writer": "markdown", "bullet": "-", "broken": False}, {"writer": "junit"}]

    (folder / "summary.md").unlink()
    again = markdown.harness("report", "runs/small", "--as", "markdown", "--as", "report_html")
    assert again.returncode == 0, again.stderr
    assert (folder / "summary.md").read_text() == written
    assert (folder / "report.html").exists()

    unknown = markdown.harness("report", "runs/small", "--as", "report_htm")
    assert unknown.returncode == 2
    assert "no writer is called 'report_htm'; did you mean report_html?" in unknown.stderr


def test_an_outside_writer_that_fails_never_passes_is_named_and_leaves_nothing_stale(markdown: OutsidePackage) -> None:
    write_files(markdown, "outputs: [{writer: markdown, broken: true}, junit]")
    folder = markdown.work / "runs" / "small"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("summary.md", "report.html"):
        (folder / name).write_text("pass, said the check before")
    checked = markdown.harness("check", "v.yaml")
    assert checked.returncode == 2, checked.stdout + checked.stderr
    assert "markdown: the disk is full" in checked.stdout
    assert files(markdown) == {"run.json", "junit.xml"}
    again = markdown.harness("report", "runs/small", "--as", "markdown")
    assert again.returncode == 2
    assert "markdown: the disk is full" in again.stderr


def test_an_unknown_writer_is_refused_with_what_is_close(markdown: OutsidePackage) -> None:
    write_files(markdown, "outputs: [markdwn]")
    checked = markdown.harness("check", "v.yaml")
    assert checked.returncode == 2
    assert "v.yaml:7" in checked.stderr
    assert "did you mean markdown?" in checked.stderr


def test_an_outside_section_is_listed_and_drawn(tmp_path: Path) -> None:
    package = outside_package(
        tmp_path, "sections", "kilobytes", "outside_section:KILOBYTES", outside_section=textwrap.dedent(SECTION)
    )
    listed = package.harness("list")
    assert re.search(r"^kilobytes +Size of the weights in kilobytes\.", listed.stdout, re.MULTILINE), listed.stderr
    write_files(package)
    checked = package.harness("check", "v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    page = (package.work / "runs" / "small" / "report.html").read_text()
    assert re.search(r'<section id="kilobytes".*?<h2[^>]*>Weights in kilobytes</h2>\s*<p>[1-9]\d* kB', page, re.DOTALL)
    assert page.index('id="cost"') < page.index('id="kilobytes"') < page.index('id="formats"')
