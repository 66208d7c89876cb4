"""harness check on the workers of a cluster comes to the same run.json as in one process, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.check import check
from harness.terminal import Terminal
from tests.helpers.cluster_checks import BROAD, DRAWN, SMALL, read_same, write_check
from tests.helpers.local_cluster import LocalCluster, list_actors, local_cluster

pytest.importorskip("ray", reason="needs the extra ray")

DECIDED_AT = 0.006
"""A limit that the suite DRAWN decides at an interim look, after several."""
MATRIX = "matrix: {bits: [3, 4, 8]}\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as made:
        yield made


def on(cluster: LocalCluster, workers: int = 2, **more: Any) -> str:
    entries = {"workers": workers, "wait": 60, **more}
    return f"run: {{ray: '{cluster.address}', {', '.join(f'{k}: {v}' for k, v in entries.items())}}}\n"


def run(folder: Path, suite: str, limit: float, name: str, where: str = "", matrix: str = "") -> tuple[int, Path]:
    out = folder / name
    return check([write_check(folder, suite, limit, matrix, where)], out, Terminal()), out


def both(folder: Path, suite: str, limit: float, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same check in one process and on workers."""
    (code, plain), (other, spread) = run(folder, suite, limit, "plain"), run(folder, suite, limit, "ray", where)
    assert code == other
    return read_same(plain / "v"), read_same(spread / "v")


def test_a_check_with_tasks_is_the_same_on_two_workers(cluster: LocalCluster, tmp_path: Path) -> None:
    plain, spread = both(tmp_path, SMALL, 0.05, on(cluster))
    assert spread == plain
    assert {each["name"].partition(".")[0] for each in plain["measurements"]} >= {"divergence", "perplexity", "tasks"}


@pytest.mark.slow
def test_a_suite_that_samples_until_decided_stops_at_the_same_look(cluster: LocalCluster, tmp_path: Path) -> None:
    plain, spread = both(tmp_path, DRAWN, DECIDED_AT, on(cluster))
    assert spread == plain
    (stop,) = plain["stops"]
    assert 20 < stop["documents"] < 160


@pytest.mark.slow
def test_a_sweep_is_the_same_and_one_reference_pass_serves_all_its_variants(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, plain = run(tmp_path, DRAWN, DECIDED_AT, "plain", matrix=MATRIX)
    other, spread = run(tmp_path, DRAWN, DECIDED_AT, "ray", on(cluster), MATRIX)
    assert code == other == 1, "the variant of three bits fails"
    for name in ("v-bits3", "v-bits4", "v-bits8"):
        assert read_same(spread / name) == read_same(plain / name)
    assert (spread / "overview.html").is_file()


@pytest.mark.slow
def test_a_variant_that_cannot_be_made_leaves_the_others_alone(cluster: LocalCluster, tmp_path: Path) -> None:
    matrix = "matrix: {bits: [4, {model: ./nowhere}]}\n"
    path = write_check(tmp_path, DRAWN, DECIDED_AT, matrix, on(cluster))
    broken = tmp_path / "nowhere"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    text = path.read_text().replace("variant: {compress: [{backend: round_to_nearest, bits: $bits}]}", "variant: $side")
    sides = (
        "matrix:\n  side:\n    good: {compress: [{backend: round_to_nearest, bits: 8}]}\n    bad: {model: ./nowhere}\n"
    )
    path.write_text(text.replace(matrix, sides))
    assert check([path], tmp_path / "out", Terminal()) == 2
    assert read_same(tmp_path / "out" / "v-good")["verdict"] == "pass"
    assert not (tmp_path / "out" / "v-bad" / "run.json").exists()
    assert (tmp_path / "out" / "v-bad" / "failure.json").is_file()


@pytest.mark.slow
def test_a_reference_that_cannot_be_loaded_is_told_as_in_one_process(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    path = write_check(tmp_path, DRAWN, DECIDED_AT, run=on(cluster))
    path.write_text(path.read_text().replace("reference: {model: pocket}", "reference: {model: ./empty}"))
    assert check([path], tmp_path / "out", Terminal()) == 2
    assert "error" in (said := capsys.readouterr().out)
    assert "empty: has no config.json" in said
    failure = json.loads((tmp_path / "out" / "v" / "failure.json").read_text())
    assert failure["failure"] == "model_unsupported"


def kill_at_random(cluster: LocalCluster, folder: Path, seed: int, what: str) -> Path:
    """A check as a process of its own, with one SIGKILL at a random moment; the head, if it was hit, starts again."""
    draw = random.Random(seed)
    path = write_check(folder, DRAWN, DECIDED_AT, run=on(cluster))
    command = [sys.executable, "-m", "harness", "check", str(path), "--out", str(folder / "ray")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(draw.uniform(3.0, 16.0))
    if what == "head":
        process.send_signal(signal.SIGKILL)
    elif what == "node":
        cluster.kill_node(cluster.nodes[0])
    elif actors := list_actors():
        os.kill(draw.choice(actors), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    if what == "head":
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300).stdout
    assert (folder / "ray" / "v" / "run.json").is_file(), said
    return folder / "ray" / "v"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The check DRAWN in one process."""
    return read_same(run(tmp_path_factory.mktemp("drawn"), DRAWN, DECIDED_AT, "plain")[1] / "v")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_at_any_moment_changes_no_bit(
    cluster: LocalCluster, tmp_path: Path, drawn: dict[str, Any], seed: int
) -> None:
    assert read_same(kill_at_random(cluster, tmp_path, seed, "worker")) == drawn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_head_killed_at_any_moment_resumes_and_changes_no_bit(
    cluster: LocalCluster, tmp_path: Path, drawn: dict[str, Any], seed: int
) -> None:
    assert read_same(kill_at_random(cluster, tmp_path, seed, "head")) == drawn


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_node_killed_at_any_moment_changes_no_bit(tmp_path: Path, drawn: dict[str, Any], seed: int) -> None:
    with local_cluster(3) as cluster:
        assert read_same(kill_at_random(cluster, tmp_path, seed, "node")) == drawn


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["BROAD", "DRAWN"])
def test_every_number_of_workers_gives_the_same_bits(tmp_path: Path, suite: str) -> None:
    content = {"BROAD": BROAD, "DRAWN": DRAWN}[suite]
    plain = read_same(run(tmp_path, content, DECIDED_AT, "plain")[1] / "v")
    with local_cluster(3, num_cpus=3) as cluster:
        for workers in (1, 2, 7):
            _, out = run(tmp_path, content, DECIDED_AT, f"ray{workers}", on(cluster, workers))
            assert read_same(out / "v") == plain
