"""Code from outside can neither end the process nor keep it for ever."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.errors import ForeignCodeError, HarnessError
from harness.system.foreign import LIMIT_VARIABLE, EndedBySignal, Ticking, contain, guard

ROOT = Path(__file__).parents[2]


class Panic(BaseException):
    """Like pyo3_runtime.PanicException: no Exception."""


@pytest.mark.parametrize("raised", [SystemExit(0), SystemExit(3), Panic("index out of bounds")], ids=repr)
def test_what_would_end_the_process_becomes_an_error_that_names_what_ran(raised: BaseException) -> None:
    with pytest.raises(ForeignCodeError, match=rf"the rule odd raised {type(raised).__name__}"), guard("the rule odd"):
        raise raised


@pytest.mark.parametrize("raised", [EndedBySignal(15), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_signals_and_ordinary_exceptions_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)), guard("the rule odd"):
        raise raised


def test_a_generator_that_is_closed_inside_is_no_error() -> None:
    def values() -> Generator[int, None, None]:
        with contain("a generator"):
            yield 1

    generator = values()
    next(generator)
    generator.close()


def endless_python() -> None:
    while True:
        with suppress(Exception):
            sum(range(1000))


def endless_regex() -> None:
    re.fullmatch(r"(a+)+b", "a" * 64)


@pytest.mark.parametrize("work", [endless_python, endless_regex])
def test_endless_work_is_ended_at_its_limit(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.3")
    begun = time.monotonic()
    with pytest.raises(ForeignCodeError, match=r"the task odd gave no sign of life for 0\.3 s"), guard("the task odd"):
        work()
    assert time.monotonic() - begun < 5
    with guard("what comes next"):
        pass


def test_progress_and_inner_units_are_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.6")

    class Silent:
        def step(self, what: str, done: int, of: int) -> None:
            pass

    progress = Ticking(Silent())
    with guard("a long task"):
        for number in range(8):
            time.sleep(0.2)
            if number % 2:
                progress.step("task", number, 8)
            else:
                with guard("a call of the model"):
                    pass


def test_an_outer_limit_is_not_mistaken_for_that_of_an_inner_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.3")

    def work() -> None:
        with guard("the inner unit", patience=100):
            pass
        endless_python()

    with pytest.raises(ForeignCodeError, match="the outer unit"), guard("the outer unit"):
        work()


def run(source: str, seconds: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {LIMIT_VARIABLE: seconds, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "import itertools\nfrom harness.system.foreign import guard\n" + source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


HOLDING = """\
def work():
    max(itertools.repeat(1))
"""
SWALLOWING = """\
def work():
    while True:
        try:
            sum(range(1000))
        except BaseException:
            pass
"""


@pytest.mark.parametrize("work", [HOLDING, SWALLOWING], ids=["holds the interpreter", "swallows everything"])
def test_what_cannot_be_interrupted_is_killed_with_its_name_said(work: str) -> None:
    done = run(f"{work}with guard('the task ::error::odd'): work()", "0.5")
    assert done.returncode == -9
    assert done.stderr == (
        "error: the task : :error: :odd gave no sign of life for 1 s and cannot be interrupted: the process is killed\n"
    )


def test_the_monitor_ends_with_its_process() -> None:
    done = run("import harness.system.foreign as f\nwith guard('x'): pass\nprint(f._watchdog._process.pid)", "5")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(HarnessError, match=LIMIT_VARIABLE), guard("anything"):
        pass
