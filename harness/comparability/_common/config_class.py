"""What transformers' configuration classes declare: the fields that exist, and their defaults."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.comparability._common.sides import Json

OLDER = frozenset(("rope_theta", "rope_scaling", "type", "rope_type", "torch_dtype", "model_type", "is_decoder"))
"""Fields that every class accepts though it does not declare them."""


@dataclass(frozen=True)
class Declared:
    """The fields of one class by the name of the part of config.json ("" for the top). None: the class is not known."""

    name: str
    fields: Mapping[str, frozenset[str]] | None

    def knows(self, path: str) -> bool:
        """Whether the class declares a field; those inside a free table count as declared with it."""
        if self.fields is None:
            return True
        first, _, rest = path.partition(".")
        if rest and first in self.fields:
            return rest.partition(".")[0] in self.fields[first] | OLDER
        return first in self.fields[""] | OLDER


def read_declared(config: Json) -> Declared:
    """What the class of a config.json declares."""
    cls = _class_of(config)
    if cls is None:
        return Declared(str(config.get("model_type")), None)
    fields = {"": _fields_of(cls)}
    for part, sub in (getattr(cls, "sub_configs", None) or {}).items():
        inner = config.get(part)
        own = _class_of(inner) if isinstance(inner, Mapping) and "model_type" in inner else sub
        if own is not None and dataclasses.is_dataclass(own):
            fields[part] = _fields_of(own)
    return Declared(cls.__name__, fields)


def resolve(config: Json) -> Json:
    """The configuration with every default written out; unchanged where its class is not known or refuses it."""
    cls = _class_of(config)
    if cls is None:
        return config
    try:
        made = cls.from_dict({key: value for key, value in config.items() if key != "quantization_config"})
        resolved: dict[str, Any] = made.to_dict()
    except Exception:  # noqa: BLE001 - a class may refuse values in any way; loading the model says so by itself
        return config
    return resolved


def _class_of(config: Json) -> Any:
    """The class of transformers for this kind of model; None if it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if config.get("auto_map") or not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    return CONFIG_MAPPING[kind]


def _fields_of(cls: Any) -> frozenset[str]:
    """Names of the fields, those of older versions and of generation among them."""
    own = {each.name for each in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    own |= set(inspect.signature(cls.__init__).parameters)
    aliases = getattr(cls, "attribute_map", None) or {}
    return frozenset(own | set(aliases) | set(aliases.values()) | {name for name in vars(cls) if name[0] != "_"})
