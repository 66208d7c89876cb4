"""report.html: one file for people, readable offline, by phone, on paper and by screen readers."""

from __future__ import annotations

import base64
import hashlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from jinja2.runtime import Context
from jinja2.utils import missing
from markupsafe import Markup
from pydantic import Field

import harness.report
from harness.errors import WriteError
from harness.records import Run
from harness.report import display
from harness.report.sections import Section, find_sections
from harness.system import resources
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

_FILTERS = (
    display.exact, display.format_together, display.full, display.number, display.percent, display.points,
    display.quantity, display.short_hash, display.format_signed, display.size,
)  # fmt: skip


class ReportHtml(Writer):
    """report.html: verdict, rules, causes and all numbers in one file that loads nothing."""

    file_name: ClassVar[str] = "report.html"
    portable: ClassVar[bool] = True

    texts: bool = Field(
        default=True,
        description="show excerpts of documents, prompts, answers and generated texts; false leaves them out",
    )

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write report.html atomically. Raises WriteError."""
        path = folder / self.file_name
        write_atomic(path, render(run, tables, resources.folder("reports"), self.texts).encode())
        return path


@dataclass(frozen=True)
class _Rendered:
    """One section: its anchor, its title, and its HTML. opens: it is the head of the page and brings its own <h1>."""

    anchor: str
    title: str
    opens: bool
    body: Markup


def render(run: Run, tables: Tables, templates: Path, texts: bool = True) -> str:
    """The report as HTML: every section that ``harness.report.sections`` finds and that has something to show.

    texts: show excerpts of documents, prompts and answers.

    The same run and tables give the same text. Raises WriteError naming the template that failed.
    """
    from harness.report.summaries.suite_tables import open_suites

    environment = make_environment(templates)
    suites, no_tables = open_suites(tables)
    values = {"run": run, "suites": suites, "no_tables": no_tables, "show_texts": texts}
    assets = read_assets(templates, "style.css")
    rendered = [_render(environment, section, values) for section in find_sections(templates)]
    sections = [each for each in rendered if each.body.strip()]
    try:
        return environment.get_template("base.html").render(values | assets | {"sections": sections})
    except TemplateError as error:
        raise WriteError(f"report.html: template base.html failed: {error}") from error


def read_assets(templates: Path, *styles: str) -> dict[str, Markup]:
    """The style sheets and the script that a page holds; shipped files, without anything of a run in them."""
    style = "".join((templates / name).read_text(encoding="utf-8") for name in styles)
    script = (templates / "script.js").read_text(encoding="utf-8")
    return {"style": Markup(style), "script": Markup(script)}  # noqa: S704


def content_hash(text: str) -> str:
    """The hash by which the content security policy allows exactly this style sheet or script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _render(environment: Environment, section: Section, values: dict[str, Any]) -> _Rendered:
    try:
        module: Any = _compile(environment, section.template).make_module(values | dict(section.tools))
        # The template escaped what it put into its body.
        body = Markup(module.body())  # noqa: S704
        return _Rendered(section.name, str(module.title), bool(getattr(module, "opens", False)), body)
    except Exception as error:
        # A section may be anybody's; whatever goes wrong in it, the message names it.
        raise WriteError(f"report.html: {section.origin} failed: {type(error).__name__}: {error}") from error


@cache
def _compile(environment: Environment, template: str) -> Template:
    return environment.from_string(template)


class _TemplateContext(Context):
    """Looks names up for templates; an undefined one may be a module of harness.report, imported when first used."""

    def resolve_or_missing(self, key: str) -> Any:
        """The value of a name, or jinja's ``missing``."""
        value = super().resolve_or_missing(key)
        return import_module(modules()[key]) if value is missing and key in modules() else value


@cache
def modules() -> dict[str, str]:
    """Full names of the modules of harness.report and its packages, by their own names."""
    found = pkgutil.walk_packages(harness.report.__path__, "harness.report.")
    return {module.name.rpartition(".")[2]: module.name for module in found if not module.ispkg}


@cache
def make_environment(templates: Path) -> Environment:
    """Escapes everything, refuses undefined names, and makes every text of the run harmless and bounded."""
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_defuse,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.context_class = _TemplateContext
    environment.filters |= {function.__name__: function for function in (*_FILTERS, content_hash)}
    return environment


def _defuse(value: object) -> object:
    return display.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
