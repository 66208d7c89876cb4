"""Contracts that every plugin of every family keeps, whoever wrote it: found by discovery, not by a list."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from harness import plugins
from harness.errors import HarnessError
from harness.measures import Measure, Sampled
from harness.plugins import FAMILIES, UnknownPluginError, base_of, load, names
from harness.probes import HOOKS, Probe
from harness.records import Plugin
from harness.rules import Rule

EVERY = [(family, name) for family in FAMILIES for name in names(base_of(family))]
MINIMAL: dict[str, dict[str, object]] = {
    "activations": {"bits": 8},
    "awq": {"bits": 4},
    "gptq": {"bits": 4},
    "qat": {"bits": 4},
    "round_to_nearest": {"bits": 4},
    "kv_cache": {"bits": 4},
    "dense_and_sparse": {"bits": 4},
    "autoround": {"bits": 4},
    "bitsandbytes": {"method": "nf4"},
    "gptqmodel": {"bits": 4},
    "hqq": {"bits": 4},
    "llmcompressor": {"bits": 4},
    "modelopt": {"scheme": "int8_weights"},
    "quanto": {"weights": "int8"},
    "torchao": {"method": "int8_weight_only"},
    "mixed_precision": {"bits": (2, 4), "target_bits_per_weight": 4.0},
    "at_most": {"metric": "m", "why": "w", "limit": 1.0},
    "at_least": {"metric": "m", "why": "w", "limit": 1.0},
    "retains": {"metric": "m", "why": "w", "share": 0.9},
    "not_worse": {"metric": "m", "why": "w", "margin": 0.1},
    "tasks": {"tasks": ("pocket_facts",)},
    "items": {"tasks": ("pocket_facts",)},
}


def make(family: str, name: str) -> Plugin:
    return load(base_of(family), name)(**MINIMAL.get(name, {}))


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_says_what_it_is_in_one_line(family: str, name: str) -> None:
    summary = load(base_of(family), name).summary()
    assert 10 <= len(summary) <= 120, summary
    assert summary.endswith(".")


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_is_a_frozen_closed_record(family: str, name: str) -> None:
    plugin = make(family, name)
    with pytest.raises(ValidationError):
        type(plugin)(**(MINIMAL.get(name, {}) | {"no_such_field": 1}))
    for field in type(plugin).model_fields:
        with pytest.raises(ValidationError):
            setattr(plugin, field, None)


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_field_says_what_it_is(family: str, name: str) -> None:
    for field, info in load(base_of(family), name).model_fields.items():
        assert info.description, f"{family}/{name}: field {field} has no description"


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_implements_its_family(family: str, name: str) -> None:
    assert base_of(family).family == family
    plugin = load(base_of(family), name)
    assert plugin.missing() == ()
    assert make(family, name).kind == name


BASES: tuple[type[Plugin], ...] = (*map(base_of, FAMILIES), Sampled)
REQUIRED = {base: base.missing() for base in BASES if base is not Probe}
"""By base class, all that its subclasses must define."""
LACKING: list[tuple[type[Plugin], Mapping[str, object], str]] = [
    *((base, dict.fromkeys({*names} - {name}), name) for base, names in REQUIRED.items() for name in names),
    *((Probe, {"runs": runs, ({"begin", "observe"} - {hook}).pop(): None}, hook) for runs, hook in HOOKS.items()),
    (Probe, {"begin": None, "observe": None}, "runs"),
    (Probe, {"begin": None, "observe": None, "runs": "sometimes"}, "runs"),
]
COMPLETE: list[tuple[type[Plugin], Mapping[str, object]]] = [
    *((base, dict.fromkeys(names)) for base, names in REQUIRED.items()),
    *((Probe, {"runs": runs, hook: None}) for runs, hook in HOOKS.items()),
]


def installed(monkeypatch: pytest.MonkeyPatch, base: type[Plugin], defined: Mapping[str, object]) -> None:
    """A plugin ``mine`` of the family, as if an outside package offered it."""
    methods = {name: (lambda *_: None) if value is None else value for name, value in defined.items()}
    if "file_name" in methods:
        methods["file_name"] = "mine.txt"
    cls = type("Mine", (base,), {"__doc__": "Mine.", "__module__": "outside", **methods})
    monkeypatch.setattr(plugins, "_entry_points", lambda family: {"mine": SimpleNamespace(load=lambda: cls)})


def test_every_family_requires_something() -> None:
    assert all(base_of(family).missing() for family in FAMILIES)
    assert set(HOOKS.values()) == {"begin", "observe"}


@pytest.mark.parametrize(("base", "defined", "lacking"), LACKING)
def test_a_plugin_that_lacks_something_is_refused_when_it_is_loaded(
    base: type[Plugin], defined: Mapping[str, object], lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, base, defined)
    message = rf"^{base.role()} 'mine': outside\.Mine lacks {lacking}, which a {base.role()} must define"
    with pytest.raises(HarnessError, match=message):
        load(base_of(base.family), "mine")


@pytest.mark.parametrize(("base", "defined"), COMPLETE)
def test_a_plugin_that_lacks_nothing_is_loaded_under_its_name(
    base: type[Plugin], defined: Mapping[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, base, defined)
    assert load(base, "mine").kind == "mine"


def test_a_plugin_of_another_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, Measure, dict.fromkeys(REQUIRED[Measure]))
    with pytest.raises(HarnessError, match=r"rule 'mine': .* is not a subclass of Rule"):
        load(Rule, "mine")


@pytest.mark.parametrize("name", names(Measure))
def test_a_measure_names_its_probe_and_metrics(name: str) -> None:
    measure = load(Measure, name)(**MINIMAL.get(name, {}))
    probe = load(Probe, measure.table)
    for setting in measure.probe_settings():
        assert setting in probe.model_fields
    metrics = measure.produces()
    assert metrics
    assert all(metric.name.count(".") >= 1 for metric in metrics)


def test_an_unknown_name_says_what_is_close_and_what_exists() -> None:
    with pytest.raises(UnknownPluginError, match=r"'at_mots'; did you mean at_most\?.*known: .*not_worse"):
        load(Rule, "at_mots")
