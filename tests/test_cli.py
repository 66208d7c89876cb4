"""The last line of defence: what the command line says of an error that nothing else expected, and its exit code."""

from __future__ import annotations

import pytest

from harness import cli


def failing(error: BaseException, cause: BaseException | None = None) -> type:
    def main(*_: object, **__: object) -> int:
        raise error from cause

    return type("App", (), {"main": staticmethod(main)})


@pytest.mark.parametrize(
    ("error", "cause", "told"),
    [
        (MemoryError(), None, "out of memory"),
        (ModuleNotFoundError("Could not import module 'A'"), MemoryError(), "out of memory"),
        (ImportError("libtorch_cpu.so: failed to map segment"), None, "cannot be loaded: libtorch_cpu.so: failed to"),
        (
            ModuleNotFoundError("Could not import 'A'"),
            ImportError("x.so: cut"),
            "a library cannot be loaded: x.so: cut",
        ),
    ],
)
def test_a_library_that_cannot_be_loaded_is_no_defect_of_the_harness(
    error: Exception,
    cause: Exception | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", failing(error, cause))
    assert cli._run(["check"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "defect" not in said


@pytest.mark.parametrize(
    "error", [ValueError("odd"), ModuleNotFoundError("No module named 'harness.x'", name="harness.x")]
)
def test_anything_else_is_called_a_defect_with_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", failing(error))
    assert cli._run(["check"]) == 2
    said = capsys.readouterr().err
    assert "this is a defect of the harness" in said
    assert "Traceback" in said
