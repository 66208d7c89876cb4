"""Which unit a worker gets next."""

from __future__ import annotations

from harness.cluster.queues import Shelves
from harness.cluster.workers import Unit


def unit(holds: str, name: str) -> Unit:
    return Unit("s", name, ("v",), holds=holds)


def test_a_unit_without_models_comes_after_those_of_the_models_that_are_open_and_before_others_are_opened() -> None:
    shelves = Shelves()

    def take(held: str | None) -> str:
        found = shelves.take(held)
        return found.name if found else ""

    for each in (unit("1", "first"), unit("1", "second"), unit("2", "other"), unit("", "free")):
        shelves.add(each)
    assert take(None) == "free", "nothing has to be opened for it"
    assert take(None) == "first"
    shelves.add(unit("", "another"))
    assert [take("1") for _ in range(4)] == ["second", "another", "other", ""]
