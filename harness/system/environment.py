"""Hardware and software of a run. Nothing here differs between two identical runs on one machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

from harness import __version__
from harness.records import Environment

PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval", "datasets", "numpy", "pandas", "scipy", "pyarrow")
"""The packages whose version may change a measured number."""


def prepare_threads() -> None:
    """Make idle OpenMP threads spin only briefly before they sleep; call before torch is imported.

    By default they spin for milliseconds: fast on an idle machine, but with another process on the same cores the
    evaluation of a small model took up to 20 times as long. Threads that sleep at once lose the gain of a second core.
    Values set by the user are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def describe_environment(libraries: Iterable[str] = ()) -> Environment:
    """The environment of this process; imports torch, whose thread count may change the last bit of a sum.

    libraries: import names of further libraries (those of backends) whose versions are recorded too.
    """
    import torch

    return Environment(
        harness=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        threads=torch.get_num_threads(),
        packages={package: version(package) for package in (*PACKAGES, *_packages(libraries))},
    )


def _packages(libraries: Iterable[str]) -> list[str]:
    """Distribution names of the packages that provide ``libraries``, without those that are always recorded."""
    wanted = {library.partition(".")[0] for library in libraries}
    providers = packages_distributions() if wanted else {}
    packages = {package for name in wanted for package in providers.get(name, ())}
    return sorted(packages - {"torch", *PACKAGES})


def _processor() -> str:
    """The processor's model name, followed by the accelerator's if torch finds one."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    name = platform.processor()
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    if torch.cuda.is_available():
        name = f"{name}; {torch.cuda.get_device_name()}"
    return name or "unknown"
