"""Inside a worker: what every worker needs is opened before the first unit, once; a unit tells what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster.host import Fault, Host
from harness.cluster.opener import CheckOpener
from harness.cluster.workers import Unit
from harness.plan import make_plans
from tests.helpers.cluster_checks import DRAWN, write_check


@dataclass
class Session:
    log: list[str]
    holds: str

    def warm(self) -> None:
        self.log.append(f"warm {self.holds}")

    def run(self, unit: Unit) -> object:
        return unit.name

    def verify(self) -> None:
        self.log.append(f"verify {self.holds}")


@dataclass
class Opener:
    key: str = "1"
    broken: bool = False
    log: list[str] = field(default_factory=list)

    def fingerprint(self) -> Mapping[str, str]:
        return {}

    def first(self) -> str:
        return self.key

    def open(self, holds: str) -> Session:
        self.log.append(f"open {holds}")
        if self.broken:
            raise FileNotFoundError("no weights")
        return Session(self.log, holds)


def unit(holds: str) -> Unit:
    return Unit("s", "pass/0", ("v",), holds=holds)


def test_models_are_opened_before_the_first_unit_and_once() -> None:
    opener = Opener()
    host = Host(opener, 1)
    host.warm()
    assert opener.log == ["open 1", "warm 1"]
    assert host.run(unit("1")) == "pass/0"
    assert host.run(unit("2")) == "pass/0"
    assert opener.log == ["open 1", "warm 1", "verify 1", "open 2"]


def test_a_unit_without_models_leaves_those_open_that_are() -> None:
    opener = Opener()
    host = Host(opener, 1)
    host.run(unit("1"))
    host.run(unit(""))
    host.run(unit("1"))
    assert opener.log == ["open 1", "open "]


def test_what_is_wrong_with_the_models_is_told_by_the_first_unit() -> None:
    host = Host(Opener(broken=True), 1)
    host.warm()
    fault = host.run(unit("1"))
    assert isinstance(fault, Fault)
    assert (fault.error, fault.reason) == ("FileNotFoundError", "no weights")
    assert "no weights" in fault.log


def test_only_a_single_set_of_variants_that_are_quickly_made_is_opened_at_once(tmp_path: Path) -> None:
    plans = make_plans(write_check(tmp_path, DRAWN, 1.0))
    one = {"1": (plans, [tmp_path])}
    assert CheckOpener(tmp_path, one).first() == "1"
    assert CheckOpener(tmp_path, one | {"2": (plans, [tmp_path])}).first() == ""
    path = tmp_path / "gptq.yaml"
    text = (tmp_path / "plain.yaml").read_text().replace("round_to_nearest", "gptq")
    path.write_text(f"{text}calibration: {{data: pocket-calibration, documents: 4}}\n")
    assert CheckOpener(tmp_path, {"1": (make_plans(path), [tmp_path])}).first() == ""
