"""The speed and the memory of this machine."""

from __future__ import annotations

from pathlib import Path

from harness.forecast.machine import measure_operations, multiplies_bfloat16, total_memory


def test_the_speed_is_measured_once_and_is_that_of_some_computer() -> None:
    assert 1e7 < measure_operations() < 1e15
    assert measure_operations() == measure_operations()


def test_a_limit_of_the_container_counts_where_it_is_lower(tmp_path: Path) -> None:
    whole = total_memory(())
    assert whole is not None
    (tmp_path / "limit").write_text("1000\n")
    (tmp_path / "none").write_text("max\n")
    assert total_memory((str(tmp_path / "none"), str(tmp_path / "absent"))) == whole
    assert total_memory((str(tmp_path / "none"), str(tmp_path / "limit"))) == 1000


def test_processors_that_multiply_bfloat16_are_known_by_their_flags() -> None:
    assert multiplies_bfloat16("flags: avx2 avx512_bf16 amx_tile")
    assert not multiplies_bfloat16("flags: avx2 avx512f")
