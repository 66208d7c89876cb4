"""report.html: one file for people, readable offline, by phone, on paper and by screen readers."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from markupsafe import Markup

from harness.errors import WriteError
from harness.records import Run
from harness.report import (
    artifact,
    asked,
    channels,
    checklist,
    cost,
    display,
    experts,
    generation,
    glance,
    groups,
    layers,
    modules,
    noise,
    perplexity,
    rules,
    stops,
    tasks,
    texts,
    tokens,
    verdict,
    words,
)
from harness.report.drawing import charts, scales
from harness.report.suite import suites
from harness.system import resources
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

_TOOLS = (
    artifact, asked, channels, charts, checklist, cost, experts, generation, glance, groups, layers, modules, noise,
    perplexity, rules, scales, stops, tasks, texts, tokens, verdict, words,
)  # fmt: skip


class ReportHtml(Writer):
    """report.html: verdict, rules, causes and all numbers in one file without scripts or network."""

    file_name: ClassVar[str] = "report.html"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write report.html atomically. Raises WriteError."""
        path = folder / self.file_name
        write_atomic(path, render(run, tables, resources.folder("reports")).encode())
        return path


@dataclass(frozen=True)
class Section:
    """One section: the anchor from its file name, its title, and its HTML."""

    anchor: str
    title: str
    opens: bool
    body: Markup


def render(run: Run, tables: Tables, templates: Path) -> str:
    """The report as HTML, made with the templates in that folder.

    Every file in ``templates/sections`` is a section, in the order of the numbers their names begin with.
    It sets ``title`` and defines a macro ``body()``; the run, the suites, and every module of
    ``harness.report`` are at hand. The same run and tables give the same text. Raises WriteError naming
    the template that failed.
    """
    environment = _environment(templates)
    names = sorted(path.name for path in (templates / "sections").glob("*.html"))
    found, missing = suites(tables)
    given = {"run": run, "suites": found, "missing": missing}
    style = (templates / "style.css").read_text(encoding="utf-8")
    sections = [_section(environment, f"sections/{name}", given) for name in names]
    try:
        page = environment.get_template("base.html")
        return page.render(
            # The style sheet is a shipped file without anything of the run in it.
            given | {"sections": sections, "style": Markup(style), "style_hash": style_hash(style)}  # noqa: S704
        )
    except TemplateError as error:
        raise WriteError(f"report.html: template base.html failed: {error}") from error


def style_hash(style: str) -> str:
    """The hash by which the content security policy allows exactly this style sheet."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _section(environment: Environment, name: str, given: dict[str, Any]) -> Section:
    try:
        template: Template = environment.get_template(name)
        module: Any = template.make_module(given)
        anchor = name.rpartition("/")[2].partition(".")[0].lstrip("0123456789_")
        # The template escaped what it put into its body.
        body = Markup(module.body())  # noqa: S704
        return Section(anchor, str(module.title), bool(getattr(module, "opens", False)), body)
    except Exception as error:
        # A section may be anybody's; whatever goes wrong in it, the message names it.
        raise WriteError(f"report.html: template {name} failed: {type(error).__name__}: {error}") from error


@cache
def _environment(templates: Path) -> Environment:
    """Everything is escaped, nothing may be undefined, and every text from the run is made harmless and
    bounded.
    """
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {tool.__name__.rpartition(".")[2]: tool for tool in _TOOLS}
    filters = (
        display.number,
        display.signed,
        display.percent,
        display.points,
        display.size,
        display.short_hash,
    )
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {"quantity": display.quantity, "beside": display.beside}
    return environment


def _harmless(value: object) -> object:
    return display.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
