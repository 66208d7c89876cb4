"""All workers on one screen: what each does, how fast, and how much is left; few plain lines in a log."""

from __future__ import annotations

import io

from rich.console import Console

from harness.cluster.board import MOST_ROWS, Board
from harness.cluster.workers import Unit
from harness.progress import Stage, rows_of
from harness.terminal import Terminal


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def step(self, what: str, done: int, of: int) -> None:
        self.steps.append((what, done, of))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def unit(number: int) -> Unit:
    return Unit("core", f"pass/{number}", ("v",))


def test_every_worker_has_a_line_with_its_unit_and_its_rate() -> None:
    heard, clock = Heard(), Clock()
    board = Board(heard, lambda text: None, clock)
    board.joined("w1")
    board.joined("w2")
    board.handed("w1", unit(0))
    board.handed("w2", unit(1))
    clock.now = 2.0
    board.done("w1", unit(0), 1, 4)
    ((what, done, of),) = heard.steps
    assert (str(what), done, of) == ("units", 1, 4)
    assert isinstance(what, Stage)
    assert what.detail == "2 workers, 0.5 a second"
    assert rows_of(what) == ("w1  1 units, 0.5 a second  core pass/0: v", "w2  0 units  core pass/1: v")


def test_workers_that_go_leave_the_board_and_many_are_counted() -> None:
    heard, clock = Heard(), Clock()
    board = Board(heard, lambda text: None, clock)
    for number in range(MOST_ROWS + 3):
        board.joined(f"w{number}")
    board.gone("w0")
    clock.now = 1.0
    board.done("w1", unit(0), 4, 4)
    rows = rows_of(heard.steps[-1][0])
    assert len(rows) == MOST_ROWS + 1
    assert rows[-1] == "… and 2 more workers"
    assert not any(row.startswith("w0 ") for row in rows)


def test_reports_come_at_intervals_and_the_last_always_does() -> None:
    heard, clock = Heard(), Clock()
    board = Board(heard, lambda text: None, clock)
    board.joined("w1")
    for number in range(1, 1001):
        clock.now += 0.001
        board.done("w1", unit(number), number, 1000)
    assert len(heard.steps) <= 6
    assert heard.steps[-1][1:] == (1000, 1000)


def test_a_terminal_shows_the_lines_and_a_log_shows_one_with_the_time_left() -> None:
    screen = io.StringIO()
    terminal = Terminal(Console(file=screen, force_terminal=True, width=100, color_system=None))
    terminal.step(Stage("units", "2 workers", ("w1  2 units",)), 1, 9)
    terminal.step(Stage("units", "2 workers", ("w1  3 units  core pass/7: v", "w2  [bold]4 units")), 9, 9)
    assert "w1  3 units  core pass/7: v" in screen.getvalue()
    assert "[bold]4 units" in screen.getvalue()
    log, clock = io.StringIO(), Clock()
    plain = Terminal(Console(file=log, force_terminal=False, width=100), clock)
    for done in range(1, 9):
        clock.now += 4.0
        plain.step(Stage("units", "2 workers, 0.25 a second", ("w1  3 units",)), done, 9)
    lines = log.getvalue().splitlines()
    assert "w1" not in log.getvalue()
    assert lines[-1].startswith("  units (2 workers, 0.25 a second) 7/9, about 8 seconds left")
