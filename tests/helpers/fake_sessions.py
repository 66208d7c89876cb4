"""Models that are none: units whose results are known, take a while, and fail or kill their worker when told to.

What goes wrong stands in the unit's name (``fail:``, ``die:``, ``once:``), since the workers are other processes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from harness.cluster.workers import Unit

ODD_HOST = "FAKE_SESSIONS_ODD"
"""Environment variable of the processes that report another fingerprint."""
SLOW, LARGE = 0.15, 200_000


def expected_result(unit: Unit) -> bytes:
    """What every worker must return for a unit."""
    seed = repr((unit.suite, unit.name, unit.variants)).encode()
    digest = hashlib.sha256(seed).digest()
    return digest * (LARGE // len(digest)) if "large" in unit.name else digest


class FakeSession:
    def __init__(self, holds: str) -> None:
        self._holds = holds
        if holds == "missing":
            raise FileNotFoundError("no such model")

    def warm(self) -> None: ...

    def verify(self) -> None:
        if self._holds == "changed":
            raise ArithmeticError("a weight has changed")
        if self._holds == "dying":
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self, unit: Unit) -> object:
        kind, _, rest = unit.name.partition(":")
        if kind == "fail":
            raise ArithmeticError(f"{rest} has no result")
        if kind == "die" or (kind == "once" and _is_first(rest)):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "who":
            return os.getpid(), os.environ.get("OMP_NUM_THREADS")
        time.sleep(SLOW * unit.cost)
        return expected_result(unit)


def _is_first(path: str) -> bool:
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class FakeOpener:
    def fingerprint(self) -> Mapping[str, str]:
        return {"python": "other" if os.environ.get(ODD_HOST) else "same"}

    def first(self) -> str:
        return ""

    def open(self, holds: str) -> FakeSession:
        return FakeSession(holds)
