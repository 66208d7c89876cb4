"""Opens the user's texts while the plan is made, so that what cannot be read does not fail after a model was loaded."""

from __future__ import annotations

from harness.data.documents import read_documents
from harness.errors import DataError
from harness.planning.checking import Checker
from harness.records import CalibrationSpec, DocumentsSpec, HubData, TrainingSpec
from harness.records.plan import OWN
from harness.system.resources import POCKET_SPLITS

MOST = 10_000
"""Documents of a file that are read: far more than a check needs, few enough for a second."""


def check_readable(check: Checker, spec: DocumentsSpec | CalibrationSpec | TrainingSpec, key: str) -> None:
    """Note a file of documents whose first rows cannot be read: encoding, JSON, text field, or no document at all."""
    if isinstance(spec.data, HubData) or spec.data in (OWN, *POCKET_SPLITS):
        return
    asked = spec.max if isinstance(spec, DocumentsSpec) else spec.documents
    prompts = spec.prompt_field if isinstance(spec, TrainingSpec) else None
    try:
        read_documents(spec.data, min(asked or MOST, MOST), spec.text_field, spec.split_on, prompt_field=prompts)
    except DataError as error:
        check.problem((key, "data"), str(error), "documents that can be read")
