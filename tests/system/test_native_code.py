"""Native code: a library for each source, compiler and header."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.system import native_code
from harness.system.native_code import load_library

pytestmark = pytest.mark.skipif(native_code.find_compiler() is None, reason="this machine has no C++ compiler")


def test_another_source_or_header_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    header, source = tmp_path / "lanes.hpp", tmp_path / "own.cpp"
    monkeypatch.setattr(native_code, "HEADER", header)
    found = []
    for size, factor in ((1, 10), (2, 10), (2, 20)):
        header.write_text(f"constexpr int SIZE = {size};\n")
        source.write_text(f'#include "lanes.hpp"\nextern "C" int give() {{ return SIZE * {factor}; }}\n')
        found += [load_library(source)["give"]() for _ in range(2)]
    assert found == [10, 10, 20, 20, 40, 40]
    assert len(list(tmp_path.rglob("*.so"))) == 3
