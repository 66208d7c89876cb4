"""The bits of fixed computations: the same in every process of a machine, others where one rounds otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.cluster.rounding import describe_rounding


def test_another_process_of_this_machine_rounds_alike() -> None:
    threads = torch.get_num_threads()
    code = (
        f"import torch; torch.set_num_threads({threads}); "
        "from harness.cluster.rounding import describe_rounding as d; print(d())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == describe_rounding() == describe_rounding()


@pytest.mark.parametrize("name", ["exp", "softmax", "rsqrt"])
def test_one_last_bit_of_one_function_is_seen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected, function = describe_rounding(), getattr(torch, name)

    def shifted(*values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = function(*values).clone()
        result.view(-1)[0] = torch.nextafter(result.view(-1)[0], torch.tensor(torch.inf))
        return result

    monkeypatch.setattr(torch, name, shifted)
    assert describe_rounding() != expected


def test_it_does_not_disturb_the_random_numbers_of_the_process() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    describe_rounding()
    assert torch.equal(torch.rand(3), expected)
