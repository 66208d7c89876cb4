"""Loops that report by themselves: after a while, to whoever listens, and never as something they return."""

from __future__ import annotations

from harness.progress import SILENT_SECONDS, report_to, track


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def step(self, what: str, done: int, of: int) -> None:
        self.steps.append((what, done, of))


class Clock:
    """One second a look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_long_loop_reports_from_the_second_second_on_and_at_its_end() -> None:
    heard = Heard()
    with report_to(heard):
        assert list(track("layers", "abcde", Clock())) == list("abcde")
    assert SILENT_SECONDS == 2
    assert heard.steps == [("layers", 2, 5), ("layers", 3, 5), ("layers", 4, 5), ("layers", 5, 5)]


def test_a_short_loop_says_nothing() -> None:
    heard = Heard()
    with report_to(heard):
        assert list(track("layers", "abcde", lambda: 0.0)) == list("abcde")
    assert heard.steps == []


def test_without_a_listener_a_loop_is_a_loop() -> None:
    assert list(track("layers", "abc", Clock())) == list("abc")


def test_the_listener_of_an_outer_command_is_restored() -> None:
    outer, inner = Heard(), Heard()
    with report_to(outer):
        with report_to(inner):
            list(track("inner", "abcd", Clock()))
        list(track("outer", "abcd", Clock()))
    assert {what for what, _, _ in inner.steps} == {"inner"}
    assert {what for what, _, _ in outer.steps} == {"outer"}
