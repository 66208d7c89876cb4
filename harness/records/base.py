"""What every record is: frozen, closed, strictly typed, and without NaN or infinity."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen, closed record. Unknown keys, coerced types and non-finite numbers are refused when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class Entry(Record):
    """What people write in YAML: every field has a docstring, which ``harness list NAME`` and the schemas show."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Plugin(Entry):
    """A plugin's fields are its YAML, its docstring is its description.

    The YAML entry ``{backend: round_to_nearest, bits: 4}`` names the file ``harness/backends/round_to_nearest.py``
    and gives the fields of the one plugin class in it. Plugin modules import heavy libraries inside the functions
    that need them, so that listing and checking plugins stays quick.
    """

    family: ClassVar[str] = ""
    """The package of the plugin's family and the end of its group of entry points: ``rules`` for ``harness.rules``."""

    kind: ClassVar[str] = ""
    """The name under which YAML files know the plugin: that of its file; the loader sets that of an entry point."""

    by_name: ClassVar[bool] = False
    """Whether a plugin of the family that needs no settings may be given by its name alone, without its role."""

    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that hold paths, of records inside it with a dot (``student.config``); the plan checks them and makes them
    absolute, relative to the YAML file."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "kind" not in vars(cls):
            cls.kind = cls.__module__.rpartition(".")[2]

    @classmethod
    def role(cls) -> str:
        """The YAML key that names a plugin of this family: ``rule`` for ``rules``."""
        return cls.family.removesuffix("s")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0].strip()

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """Class attributes and methods that the family requires and this class lacks, by name."""
        undeclared = (name for name in cls.__class_vars__ if not hasattr(cls, name))
        return (*sorted(undeclared), *sorted(cls.__abstractmethods__))

    @classmethod
    def unfit(cls) -> str:
        """Why a class that lacks nothing still cannot be used; empty if it can."""
        return ""

    def settings(self) -> dict[str, Any]:
        """The fields as plain data, for run.json."""
        return self.model_dump(mode="json")
