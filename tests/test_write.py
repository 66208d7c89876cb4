"""run.json holds the run exactly and is read back from a folder that others may have touched; outputs are complete."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import plugins
from harness.errors import HarnessError, WriteError
from harness.plugins import UnknownPluginError
from harness.records import Measurement, Run
from harness.tables.access import Tables
from harness.write import encode, read_run, remove_outputs, write_outputs, write_run, writers_of
from harness.writers import Writer
from harness.writers.junit import Junit
from harness.writers.report_html import ReportHtml
from tests.helpers.made_run import Made

# run.json


def with_measurements(run: Run, *measurements: Measurement) -> Run:
    return run.model_copy(update={"measurements": measurements})


def measurement(**fields: object) -> Measurement:
    return Measurement.model_validate(
        {"name": "m", "unit": "", "better": "lower", "n": 1, "clusters": 1, "basis": "sampled", "method": "made"}
        | fields
    )


def test_what_is_written_is_read_back_exactly(made: dict[str, Made], tmp_path: Path) -> None:
    for verdict, example in made.items():
        path = write_run(example.run, tmp_path / verdict)
        assert path == tmp_path / verdict / "run.json"
        assert read_run(tmp_path / verdict) == example.run


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_keeps_every_bit(made: dict[str, Made], value: float) -> None:
    run = with_measurements(made["pass"].run, measurement(change=value))
    text = encode(run).decode()
    assert float(json.loads(text)["measurements"][0]["change"]).hex() == value.hex()
    assert repr(value) in text


def test_form_is_canonical(made: dict[str, Made]) -> None:
    text = encode(made["pass"].run.model_copy(update={"name": "größe"})).decode()
    content = json.loads(text)
    assert text == json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert "größe" in text
    assert list(content) == sorted(content)


def test_a_non_finite_measurement_names_its_side_and_has_null_for_numbers(made: dict[str, Made]) -> None:
    run = with_measurements(made["pass"].run, measurement(non_finite="variant"))
    text = encode(run).decode()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["measurements"][0]
    assert found["non_finite"] == "variant"
    assert found["change"] is None
    assert found["low"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_in_the_free_part_are_refused(made: dict[str, Made], tmp_path: Path, value: float) -> None:
    run = made["pass"].run.model_copy(update={"asked": {"margin": value}})
    with pytest.raises(WriteError, match="pocket-w4-g32"):
        write_run(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hub_tokens_are_masked(made: dict[str, Made]) -> None:
    secret = "hf_" + "aB3dE5" * 6
    run = made["pass"].run.model_copy(update={"asked": {"source": f"https://user:{secret}@hub", secret: 1}})
    assert secret.encode() not in encode(run)
    assert b"https://user:hf_***@hub" in encode(run)


# Outputs


class Summary(Writer):
    """Writes one line of text."""

    file_name: ClassVar[str] = "summary.txt"
    greeting: str = "verdict"
    parts: tuple[str, ...] = ()

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        path = folder / self.file_name
        path.write_text(f"{self.greeting}: {run.verdict}{''.join(self.parts)}")
        return path


class Raises(Summary):
    """Fails like a defective plugin."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        raise ZeroDivisionError("inside the plugin")


class Forgets(Summary):
    """Returns without a file."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        return folder / self.file_name


class Needy(Summary):
    """Has a setting without a default."""

    needed: int


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy writers, as if an outside package offered them."""
    points = {cls.__name__.lower(): SimpleNamespace(load=lambda cls=cls: cls) for cls in (Summary, Raises, Needy)}
    monkeypatch.setattr(plugins, "_entry_points", lambda family: points if family == "writers" else {})


def test_writes_every_output_in_order(made: dict[str, Made], tmp_path: Path) -> None:
    example = made["fail"]
    written = write_outputs(example.run, tmp_path, [Junit(), ReportHtml()], example.tables)
    assert written == [tmp_path / "junit.xml", tmp_path / "report.html"]
    assert "Must not ship" in written[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("writer", "message"),
    [(Raises, "ZeroDivisionError: inside the plugin"), (Forgets, "it wrote no file summary.txt")],
)
def test_one_writer_that_fails_stops_no_other_and_leaves_no_stale_file(
    made: dict[str, Made], tmp_path: Path, writer: type[Writer], message: str
) -> None:
    (tmp_path / "summary.txt").write_text("pass, said the run before")
    with pytest.raises(WriteError, match=f"{writer.kind}: {message}"):
        write_outputs(made["fail"].run, tmp_path, [writer(), Junit()], made["fail"].tables)
    assert (tmp_path / "junit.xml").exists()
    assert not (tmp_path / "summary.txt").exists()


def test_outputs_can_be_written_again_without_tables(made: dict[str, Made], tmp_path: Path) -> None:
    (path,) = write_outputs(made["fail"].run, tmp_path, [ReportHtml()])
    text = path.read_text(encoding="utf-8")
    assert "Must not ship" in text
    assert "expected the tables of a run" in text


