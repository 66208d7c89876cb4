"""Contracts that every plugin of every family keeps, whoever wrote it: found by discovery, not by a list."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from harness.measures import Measure, Sampled
from harness.plugins import FAMILIES, Family, UnknownPluginError, load, names
from harness.records import Plugin

EVERY = [(family, name) for family in FAMILIES for name in names(family)]
MINIMAL: dict[str, dict[str, object]] = {
    "activations": {"bits": 8},
    "awq": {"bits": 4},
    "gptq": {"bits": 4},
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


def make(family: Family, name: str) -> Plugin:
    return load(family, name)(**MINIMAL.get(name, {}))


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_says_what_it_is_in_one_line(family: Family, name: str) -> None:
    summary = load(family, name).summary()
    assert 10 <= len(summary) <= 120, summary
    assert summary.endswith(".")


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_is_a_frozen_closed_record(family: Family, name: str) -> None:
    plugin = make(family, name)
    with pytest.raises(ValidationError):
        type(plugin)(**(MINIMAL.get(name, {}) | {"no_such_field": 1}))
    for field in type(plugin).model_fields:
        with pytest.raises(ValidationError):
            setattr(plugin, field, None)


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_field_says_what_it_is(family: Family, name: str) -> None:
    for field, info in load(family, name).model_fields.items():
        assert info.description, f"{family}/{name}: field {field} has no description"


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_implements_its_family(family: Family, name: str) -> None:
    plugin = load(family, name)
    methods = {"backends": "compress", "measures": "measure", "rules": "judge", "writers": "write", "engines": "open"}
    if family in methods:
        assert not inspect.isabstract(plugin)
        method = "measure_by" if issubclass(plugin, Sampled) else methods[family]
        owner = next(each for each in plugin.__mro__ if method in vars(each))
        assert owner.__module__ != f"harness.{family}", "inherited from the base class, which only raises"


@pytest.mark.parametrize("name", names("measures"))
def test_a_measure_names_its_probe_and_metrics(name: str) -> None:
    measure = make("measures", name)
    assert isinstance(measure, Measure)
    probe = load("probes", measure.table)
    for setting in measure.probe_settings():
        assert setting in probe.model_fields
    metrics = measure.produces()
    assert metrics
    assert all(metric.name.count(".") >= 1 for metric in metrics)


def test_an_unknown_name_says_what_is_close_and_what_exists() -> None:
    with pytest.raises(UnknownPluginError, match=r"'at_mots'; did you mean at_most\?.*known: .*not_worse"):
        load("rules", "at_mots")
