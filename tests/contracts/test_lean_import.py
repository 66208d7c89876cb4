"""The light half of the command line must not pay for the heavy half: no model library is loaded by it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "ray")

VARIANT = Path(__file__).parents[1] / "planning" / "pocket.yaml"

LIGHT = [
    "import harness.cli",
    "import harness.plan, harness.judge, harness.write, harness.statistics",
    "from harness.testing import BackendConformance",
    "from harness.plugins import FAMILIES, base_of, load, names\n"
    "[load(base, name) for base in map(base_of, FAMILIES) for name in names(base)]",
    "import harness.cli, sys\nassert harness.cli._run(['--help']) == 0",
    "import harness.cli, sys\nassert harness.cli._run(['list']) == 0",
    "import harness.cli, sys\nassert harness.cli._run(['list', 'gptq']) == 0",
    "import harness.cli, sys\nassert harness.cli._run(['schema', 'variant']) == 0",
    "import harness.cli, sys\nassert harness.cli._run(['lint', 'ship', '--suite', 'core']) == 0",
    f"import harness.cli, sys\nassert harness.cli._run(['plan', {str(VARIANT)!r}]) == 0",
]


def _heavy_after(code: str) -> list[str]:
    return _loaded_after(code, HEAVY)


def _loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    probe = f"{code}\nimport sys, json\nprint('\\n' + json.dumps([m for m in {names!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("code", LIGHT)
def test_light_commands_load_no_model_library(code: str) -> None:
    assert _heavy_after(code) == []


def test_the_head_of_a_cluster_loads_nothing_that_opens_models() -> None:
    assert _heavy_after("import harness.cluster.run, harness.cluster.ray_workers, harness.cluster.concluding") == []


def test_shards_are_merged_without_anything_that_opens_models() -> None:
    assert _heavy_after("import harness.sharing.merge, harness.sharing.merging") == []


USED_ONLY_FOR_TASKS = ("lm_eval", "datasets", "evaluate", "sacrebleu", "nltk", "matplotlib")
USED_ONLY_BY_TRANSFORMERS = ("sklearn", "scipy.stats", "hqq", "torchao")


def test_a_check_of_rounding_without_tasks_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "documents: {data: pocket-heldout, max: 2, context: 16}\nmeasures: [divergence, perplexity, layer_error]\n"
    )
    (tmp_path / "gate.yaml").write_text(
        "rules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: any number}\n"
    )
    (tmp_path / "variant.yaml").write_text(
        "name: rounded\nreference: {model: pocket}\nvariant: {compress: [{backend: round_to_nearest, bits: 8}]}\n"
        "suites: [./suite.yaml]\ngates: [./gate.yaml]\n"
    )
    arguments = ["check", str(tmp_path / "variant.yaml"), "--out", str(tmp_path / "runs")]
    code = f"import harness.cli, sys\nassert harness.cli._run({arguments!r}) == 0"
    unused = ("ray", "harness.cluster", *USED_ONLY_FOR_TASKS, *USED_ONLY_BY_TRANSFORMERS)
    assert _loaded_after(code, ("torch", *unused)) == ["torch"]


READ_BACK = """
from harness.artifacts import worker
worker.import_libraries()
import harness.artifacts.outputs
"""


def test_an_artifact_is_read_back_without_what_only_transformers_would_use() -> None:
    assert _loaded_after(READ_BACK, ("torch", *USED_ONLY_BY_TRANSFORMERS)) == ["torch"]


STILL_FOUND = """
import sys
from importlib.util import find_spec
from harness.system.lean_imports import import_transformers
import_transformers()
from transformers import utils
for name in ("sklearn", "scipy", "hqq", "torchao"):
    assert getattr(utils, f"is_{name}_available")() == (find_spec(name) is not None)
for name, module in list(sys.modules.items()):
    if name.startswith("transformers") and "is_torchao_available" in vars(module):
        assert module.is_torchao_available() == (find_spec("torchao") is not None), name
"""


def test_other_modules_of_transformers_still_find_what_is_installed() -> None:
    assert _loaded_after(STILL_FOUND, ("transformers",)) == ["transformers"]


def test_the_probe_sees_a_heavy_import() -> None:
    assert _heavy_after("import torch") == ["torch"]
