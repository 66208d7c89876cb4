"""Resolves the name of a model to files on this machine: ``pocket``, a folder, a GGUF file, a snapshot of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.errors import ModelError
from harness.models.fingerprints import READ_WHEN_LOADING
from harness.pocket import MODEL_DIR
from harness.records import ModelSpec
from harness.records.plan import GGUF

POCKET = "pocket"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A model folder on this machine. revision: the commit of a hub snapshot, or None. file: the GGUF file in it, if
    any."""

    folder: Path
    revision: str | None = None
    pinned: bool = True
    file: Path | None = None

    @property
    def is_pocket(self) -> bool:
        """Whether this is the embedded model, whose files must match its manifest."""
        return self.folder == MODEL_DIR


def resolve(spec: ModelSpec) -> Source:
    """The folder that ``spec.model`` names; hub files are downloaded (or taken from the cache) here.

    Raises ModelError, before anything is computed, for a missing path, an unreachable hub, an unknown or gated
    repository, an unknown revision, and remote code without a pinned commit.
    """
    local = MODEL_DIR if spec.model == POCKET else Path(spec.model).expanduser()
    if spec.model == POCKET or local.exists():
        if spec.revision is not None:
            raise ModelError(f"{spec.model}: revision {spec.revision!r} is for models on the hub; remove it")
        if local.suffix == GGUF and local.is_file():
            return Source(local.parent, file=local)
        if not local.is_dir():
            raise ModelError(f"{local}: {_suggest_instead(local)}")
        return Source(local, file=_file_in(local, spec))
    if not HUB_ID.fullmatch(spec.model) or ".." in spec.model:
        raise ModelError(f"{spec.model}: no such folder, and not a valid hub id (owner/name)")
    pinned = COMMIT.fullmatch(spec.revision or "") is not None
    if spec.trust_remote_code and not pinned:
        raise ModelError(
            f"{spec.model}: trust_remote_code runs code from the hub, so revision must be a commit of 40 hex "
            f"digits, found {spec.revision!r}"
        )
    folder = _snapshot(spec)
    revision = folder.name if COMMIT.fullmatch(folder.name) else spec.revision
    return Source(folder, revision, pinned, _file_in(folder, spec))


def _file_in(folder: Path, spec: ModelSpec) -> Path | None:
    """The GGUF file that was named in addition to a folder or repository. Raises ModelError if it does not exist."""
    if spec.file is None:
        return None
    path = folder / spec.file
    if path.suffix != GGUF or ".." in path.parts or not path.is_file():
        there = ", ".join(sorted(each.name for each in folder.glob(f"*{GGUF}"))) or "none"
        raise ModelError(f"{spec.model}: file {spec.file!r} is not a GGUF file in it; its GGUF files: {there}")
    return path


def _snapshot(spec: ModelSpec) -> Path:
    where = f"{spec.model}@{spec.revision or 'main'}"
    endings = READ_WHEN_LOADING if spec.trust_remote_code else READ_WHEN_LOADING - {".py"}
    try:
        return Path(
            snapshot_download(
                spec.model,
                revision=spec.revision,
                allow_patterns=[spec.file] if spec.file else sorted(f"*{ending}" for ending in endings),
                ignore_patterns=["consolidated*", *([] if spec.trust_remote_code or spec.file else ["*/*"])],
            )
        )
    except GatedRepoError as error:
        raise ModelError(f"{where}: gated; accept its terms on the hub and log in (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{where}: the repository has no such revision; give a branch, tag or commit") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{where}: no such folder here and no such model on the hub (or it is private)") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            f"{where}: no such folder here, not in the local cache, and the hub cannot be reached; give a "
            "folder, or download it on a machine with network access (hf download)"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"{where}: the hub could not deliver it: {type(error).__name__}: {error}") from error


def _suggest_instead(path: Path) -> str:
    if not path.exists():
        return "the embedded model is not installed; install the harness again"
    return "is a file, expected the folder of a model (with config.json and safetensors) or a GGUF file"
