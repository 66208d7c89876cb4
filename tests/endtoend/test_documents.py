"""What the documents of the repository say is so: their links, paths, commands, snippets and workflows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from harness.cli import app
from harness.plan import load_gate, load_suite, make_plan

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
PAGES = [ROOT / "README.md", *sorted(GITHUB.rglob("*.md"))]
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PATH = re.compile(r"`((?:harness|tests|suites|gates|reports|\.github|\.ci)/[\w./-]*)`")
TOP = {"pyproject.toml", "README.md", "harness", "gates", "suites", "reports", "tests", "Makefile", "LICENSE"}
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


@by_name
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@by_name
def test_paths_exist(page: Path) -> None:
    for path in PATH.findall(page.read_text(encoding="utf-8")):
        assert "NAME" in path or (ROOT / path).exists(), path


@by_name
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    for line in lines + re.findall(r"`(harness [^`]+)`", page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if words[:1] != ["harness"] or words[1:2] == ["--version"]:
            continue
        command = app.commands[words[1]]
        options = {name for each in command.params if isinstance(each, click.Option) for name in each.opts}
        assert {word for word in words[2:] if word.startswith("--")} <= options | {"--help"}, line


@by_name
def test_make_targets_exist(page: Path) -> None:
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"(?:`|^|&& )make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert target in known


def test_every_room_is_on_the_map() -> None:
    rooms = {path.name for path in (ROOT / "harness").iterdir() if (path / "__init__.py").exists()}
    rooms |= {path.name for path in (ROOT / "harness").glob("*.py") if not path.name.startswith("_")}
    page = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split("## The rooms of harness/")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {name.rstrip("/") for cell in cells for name in re.findall(r"`([\w./]+)`", cell)} == rooms


def test_every_guide_is_linked() -> None:
    page = (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for guide in (GITHUB / "guides").glob("*.md"):
        assert f"(guides/{guide.name})" in page, guide.name
    index = (GITHUB / "decisions" / "README.md").read_text(encoding="utf-8")
    for decision in (GITHUB / "decisions").glob("0*.md"):
        assert f"({decision.name})" in index, decision.name


def test_guides_and_decisions_are_one_page_each() -> None:
    for folder in ("guides", "decisions"):
        for page in (GITHUB / folder).glob("*.md"):
            assert len(page.read_text(encoding="utf-8").splitlines()) <= 140, page


def test_the_variant_of_the_readme_is_planned(tmp_path: Path) -> None:
    (text,) = [text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("name:")]
    (tmp_path / "variant.yaml").write_text(text.replace("path/to/model", "pocket"), encoding="utf-8")
    (tmp_path / "my-texts.jsonl").write_text('{"text": "Once upon a time."}\n', encoding="utf-8")
    plan = make_plan(tmp_path / "variant.yaml")
    assert (plan.name, plan.variant.compress[0].kind) == ("my-model-w4", "round_to_nearest")


@pytest.mark.parametrize("key", ["documents: {min: 40, max: 400}", "noise_floor: [batch_size, padding_side"])
def test_keys_of_suites_in_guides_are_read(key: str, tmp_path: Path) -> None:
    (page,) = [page for page in (GITHUB / "guides").glob("*.md") if key in page.read_text(encoding="utf-8")]
    (line,) = re.findall(rf"`({re.escape(key)}[^`]*)`", page.read_text(encoding="utf-8"))
    line = line.replace("{min", "{data: pocket-heldout, min")
    documents = "" if line.startswith("documents") else "documents: {data: pocket-heldout, max: 20}\n"
    (tmp_path / "s.yaml").write_text(f"{documents}{line}\nmeasures: [perplexity]\n", encoding="utf-8")
    assert load_suite("./s.yaml", tmp_path).measures


@pytest.mark.parametrize("method", ["group_sequential", "betting"])
def test_the_methods_of_interim_looks_are_read(method: str, tmp_path: Path) -> None:
    assert f"`{method}`" in (GITHUB / "guides" / "sequential-sampling.md").read_text(encoding="utf-8")
    rule = "{rule: at_most, metric: divergence.kl_mean, limit: 0.1, above_noise: 3, why: w}"
    (tmp_path / "g.yaml").write_text(f"sequential: {method}\nrules:\n  - {rule}\n", encoding="utf-8")
    assert load_gate("./g.yaml", tmp_path).sequential == method


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_rights_are_least(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for each in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each
    content = yaml.safe_load(text)
    assert content["permissions"] in ({}, {"contents": "read"})
    for name, job in content["jobs"].items():
        assert job["timeout-minutes"] <= 40, name
        written = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert written <= {"attach": {"contents"}, "publish": {"id-token"}}.get(name, set()), name


def test_nothing_else_stands_at_the_top() -> None:
    ignored = {"runs", "dist", "build"}
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - ignored
    assert {name for name in there if not name.endswith(".egg-info")} == TOP
