"""Workers that are Ray actors. Ray places them, tells of their death, and carries what they return; no more is asked.

Every worker is an actor that opens the models once. An actor that dies is replaced by a new one, under a new name. Only
results larger than Ray's limit for messages pass through its object store.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.cluster.host import Fault, Host, Opener, Place
from harness.cluster.workers import Event, Failed, Finished, Joined, Lost, Unit
from harness.errors import ClusterError, MissingDependencyError
from harness.records.plan import RunSpec

INSTALL = 'pip install "lm-shipcheck[ray]"'
MOST_STILLBORN = 3
"""Actors in a row that die or fail before they can take units, after which their place stays empty."""
LOCAL = "local"
NODE = "ray.io/node-id"
"""The label that Ray gives to every node."""
CONNECT_SECONDS = 10.0


class Worker(Host):
    """The actor."""

    def place(self) -> Place:
        """Where this actor runs, with the node as Ray names it."""
        import ray

        return replace(super().place(), node=ray.get_runtime_context().get_node_id())


@dataclass(frozen=True)
class Asked:
    """What one worker needs: cores, GPUs, bytes of memory."""

    cpus: float
    gpus: float
    memory: float

    def count_in(self, resources: Mapping[str, float]) -> int:
        """How many such workers a node with these resources has room for."""
        each = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(resources.get(name, 0.0) / amount) for name, amount in each.items() if amount > 0)

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU", f"{self.gpus:g} GPU" * (self.gpus > 0)]
        return ", ".join([*filter(None, parts), f"{self.memory / 1e9:.2f} GB of memory"])


@dataclass
class _Seat:
    """The place of one worker, and the actor that has it now."""

    label: str
    actor: Any = None
    name: str = ""
    place: Place | None = None
    """None until the cluster has given the resources."""
    joined: bool = False
    stillborn: int = 0


class RayWorkers:
    """Actors of one run.

    opener: opens the models in each of them. memory: bytes that a worker needs if the spec does not say.
    """

    def __init__(self, spec: RunSpec, opener: Opener, memory: float) -> None:
        self._spec, self._opener = spec, opener
        asked_memory = memory if spec.memory_per_worker is None else spec.memory_per_worker * 1e9
        self._asked = Asked(spec.cpus_per_worker, spec.gpus_per_worker, asked_memory)
        self._seats: list[_Seat] = []
        self._by_name: dict[str, _Seat] = {}
        self._calls: dict[Any, tuple[_Seat, str, Unit | None]] = {}
        """Of every call without an answer: seat, name of the actor, and its unit (None: it says what it is)."""
        self._numbers = 0
        self._reason = ""
        self._owns_connection = False
        self._ray: Any = None
        self._sent: Any = None
        """The opener in the object store, from where every worker takes it."""

    def start(self) -> None:
        """Connect, and ask for the actors. Raises ClusterError if there is no cluster."""
        self._ray = import_ray()
        self._connect()
        self._sent = self._ray.put(self._opener)
        self._seats = [_Seat("") for _ in range(self._spec.workers or max(1, self._count_room()))]
        if label := self.quiet_label():
            self._seats.append(_Seat(label))
        for seat in self._seats:
            self._fill(seat)

    def quiet_label(self) -> str:
        """The label of the worker that measures times; empty if there is no node for it alone."""
        return self._spec.quiet or "" if self._list_quiet_nodes() else ""

    def _list_alive(self) -> list[Any]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _list_quiet_nodes(self) -> list[str]:
        """The nodes on which nothing but times are measured; none if no other would be left."""
        alive = self._list_alive()
        quiet = (
            [node["NodeID"] for node in alive if node["Resources"].get(self._spec.quiet)] if self._spec.quiet else []
        )
        return quiet if any(self._asked.count_in(n["Resources"]) for n in alive if n["NodeID"] not in quiet) else []

    def hand(self, worker: str, unit: Unit) -> None:
        """See Workers. The dashboard shows the unit by its label."""
        seat = self._by_name[worker]
        self._call(seat, seat.actor.run.options(name=unit.label).remote(unit), unit)

    def wait(self, seconds: float) -> Sequence[Event]:
        """See Workers. Raises ClusterError if no worker can be had any more."""
        if not any(seat.actor for seat in self._seats):
            raise ClusterError(f"every worker of the cluster ended before it could take units: {self._reason}")
        if not self._calls:
            time.sleep(seconds)
            return []
        first, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0) if first else ([], [])
        events = (self._answer(call) for call in ready)
        return [event for event in events if event is not None]

    def dismiss(self, worker: str) -> None:
        """See Workers. A worker that was let go is not replaced."""
        seat = self._by_name.pop(worker)
        self._ray.kill(seat.actor)
        self._drop_calls(seat)
        seat.actor = seat.place = None

    def explain_absence(self) -> str:
        """See Workers."""
        if any(seat.place is not None and not seat.joined for seat in self._seats):
            return ""
        total, free = self._ray.cluster_resources(), self._ray.available_resources()
        count = len(self._seats)
        last = f"; {self._reason}" if self._reason else ""
        return (
            f"asked the Ray cluster for {count} workers with {self._asked} each, of which it gave "
            f"{sum(seat.place is not None for seat in self._seats)}; it has {_describe(total)}, and free are "
            f"{_describe(free)}{last}; ask for less (run: workers, cpus_per_worker, gpus_per_worker, memory_per_worker)"
            " or add nodes"
        )

    def finish(self) -> Sequence[Failed | Lost]:
        """See Workers."""
        calls = {seat.actor.verify.remote(): name for name, seat in self._by_name.items()}
        failed: list[Failed | Lost] = []
        for call, name in calls.items():
            try:
                fault = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                failed.append(Lost(name, " ".join(str(error).split())))
                continue
            if isinstance(fault, Fault):
                failed.append(Failed(name, Unit("", "verify", ()), f"{fault.error}: {fault.reason}", fault.log))
        return failed

    def stop(self) -> None:
        """See Workers."""
        if self._ray is None:
            return
        for seat in self._seats:
            if seat.actor is not None:
                self._ray.kill(seat.actor)
        self._calls.clear()
        if self._owns_connection:
            self._ray.shutdown()

    def _connect(self) -> None:
        if self._ray.is_initialized():
            return
        try:
            _check_answers(self._spec.ray)
            self._ray.init(address=self._spec.ray, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"run: {{ray: {self._spec.ray}}}: no Ray cluster answers there ({' '.join(str(error).split())}); start "
                f"one with: ray start --head, or write ray: {LOCAL} for workers on this machine alone"
            ) from error
        self._owns_connection = True

    def _count_room(self) -> int:
        quiet = self._list_quiet_nodes()
        return sum(self._asked.count_in(n["Resources"]) for n in self._list_alive() if n["NodeID"] not in quiet)

    def _fill(self, seat: _Seat) -> None:
        """Ask for an actor for a seat."""
        self._numbers += 1
        seat.name, seat.place, seat.joined = f"w{self._numbers}", None, False
        quiet = self._list_quiet_nodes()
        actor = self._ray.remote(Worker).options(
            num_cpus=self._asked.cpus,
            num_gpus=self._asked.gpus,
            memory=int(self._asked.memory),
            resources={seat.label: 1} if seat.label else None,
            label_selector={NODE: f"!in({','.join(quiet)})"} if quiet and not seat.label else None,
            max_restarts=0,
        )
        seat.actor = actor.remote(self._sent, self._spec.cpus_per_worker)
        self._call(seat, seat.actor.place.options(name="ask where it runs").remote(), None)

    def _call(self, seat: _Seat, call: Any, unit: Unit | None) -> None:
        self._calls[call] = seat, seat.name, unit

    def _drop_calls(self, seat: _Seat) -> None:
        self._calls = {call: about for call, about in self._calls.items() if about[0] is not seat}

    def _answer(self, call: Any) -> Event | None:
        """What an answer means; None if it is of no interest to the head."""
        if call not in self._calls:
            return None
        seat, name, unit = self._calls.pop(call)
        try:
            value = self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            return self._bury(seat, str(error))
        except self._ray.exceptions.RayError as error:  # its result was lost with the object store of a node
            reason = " ".join(str(error).split())
            return Failed(name, unit, reason) if unit is not None else self._bury(seat, reason)
        if unit is not None:
            return _judge_answer(name, unit, value)
        if isinstance(value, Place):
            seat.place = value
            self._call(seat, seat.actor.fingerprint.options(name="ask how it rounds").remote(), None)
            return None
        if isinstance(value, Fault):
            self._ray.kill(seat.actor)
            return self._bury(seat, f"{value.error}: {value.reason}")
        seat.joined, seat.stillborn = True, 0
        self._by_name[name] = seat
        seat.actor.warm.options(name="open the models").remote()
        return Joined(name, value, seat.label)

    def _bury(self, seat: _Seat, reason: str) -> Event | None:
        """Ask for another actor in place of one that is gone; not for ever where none of them lives to take units."""
        self._drop_calls(seat)
        self._reason = " ".join(reason.split())
        name, place, joined = seat.name, seat.place, seat.joined
        where = f" on {place.host}, process {place.process}" if place else ""
        seat.stillborn += not joined
        if seat.stillborn < MOST_STILLBORN:
            blames_unit = self._is_alive(seat)
            self._fill(seat)
        else:
            blames_unit, seat.place, seat.actor = True, None, None
        if not joined:
            return None
        self._by_name.pop(name, None)
        return Lost(name, f"{self._reason}{where}", place.read_log() if place else "", blames_unit)

    def _is_alive(self, seat: _Seat) -> bool:
        """Whether the node of a seat is still there."""
        node = seat.place.node if seat.place else ""
        return any(each["NodeID"] == node and each["Alive"] for each in self._ray.nodes())


def import_ray() -> Any:
    """The library Ray. Raises MissingDependencyError with the command that installs it."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("ray", "run: {ray: …}", INSTALL)
    import ray

    return ray


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at an address, on which Ray itself would wait for ever, ValueError if it is
    none."""
    if address in ("auto", LOCAL):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"expected auto, {LOCAL} or host:port")
    socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _judge_answer(worker: str, unit: Unit, value: object) -> Event:
    if isinstance(value, Fault):
        return Failed(worker, unit, f"{value.error}: {value.reason}", value.log, value.error)
    return Finished(worker, unit, value)


def _describe(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(name, 0.0) for name in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPU, {gpus:g} GPU, {memory / 1e9:.2f} GB of memory"
