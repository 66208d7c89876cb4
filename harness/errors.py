"""All errors a user can encounter.

HarnessError                      the run could not be made or judged: exit code 2
├── PlanError                     mistakes in YAML files, all of them at once, each with file and line
├── ModelError                    a model that cannot be loaded or must not be trusted
├── MemoryShortageError           models that are larger than the memory of this machine
├── DataError                     documents or tasks that cannot be used
├── BackendError                  a compression step that rejected its input or failed
├── TrainingError                 a training that diverged
├── MissingDependencyError        an optional library that is not installed
├── TableError                    tables on disk that are damaged or belong to another run
├── ForeignCodeError              a plugin, task or library that tried to end the process, or did not end
├── ClusterError                  workers that did not come, or that cannot compute a unit
├── MeasureError                  numbers that cannot be right (a negative divergence, say)
└── WriteError                    a report or result file that could not be written

A message says what was found, what was expected and what to do. Any other exception is a defect of the harness and
also ends with exit code 2, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

FailureClass = Literal[
    "usage",
    "model_unsupported",
    "comparability",
    "quantization_coverage",
    "accounting",
    "numerics",
    "quality",
    "resources",
]
"""usage: files, settings, tasks or plugins that do not fit. model_unsupported: a checkpoint, architecture or
compression step that does not load or run. comparability: the two sides differ in something no document exercised, or
do not see the same inputs. quantization_coverage: parts of the model that are not in the stated format, or were not
reached. accounting: counts, sizes or files that contradict what was measured or declared. numerics: numbers that are
not finite, and errors of weights and layers. quality: predictions and task scores. resources: time, memory, size,
kernels, disk."""


class HarnessError(Exception):
    """An error that the user can act on; the command line prints the message and exits with code 2.

    usual_failure: the class of failure, for programs that act on it, unless memory ran out.
    """

    usual_failure: ClassVar[FailureClass] = "usage"

    key: ClassVar[str] = ""
    """The key of a variant file that such errors are about; empty: none in particular."""

    @property
    def failure(self) -> FailureClass:
        """The usual class of such errors, but ``resources`` where memory ran out."""
        return "resources" if any(map(is_out_of_memory, trace_causes(self))) else self.usual_failure


OUT_OF_MEMORY = "out of memory; what was measured is kept, and the same command resumes"


def trace_causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the origin last."""
    found: list[BaseException] = []
    while error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or error
    return found


def classify(error: BaseException) -> FailureClass:
    """The class of any error, for programs."""
    if isinstance(error, HarnessError):
        return error.failure
    short = isinstance(error, OSError) or any(map(is_out_of_memory, trace_causes(error)))
    return "resources" if short else "usage"


def name_failure(failure: FailureClass) -> str:
    """The class of failure, as it stands in run.json, for people and programs."""
    return f"class of failure: {failure}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch is not imported for it, and of a CPU only its message tells."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Problem:
    """One mistake in one file: where it is, what was found, what was expected, and what to do."""

    file: str
    line: int | None
    key: str
    found: str
    expected: str
    hint: str = ""

    @property
    def message(self) -> str:
        """Everything but where it is."""
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{key}found {self.found}, expected {self.expected}{hint}"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}"


class PlanError(HarnessError):
    """All mistakes found in the files of one plan."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelError(HarnessError):
    """A model could not be loaded, or its files must not be trusted."""

    usual_failure = "model_unsupported"
    key = "variant"


class MergeError(HarnessError):
    """Shards cannot be put together: one is missing, or they are not of one whole."""

    usual_failure = "comparability"


class MemoryShortageError(HarnessError):
    """The models do not fit into the memory of this machine; nothing was loaded."""

    usual_failure = "resources"


class DataError(HarnessError):
    """Documents or tasks could not be read, or too few of them could be scored."""

    key = "suites"


class BackendError(HarnessError):
    """A compression step rejected its input or failed; the message names backend and module."""

    usual_failure = "model_unsupported"
    key = "variant"


class TrainingError(HarnessError):
    """A training diverged: its loss was not finite, or rose persistently."""

    usual_failure = "numerics"


class MissingDependencyError(HarnessError):
    """An optional library is missing."""

    def __init__(self, library: str, needed_by: str, install: str) -> None:
        super().__init__(f"{needed_by} needs the library {library}, which is not installed; install with: {install}")


class TableError(HarnessError):
    """Tables on disk are damaged, incomplete, or belong to another run."""

    usual_failure = "accounting"


class ForeignCodeError(HarnessError):
    """Code outside the harness tried to end the process, or gave no sign of life within its time limit."""

    usual_failure = "resources"


class ClusterError(HarnessError):
    """A cluster gives no workers, or none of them can compute some unit; what was committed is kept."""

    usual_failure = "resources"


class MeasureError(HarnessError):
    """A measured number contradicts its definition, so nothing computed from it can be trusted."""

    usual_failure = "accounting"


class WriteError(HarnessError):
    """An output file could not be written; the verdict that was reached still holds."""

    usual_failure = "resources"
