"""A check in shards, as a scheduler would run it, against the same check in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = """
name: {name}
reference: {{model: pocket}}
variant:
  compress:
    - {{backend: round_to_nearest, bits: {bits}, granularity: channel}}
suites: [smoke]
gates: [smoke]
"""


def harness(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


def without_clock(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in content.items() if key != "clock"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shards")
    for name, bits in (("good", 8), ("bad", 2)):
        (made / f"{name}.yaml").write_text(FILE.format(name=name, bits=bits))
    return made


def test_an_array_of_jobs_and_a_merge_give_the_run_of_one_process(folder: Path) -> None:
    files = ("good.yaml", "bad.yaml")
    whole = harness("check", *files, "--out", "whole", folder=folder)
    assert whole.returncode == 1, whole.stderr
    for index in (0, 1):
        environment = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}
        part = harness("check", *files, "--shard", "auto", folder=folder, **environment)
        assert part.returncode == 0, part.stderr
        assert "harness merge judges once all 2 are there" in " ".join(part.stdout.split())
        assert not list((folder / "runs").rglob("run.json")), "a shard has no verdict"
    gap = harness("merge", "runs/shard-2-of-2", "--out", "merged", folder=folder)
    assert gap.returncode == 2
    assert "no folder of shard 1/2, expected all of 1/2 to 2/2" in gap.stderr
    assert not (folder / "merged").exists()
    merged = harness("merge", "runs/shard-1-of-2", "runs/shard-2-of-2", "--out", "merged", folder=folder)
    assert merged.returncode == 1, merged.stderr
    for name in ("good", "bad"):
        assert without_clock(folder / "merged" / name / "run.json") == without_clock(
            folder / "whole" / name / "run.json"
        )
        assert (folder / "merged" / name / "report.html").is_file()
    assert (folder / "merged" / "overview.html").is_file()
    again = harness("merge", "runs/shard-1-of-2", "runs/shard-2-of-2", "--out", "merged", folder=folder)
    assert again.returncode == 1, again.stderr


def test_mistakes_end_in_2_and_name_what_to_write(folder: Path) -> None:
    found = harness("check", "good.yaml", "--shard", "9/8", folder=folder)
    assert (found.returncode, "--shard: found part 9 of 8, expected a part from 1 to 8" in found.stderr) == (2, True)
    found = harness("merge", "nowhere", folder=folder)
    assert found.returncode == 2
    assert "nowhere: found no shard.json there or one level below" in found.stderr
