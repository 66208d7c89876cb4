"""Which part of a check a process computes, as a user or a scheduler says it."""

from __future__ import annotations

import pytest

from harness.sharing.compute import read_share

SLURM = {"SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"}


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        ("1/1", {}, (1, 1)),
        ("3/8", {}, (3, 8)),
        ("3/8", SLURM | {"SLURM_ARRAY_TASK_ID": "7"}, (3, 8)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "0"}, (1, 8)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "7"}, (8, 8)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, (3, 4)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_STEP": "2"}, (8, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, (1, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "7"}, (8, 8)),
    ],
)
def test_a_share_is_counted_from_one(text: str, environment: dict[str, str], share: tuple[int, int]) -> None:
    assert read_share(text, environment) == share


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("0/8", {}, "found part 0 of 8, expected a part from 1 to 8"),
        ("9/8", {}, "found part 9 of 8"),
        ("3", {}, r"found '3', expected 3/8 \(the third of eight\)"),
        ("-1/8", {}, "found '-1/8'"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "does not say how many parts there are: write auto/8"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "x", "SLURM_ARRAY_TASK_COUNT": "4"}, "found SLURM_ARRAY_TASK_ID='x'"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "found SLURM_ARRAY_TASK_COUNT='' in the environment"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "found part 3 of 2"),
    ],
)
def test_what_is_no_share_is_refused(text: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_share(text, environment)
