"""A package beside the harness with plugins, as if somebody had installed it."""

from __future__ import annotations

import os
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class OutsidePackage:
    """A folder of modules with the metadata that pip would have written, and a working folder beside it."""

    site: Path
    work: Path

    @property
    def metadata(self) -> Path:
        """The folder that pip would have written."""
        return self.site / "outside_plugin-1.0.dist-info"

    def offer(self, family: str, name: str, qualified: str) -> None:
        """Add the entry point ``name`` to the group ``harness.<family>``. qualified: its value, ``module:Class``."""
        file, points = self.metadata / "entry_points.txt", ConfigParser(delimiters=("=",))
        points.read(file)
        points.read_dict({f"harness.{family}": {name: qualified}})
        with file.open("w") as stream:
            points.write(stream)

    def harness(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m harness`` in the working folder with the package at hand."""
        return self.python("-m", "harness", *arguments)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the working folder with the package at hand."""
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(self.site), str(ROOT))),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)


def outside_package(folder: Path, family: str, name: str, qualified: str, **modules: str) -> OutsidePackage:
    """Install modules (by name: their source) with one entry point ``name`` in the group ``harness.<family>``.

    qualified: its value, ``module:Class``.
    """
    package = OutsidePackage(folder / "site", folder / "work")
    for path in (package.metadata, package.work):
        path.mkdir(parents=True)
    for module, source in modules.items():
        (package.site / f"{module}.py").write_text(source)
    (package.metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-plugin\nVersion: 1.0\n")
    package.offer(family, name, qualified)
    return package
