"""`harness selftest` through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = """\
description: a few documents
documents: {data: pocket-heldout, max: 24, context: 256}
measures: [divergence, perplexity]
"""
GATE = """\
description: small limits for tests
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: a reader notices two percent}
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.05, why: as in the gate ship}
"""
LOOSE = """\
description: lets nearly everything pass
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 5.0, why: too loose}
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "harness", "selftest", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout


def only(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def outcomes(folder: Path, gate: str) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "runs" / "selftest" / f"{gate}.json").read_text())
    return {each["name"]: each for each in content["outcomes"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, content in (("few", SUITE), ("small", GATE), ("loose", LOOSE)):
        (tmp_path / f"{name}.yaml").write_text(content)
    return tmp_path


def test_a_sharp_gate_kills_mutants_and_a_loose_one_is_told_which_survive(files: Path) -> None:
    mutants = ("nibbles_swapped", "layer_left_out", "expert_zeroed")
    names = only("neurons_permuted", *mutants)
    code, output = run(files, "--gate", "./small.yaml", "--suite", "./few.yaml", *names)
    assert code == 0, output
    found = outcomes(files, "small")
    assert {name: each["result"] for name, each in found.items()} == {
        "int4": "passed",
        "neurons_permuted": "passed",
        "nibbles_swapped": "killed",
        "layer_left_out": "killed",
        "expert_zeroed": "left out",
    }
    by = [caught["metric"] for caught in found["nibbles_swapped"]["by"]]
    assert by == ["perplexity.ratio", "divergence.kl_mean"]
    assert "sharp enough: gate small kills 2 of 2 mutants (100.0 %" in output
    assert "stops 0 of 1 harmless changes" in output

    code, output = run(files, "--gate", "./loose.yaml", "--suite", "./few.yaml", *names)
    assert code == 1, output
    found = outcomes(files, "loose")
    assert (found["nibbles_swapped"]["result"], found["layer_left_out"]["result"]) == ("killed", "survived")
    assert "survived: layer_left_out" in output


def test_faults_beside_the_weights_are_killed_by_what_differs_in_the_files(files: Path) -> None:
    (files / "apart.yaml").write_text(GATE + "  - {rule: at_most, metric: comparability.at_once, limit: 0.0, why: w}\n")
    beside = ("stop_token_lost", "sampling_changed", "context_shortened", "wrong_chat_template", "bos_dropped")
    mutants = (*beside, "decoder_lost", "end_token_exchanged")
    code, output = run(files, "--gate", "./apart.yaml", "--suite", "./few.yaml", *only(*mutants))
    assert code == 0, output
    found = outcomes(files, "apart")
    assert {name: each["result"] for name, each in found.items()} == dict.fromkeys(mutants, "killed")
    failed = {
        name: [caught["metric"] for caught in found[name]["by"] if caught["status"] == "fail"] for name in mutants
    }
    assert failed == {name: ["comparability.at_once"] for name in mutants}


def test_a_tokenizer_that_gives_other_ids_is_never_judged_as_a_pass(files: Path) -> None:
    code, output = run(files, "--gate", "./small.yaml", "--suite", "./few.yaml", *only("token_ids_off_by_one"))
    assert code == 0, output
    by = outcomes(files, "small")["token_ids_off_by_one"]["by"]
    assert {caught["status"] for caught in by} == {"error"}
    assert "other token ids" in by[0]["because"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gate", "ship", "--suite", "./few.yaml"), "logits.max_abs_diff"),
        (("--gate", "shipp"), "did you mean ship?"),
        (("--gate", "./small.yaml", "--suite", "./few.yaml", "--only", "no_such_bug"), "no_such_bug"),
        (("--gate", "./small.yaml", "--suite", "./few.yaml", "--model", "./nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_run_exits_with_2_and_says_why(files: Path, arguments: tuple[str, ...], said: str) -> None:
    code, output = run(files, *arguments)
    assert code == 2, output
    assert said in output


def test_a_gate_that_stops_the_unchanged_model_is_an_error(files: Path) -> None:
    (files / "few.yaml").write_text(SUITE.replace("perplexity]", "perplexity, memory]"))
    (files / "never.yaml").write_text(
        "description: never met\nrules:\n"
        "  - {rule: at_most, metric: memory.weight_bytes, limit: 1.0, why: nothing is that small}\n"
    )
    code, output = run(files, "--gate", "./never.yaml", "--suite", "./few.yaml", *only("gain_overflowed"))
    assert code == 2, output
    assert "the reference judged against itself is fail" in output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("selftest")
    code, output = run(folder)
    assert code in (0, 1), output
    return outcomes(folder, "ship")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ship_kills_nearly_every_mutant_of_the_embedded_model(whole: dict[str, dict[str, Any]]) -> None:
    counted = [each for each in whole.values() if each["result"] in ("killed", "undecided", "survived")]
    alive = [each["name"] for each in counted if each["result"] != "killed"]
    assert len(counted) >= 20
    assert len(alive) <= 0.05 * len(counted), alive


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ship_stops_no_harmless_change(whole: dict[str, dict[str, Any]]) -> None:
    benign = {each["name"]: each["result"] for each in whole.values() if each["kind"] == "benign"}
    assert len(benign) >= 6
    assert [name for name, result in benign.items() if result != "passed"] == []
