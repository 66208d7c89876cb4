"""What the guides tell people to hand to a scheduler is valid there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.records import RunSpec

GUIDES = Path(__file__).parents[2] / ".github" / "guides"
KUBERNETES = ("1.31", "1.34")
"""Versions whose published schemas the manifests must keep."""


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (GUIDES / guide).read_text(), re.MULTILINE | re.DOTALL)


def manifests() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks("kubernetes.md", "yaml")]


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_keep_the_published_schema_of_kubernetes(version: str) -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="needs: pip install kubernetes-validate")
    first, second = manifests()
    for manifest in (first, second):
        assert checker.validate(manifest, version, strict=True) == version
    first["spec"]["completion"] = 8
    with pytest.raises(checker.ValidationError, match="'completion' was unexpected"):
        checker.validate(first, version, strict=True)


def test_the_job_has_as_many_parts_as_its_command_says() -> None:
    spec = manifests()[0]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    assert f"auto/{spec['completions']}" in container["command"]
    assert f"shard-*-of-{spec['completions']}" in str(manifests()[1])


@pytest.mark.parametrize("guide", ["slurm.md", "shards.md"])
def test_the_scripts_are_shell(guide: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    scripts = blocks(guide, "bash")
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_array_has_as_many_parts_as_are_merged() -> None:
    script, submit = blocks("slurm.md", "bash")
    (count,) = re.findall(r"--array=1-(\d+)", script)
    assert f"shard-*-of-{count}" in submit


def test_the_entry_of_a_variant_file_is_one() -> None:
    (entry,) = blocks("ray.md", "yaml")
    content = yaml.safe_load(entry)["run"]
    assert RunSpec.model_validate(content)
    assert set(content) == set(RunSpec.model_fields), "every key is explained"
