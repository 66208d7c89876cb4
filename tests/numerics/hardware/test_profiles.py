"""The table of kernels itself: whole, sourced, and in the words that the backends use."""

from __future__ import annotations

import pytest

from harness.numerics.hardware.profiles import CacheKernel, Kernel, profiles, target_names
from harness.numerics.named_formats import INTEGER_BITS, named_formats

KNOWN = {f"int{bits}" for bits in INTEGER_BITS} | named_formats().keys() - {"int"}
"""Every format of weights that a backend can leave behind; a name in the table that is not here matches nothing."""


def entries() -> list[Kernel | CacheKernel]:
    return [*profiles().kernels, *profiles().caches]


def test_targets() -> None:
    wanted = {"x86-avx512", "x86-amx", "cuda-8.0", "cuda-8.9", "cuda-9.0", "cuda-10.0", "arm", "apple"}
    assert set(target_names()) == wanted
    assert all(profiles().targets.values())


def test_every_target_has_kernels_and_every_kernel_known_targets() -> None:
    table = profiles()
    for entry in entries():
        assert set(entry.targets) <= set(table.targets), entry.name
    for target in table.targets:
        assert any(target in kernel.targets for kernel in table.kernels), target


def test_names_are_unique() -> None:
    names = [entry.name for entry in entries()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kernel", profiles().kernels, ids=lambda kernel: kernel.name)
def test_kernels_speak_of_formats_that_exist_and_groups_that_have_sizes(kernel: Kernel) -> None:
    assert set(kernel.weights.formats) <= KNOWN
    grouped = {"group", "block"} & set(kernel.weights.granularities)
    assert bool(grouped) == bool(kernel.weights.group_sizes)
    if kernel.activations:
        assert set(kernel.activations.formats) <= KNOWN
    if kernel.arithmetic:
        assert kernel.activations, "products in few bits need inputs in few bits"


def test_floats_of_eight_bits_need_ada_and_blocks_of_four_need_blackwell() -> None:
    """What the published compute capabilities say, entry by entry."""
    for kernel in profiles().kernels:
        if kernel.arithmetic and "fp8_e4m3" in kernel.weights.formats:
            assert "cuda-8.0" not in kernel.targets
        if kernel.arithmetic and {"nvfp4", "mxfp4", "mxfp8_e4m3"} & set(kernel.weights.formats):
            assert kernel.targets == ("cuda-10.0",)
