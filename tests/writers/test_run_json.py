"""run.json holds the run exactly, the same bytes each time, and nothing that is not JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import WriteError
from harness.records import Measurement, Run
from harness.write import read_run
from harness.writers.run_json import RunJson, encode
from tests.helpers.made_run import Made
from tests.helpers.made_tables import MadeTables

NO_TABLES = MadeTables({})


def with_measurements(run: Run, *measurements: Measurement) -> Run:
    return run.model_copy(update={"measurements": measurements})


def measurement(**fields: object) -> Measurement:
    return Measurement.model_validate(
        {"name": "m", "unit": "", "better": "lower", "n": 1, "clusters": 1, "basis": "sampled", "method": "made"}
        | fields
    )


def test_what_is_written_is_read_back_exactly(made: dict[str, Made], tmp_path: Path) -> None:
    for verdict, example in made.items():
        path = RunJson().write(example.run, NO_TABLES, tmp_path / verdict)
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
        RunJson().write(run, NO_TABLES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hub_tokens_are_masked(made: dict[str, Made]) -> None:
    secret = "hf_" + "aB3dE5" * 6
    run = made["pass"].run.model_copy(update={"asked": {"source": f"https://user:{secret}@hub", secret: 1}})
    assert secret.encode() not in encode(run)
    assert b"https://user:hf_***@hub" in encode(run)