@pytest.mark.parametrize(
    "name", ["", "summary", "run.json", "Run.JSON", "../summary.md", "a/b.md", ".hidden.md", "a b.md"]
)
def test_a_writer_stays_in_the_folder_and_off_run_json(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"__doc__": "Writes elsewhere.", "__module__": "outside", "file_name": name, "write": Summary.write}
    escapes = type("Escapes", (Writer,), members)
    monkeypatch.setattr(plugins, "_entry_points", lambda family: {"escapes": SimpleNamespace(load=lambda: escapes)})
    with pytest.raises(HarnessError, match=r"Escapes: file_name is .* expected a plain name"):
        plugins.load(Writer, "escapes")


@pytest.mark.usefixtures("toys")
def test_files_of_every_installed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("run.json", "report.html", "junit.xml", "summary.txt", "notes.md"):
        (tmp_path / name).write_text("old")
    assert remove_outputs(tmp_path, [ReportHtml()]) == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_a_writer_that_does_not_load_and_was_not_asked_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("old")
    monkeypatch.setattr(plugins, "names", lambda family: ("junit", "broken"))
    (said,) = remove_outputs(tmp_path, [ReportHtml()])
    assert "the writer broken does not load" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("toys")
def test_a_writer_gets_the_settings_that_the_run_asked_for(made: dict[str, Made]) -> None:
    asked = {"outputs": [{"writer": "summary", "greeting": "it is", "parts": ["!", "?"]}]}
    run = made["pass"].run.model_copy(update={"asked": asked})
    assert writers_of(run, ["summary", "junit", "summary"]) == [Summary(greeting="it is", parts=("!", "?")), Junit()]
    assert writers_of(made["pass"].run, ["summary"]) == [Summary()]


@pytest.mark.usefixtures("toys")
def test_unknown_writers_and_settings_that_do_not_fit_are_named(made: dict[str, Made]) -> None:
    with pytest.raises(UnknownPluginError, match=r"no writer is called 'junt'; did you mean junit\?"):
        writers_of(made["pass"].run, ["junt"])
    with pytest.raises(HarnessError, match=r"writer 'needy': its settings do not fit \(needed: Field required\)"):
        writers_of(made["pass"].run, ["needy"])


# Reading


def cut(text: str) -> bytes:
    return text[: len(text) // 2].encode()


def change(key: str, value: Any) -> Callable[[str], bytes]:
    return lambda text: json.dumps(json.loads(text) | {key: value}).encode()


DAMAGE: dict[str, tuple[Callable[[str], bytes], str]] = {
    "cut": (cut, "damaged"),
    "empty": (lambda text: b"", "damaged"),
    "not text": (lambda text: b"\xff\xfe\x00" + text.encode(), "not UTF-8"),
    "nan": (lambda text: text.replace('"change": ', '"change": NaN, "was": ', 1).encode(), "NaN is not JSON"),
    "too large": (lambda text: text.replace('"threads": 2', '"threads": 1e999').encode(), "run.json"),
    "key twice": (lambda text: text.replace('"name": ', '"name": "", "name": ', 1).encode(), "twice"),
    "list": (lambda text: b"[]", "schema_version"),
    "foreign": (lambda text: b'{"format": 1}', "schema_version"),
    "newer": (change("schema_version", 3), "found schema_version 3, expected 2"),
    "version is text": (change("schema_version", "1"), "found schema_version '1'"),
    "version is true": (change("schema_version", True), "found schema_version True"),
    "unknown key": (change("vendor", 1), "vendor"),
    "wrong type": (change("exit_code", "0"), "exit_code"),
    "deep": (lambda text: b"[" * 200_000, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("how", list(DAMAGE))
def test_damage_is_named_with_the_file(made: dict[str, Made], tmp_path: Path, how: str) -> None:
    damage, message = DAMAGE[how]
    path = tmp_path / "run.json"
    path.write_bytes(damage(encode(made["pass"].run).decode()))
    with pytest.raises(HarnessError) as raised:
        read_run(tmp_path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_a_folder_without_a_run_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not found; expected the folder of a finished run"):
        read_run(tmp_path / "nowhere")


def test_the_file_itself_can_be_named(made: dict[str, Made], tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(encode(made["pass"].run))
    assert read_run(path) == made["pass"].run


@pytest.mark.parametrize("claim", [{"verdict": "pass"}, {"exit_code": 0}, {"verdict": "pass", "exit_code": 0}])
def test_a_verdict_that_does_not_follow_from_its_rules_is_refused(
    made: dict[str, Made], tmp_path: Path, claim: dict[str, Any]
) -> None:
    content = json.loads(encode(made["fail"].run)) | claim
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(HarnessError, match=r"expected 'fail', 1 from its verdicts"):
        read_run(tmp_path)
