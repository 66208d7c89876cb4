"""Files of a run that tables speak of."""

from __future__ import annotations

from pathlib import Path

from harness.concluding.saved_files import find_lost_files
from harness.records import Artifact, ArtifactFile


def test_files_of_a_saved_artifact_that_are_not_there_are_named(tmp_path: Path) -> None:
    files = tuple(ArtifactFile(name=name, bytes=3, sha256="0" * 64) for name in ("a", "b", "c"))
    saved = Artifact(kind="saved", files=files)
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "a").write_bytes(b"123")
    (tmp_path / "artifact" / "b").write_bytes(b"12")
    assert find_lost_files(saved, tmp_path) == ["b", "c"]
    assert find_lost_files(Artifact(kind="checkpoint", files=files), tmp_path) == []
    assert find_lost_files(None, tmp_path) == []
