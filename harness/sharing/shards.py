"""Shards: one share of the work on a group of variants, and what is left of it.

    open models ─▶ list all units ─▶ compute every n-th ─▶ tables and shard.json

``harness.sharing.merging`` puts all shares together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from harness import __version__
from harness.cluster.rounding import describe_rounding
from harness.concluding.pair import Pair, PairFacts, Unit, hash_data
from harness.errors import MergeError
from harness.planning.specs import Plan
from harness.records import Record
from harness.running.opening import read_openings
from harness.running.units import ARTIFACT
from harness.system.files import write_atomic

if TYPE_CHECKING:
    from harness.running.pairs import LoadedPair
    from harness.running.session import Session

SHARD_FILE = "shard.json"


class Share(NamedTuple):
    """The part ``number`` (from 1) of ``of`` parts."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def select(self, units: Sequence[Unit]) -> list[Unit]:
        """Every n-th unit: neighbours, which cost about as much, go to different processes."""
        return list(units[self.number - 1 :: self.of])


class Shard(Record):
    """What a process leaves that has computed a share of the units of one variant."""

    harness: str
    number: int
    of: int
    name: str
    source: str
    plan_sha256: str
    openings: tuple[bool, ...]
    facts: PairFacts
    rounding: str
    """How the processor rounds (see harness.cluster.rounding)."""
    units: tuple[Unit, ...]
    """All units of the variant, in the order in which one process computes them."""
    seconds: dict[str, float]

    @property
    def share(self) -> Share:
        """Which part this is."""
        return Share(self.number, self.of)


def observe_share(session: Session, share: Share) -> None:
    """Compute a share of the units of every pair. A pair that fails keeps its error."""
    saved: list[LoadedPair] = []
    for pair in session.pairs:
        own = {(unit.suite, unit.name) for unit in share.select(list(session.list_units(pair)))}
        saved += [pair] if (ARTIFACT.suite, ARTIFACT.name) in own else []
        pair.own = lambda suite, name, own=own: (suite, name) in own
    session.compare_files(saved)
    session.observe_floors()
    session.observe(session.pairs)
    session.observe_artifacts([pair for pair in saved if pair.error is None])
    session.verify_unchanged()


def write_shard(pair: Pair, units: Sequence[Unit], asked: Plan, share: Share, folder: Path) -> None:
    """Leave the record of a share in the folder of the run. Raises WriteError."""
    shard = Shard(
        harness=__version__,
        number=share.number,
        of=share.of,
        name=asked.name,
        source=asked.source,
        plan_sha256=hash_plan(asked),
        openings=read_openings(pair.observed.plan),
        facts=pair.facts,
        rounding=describe_rounding(asked.reference.device),
        units=tuple(units),
        seconds=pair.observed.seconds,
    )
    write_atomic(folder / SHARD_FILE, shard.model_dump_json(indent=1).encode())


def hash_plan(plan: Plan) -> str:
    """The hash of everything that a plan asks for, wherever its files are."""
    return hash_data(_drop_sources(plan.model_dump(mode="json", serialize_as_any=True)))


def _drop_sources(value: object) -> object:
    if isinstance(value, dict):
        return {key: _drop_sources(each) for key, each in value.items() if key != "source"}
    return [_drop_sources(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Part:
    """One shard, in its folder."""

    folder: Path
    shard: Shard

    def __str__(self) -> str:
        return f"shard {self.shard.share} ({self.folder})"


def find_parts(folders: Sequence[Path]) -> dict[str, list[Part]]:
    """The shards in these folders, which are run folders or hold some, by the name of their variant.

    Raises MergeError for a folder without any, or with one that cannot be read.
    """
    found: dict[str, list[Part]] = {}
    for folder in folders:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        paths = [path for each in (folder, *inside) if (path := each / SHARD_FILE).is_file()]
        if not paths:
            raise MergeError(
                f"{folder}: found no {SHARD_FILE} there or one level below, expected the folder of a shard that has "
                "ended: run harness check FILE --shard I/N again, it resumes"
            )
        for path in paths:
            part = _read_part(path)
            found.setdefault(part.shard.name, []).append(part)
    return {name: sorted(parts, key=lambda part: part.shard.number) for name, parts in found.items()}


def _read_part(path: Path) -> Part:
    try:
        return Part(path.parent, Shard.model_validate_json(path.read_bytes()))
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
        raise MergeError(
            f"{path}: could not be read ({reason}), expected what harness {__version__} writes; compute that shard "
            "with this version again"
        ) from error
