"""What a worker is sent, to open models with: plans and folders. The head makes it without loading a model library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.cluster.handing_on import takes_documents
from harness.cluster.rounding import describe_rounding
from harness.errors import HarnessError
from harness.planning.specs import Plan
from harness.system.environment import describe_environment, prepare_threads

if TYPE_CHECKING:
    from harness.cluster.checking import CheckSession
    from harness.cluster.concluding import Concluder


@dataclass(frozen=True)
class CheckOpener:
    """Opens the variants of a set with their reference.

    folder: where the check was started, to which paths may be relative. sets: plans and run folders by key.
    """

    folder: Path
    sets: Mapping[str, tuple[Sequence[Plan], Sequence[Path]]]

    def fingerprint(self) -> Mapping[str, str]:
        """Versions, threads and rounding; the name of the processor is said, but what counts is how it rounds."""
        prepare_threads()
        known = describe_environment()
        devices = {plan.reference.device for plans, _ in self.sets.values() for plan in plans}
        said = {
            "harness": __version__,
            "python": known.python,
            "platform": known.platform,
            "processor": known.processor,
        }
        said |= {"threads": str(known.threads), **known.packages}
        return said | {f"rounding on {device}": describe_rounding(device) for device in sorted(devices)}

    def first(self) -> str:
        """The only set, if its variants are quickly made: others are made by one worker and handed on."""
        ((key, (plans, _)), *more) = self.sets.items()
        return "" if more or any(map(takes_documents, plans)) else key

    def open(self, holds: str) -> CheckSession | Concluder:
        """Open the models of a set, or what concludes without models. Raises HarnessError."""
        if not self.folder.is_dir():
            raise HarnessError(
                f"{self.folder}: not found on this node; check from a folder that all nodes share, as the models are"
            )
        os.chdir(self.folder)
        if not holds:
            from harness.cluster.concluding import Concluder

            return Concluder()
        from harness.cluster.checking import CheckSession

        return CheckSession(*self.sets[holds])
